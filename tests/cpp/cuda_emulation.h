// Runs CUDA kernels on a processor: just enough of CUDA, as one block after another whose threads are fibers,
// to execute the source of kernels/cuda/*.cuh, barriers and shuffles included, where there is no GPU. It
// fails on lanes that do not meet at a collective; under the sanitizers also on reads and writes out of
// bounds and on misaligned packs. It knows nothing of memory ordering, of compilers for GPUs or of time: only
// a GPU shows those.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

namespace emulation {

struct Index {
  unsigned int x;
};

constexpr int kWarpSize = 32;
constexpr size_t kSharedBytes = 48 * 1024;  // what every GPU gives a block unasked
constexpr size_t kStackBytes = 128 * 1024;

// What a thread waits for.
enum class At { kNothing, kShuffle, kWarpBarrier, kBlockBarrier, kEnd };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  void* asan_stack = nullptr;
  At at = At::kNothing;
  int step = 0;           // of a shuffle
  uint64_t posted = 0;    // what this lane gives to a shuffle
  uint64_t received = 0;  // what it gets
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  void* asan_scheduler = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  Fiber* running = nullptr;
  std::function<void()> kernel;
};

inline Block block;

inline void resume(Fiber& fiber) {
  block.running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block.asan_scheduler, fiber.stack.data(), kStackBytes);
#endif
  swapcontext(&block.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block.asan_scheduler, nullptr, nullptr);
#endif
}

inline void wait(At at) {
  Fiber& fiber = *block.running;
  fiber.at = at;
#if defined(__SANITIZE_ADDRESS__)
  void** const saved = at == At::kEnd ? nullptr : &fiber.asan_stack;
  __sanitizer_start_switch_fiber(saved, block.scheduler_stack, block.scheduler_stack_bytes);
#endif
  swapcontext(&fiber.context, &block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.asan_stack, nullptr, nullptr);
#endif
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  block.kernel();
  wait(At::kEnd);
}

}  // namespace emulation

inline emulation::Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T before = *address;
  *address = value;
  return before;
}
inline void __syncwarp() { emulation::wait(emulation::At::kWarpBarrier); }
inline void __syncthreads() { emulation::wait(emulation::At::kBlockBarrier); }
template <typename T>
T __shfl_xor_sync(unsigned int, T value, int step) {
  emulation::Fiber& fiber = *emulation::block.running;
  fiber.step = step;
  std::memcpy(&fiber.posted, &value, sizeof(T));
  emulation::wait(emulation::At::kShuffle);
  std::memcpy(&value, &fiber.received, sizeof(T));
  return value;
}
inline bool __any_sync(unsigned int mask, bool value) {
  int any = value;
  for (int step = emulation::kWarpSize / 2; step > 0; step /= 2) any |= __shfl_xor_sync(mask, any, step);
  return any != 0;
}

namespace sifa::cuda {
alignas(16) unsigned char shared_memory[emulation::kSharedBytes];
}

namespace emulation {

// Lets the lanes of one warp go on if all of them have reached the same collective.
inline bool release_warp(Fiber* lanes) {
  if (lanes[0].at != At::kShuffle && lanes[0].at != At::kWarpBarrier) return false;
  for (int i = 0; i < kWarpSize; ++i) {
    if (lanes[i].at != lanes[0].at || lanes[i].step != lanes[0].step) {
      throw std::logic_error("the lanes of a warp do not meet at the same collective");
    }
    lanes[i].received = lanes[i ^ lanes[0].step].posted;
  }
  for (int i = 0; i < kWarpSize; ++i) lanes[i].at = At::kNothing;
  return true;
}

inline bool all_at(At at) {
  for (const Fiber& fiber : block.fibers) {
    if (fiber.at != at) return false;
  }
  return true;
}

// Runs the lanes of the warp that starts at thread `first`, each up to its next collective.
inline bool run_lanes(unsigned int first, bool backwards) {
  bool progress = false;
  for (unsigned int i = 0; i < kWarpSize; ++i) {
    threadIdx.x = first + (backwards ? kWarpSize - 1 - i : i);
    Fiber& fiber = block.fibers[threadIdx.x];
    if (fiber.at != At::kNothing) continue;
    progress = true;
    resume(fiber);
  }
  return progress;
}

// Runs kernel() in a grid of `blocks` blocks of `threads` threads with `shared` bytes of shared memory. Each
// warp runs as far as it can without the others, from the first to the last or, `backwards`, from the last to
// the first, and so do its lanes: a missing barrier makes a difference.
inline void launch(unsigned int blocks, unsigned int threads, size_t shared, bool backwards,
                   const std::function<void()>& kernel) {
  if (threads % kWarpSize != 0 || shared > kSharedBytes) throw std::logic_error("no such block");
  gridDim.x = blocks;
  blockDim.x = threads;
  block.kernel = kernel;
  block.fibers.resize(threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::memset(sifa::cuda::shared_memory, 0xff, kSharedBytes);  // not numbers
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(sifa::cuda::shared_memory + shared, kSharedBytes - shared);
#endif
    for (Fiber& fiber : block.fibers) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      fiber.at = At::kNothing;
      fiber.step = 0;
      makecontext(&fiber.context, fiber_main, 0);
    }
    while (!all_at(At::kEnd)) {
      bool progress = false;
      for (unsigned int i = 0; i < threads; i += kWarpSize) {
        const unsigned int first = backwards ? threads - kWarpSize - i : i;
        do {
          progress |= run_lanes(first, backwards);
        } while (release_warp(&block.fibers[first]));
      }
      if (all_at(At::kBlockBarrier)) {
        for (Fiber& fiber : block.fibers) fiber.at = At::kNothing;
        progress = true;
      }
      if (!progress) throw std::logic_error("the threads of a block wait for one another");
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(sifa::cuda::shared_memory, kSharedBytes);
#endif
  }
}

}  // namespace emulation
