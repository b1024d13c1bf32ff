// Measures the most that this GPU does: what ceilings.cpp measures on a processor, with the same functions.
// `threads` is ignored. Not part of the package: benchmarks/ceilings.py compiles it with nvcc and calls it
// between what it times.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kThreads = 256;
// Fills 2048 threads of a multiprocessor; on those that hold fewer the rest waits its turn.
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kAccumulators = 8;
// What all blocks read, so that a multiprocessor's first-level cache holds it with room to spare.
constexpr int kReadBytes = 16384;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "ceilings: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

__global__ void multiply_add(int steps, float factor, float term, float* result) {
  float sums[kAccumulators];
#pragma unroll
  for (int i = 0; i < kAccumulators; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
#pragma unroll 8
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) sums[i] = fmaf(sums[i], factor, term);
  }
  float total = 0;
#pragma unroll
  for (int i = 0; i < kAccumulators; ++i) total += sums[i];
  if (total == -1) *result = total;  // never: the sums stay positive, and the compiler cannot know
}

// One step reads kReadBytes per block, 16 bytes per thread and load, from an address that changes with the
// step: else the assembler reads once for all steps.
__global__ void read(int steps, const uint4* data, unsigned* result) {
  constexpr int kLoads = kReadBytes / (16 * kThreads);
  uint4 sums[kLoads] = {};
  for (int step = 0; step < steps; ++step) {
    const int first = (static_cast<int>(threadIdx.x) + step * 8) % kThreads;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint4 value = __ldg(data + i * kThreads + first);
      sums[i].x ^= value.x;
      sums[i].y ^= value.y;
      sums[i].z ^= value.z;
      sums[i].w ^= value.w;
    }
  }
  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) total |= sums[i].x | sums[i].y | sums[i].z | sums[i].w;
  if (total == 1) *result = total;  // never: the data is zeros
}

int num_blocks() {
  int device = 0;
  int multiprocessors = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return multiprocessors * kBlocksPerMultiprocessor;
}

// `launch(n)` does n pieces of work. Returns pieces per second, of a run that takes `seconds` or more.
template <class Launch>
double per_second(double seconds, const Launch& launch) {
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  double rate = 0;
  launch(1);
  for (int pieces = 1;; pieces *= 2) {
    check(cudaEventRecord(begin));
    launch(pieces);
    check(cudaGetLastError());
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    rate = pieces / (1e-3 * milliseconds);
    if (milliseconds >= 1e3 * seconds || pieces >= (1 << 20)) break;
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  return rate;
}

}  // namespace

extern "C" {

double operations_per_second(int, double seconds) {
  constexpr int kSteps = 64;
  const int blocks = num_blocks();
  const double rate = per_second(seconds, [&](int pieces) {
    multiply_add<<<blocks, kThreads>>>(pieces * kSteps, 0.999F, 0.001F, nullptr);
  });
  return rate * kSteps * kAccumulators * 2.0 * kThreads * blocks;
}

double read_bytes_per_second(int, double seconds) {
  constexpr int kSteps = 16;
  static uint4* data = nullptr;
  if (data == nullptr) {
    check(cudaMalloc(&data, kReadBytes));
    check(cudaMemset(data, 0, kReadBytes));
  }
  const int blocks = num_blocks();
  const double rate =
      per_second(seconds, [&](int pieces) { read<<<blocks, kThreads>>>(pieces * kSteps, data, nullptr); });
  return rate * kSteps * kReadBytes * blocks;
}

// Bytes read plus bytes written, when `bytes` are moved: half of them read, half of them written.
double copy_bytes_per_second(int, double seconds, std::size_t bytes) {
  static char* memory = nullptr;
  static std::size_t size = 0;
  if (size < bytes) {
    check(cudaFree(memory));
    check(cudaMalloc(&memory, bytes));
    check(cudaMemset(memory, 1, bytes));
    size = bytes;
  }
  const std::size_t half = bytes / 2;
  const double rate = per_second(seconds, [&](int pieces) {
    for (int i = 0; i < pieces; ++i) {
      check(cudaMemcpyAsync(memory + half, memory, half, cudaMemcpyDeviceToDevice));
    }
  });
  return rate * 2.0 * static_cast<double>(half);
}

}  // extern "C"
