// Measures the most that this processor does: how fast it copies memory, reads its first-level cache and
// multiplies and adds. benchmarks/ceilings.py compiles it with -O3 -march=native and calls it between the
// calls that it times.
//
// Every function runs `threads` threads for `seconds` and returns what all of them did per second. A thread
// is timed by itself, from a common start, so that starting it costs nothing.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace {

// The widest registers there are. A wider vector type would be split, and its accumulators spilled.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
using Floats = float __attribute__((vector_size(kVectorBytes)));
using Words = std::uint32_t __attribute__((vector_size(kVectorBytes)));
constexpr int kLanes = kVectorBytes / sizeof(float);

// Enough independent chains to hide a latency of 4 to 6 cycles on two units, and few enough for 16 registers.
constexpr int kAccumulators = 12;
// Half of the smallest first-level cache in use, so that nothing else pushes it out.
constexpr int kReadBytes = 16384;

// Hides from the compiler that memory did not change, or that a value is known.
inline void forget() { asm volatile("" ::: "memory"); }
template <class T>
inline void hide(T& value) {
  asm volatile("" : "+m"(value));
}

// `work(thread)` does a piece of work and returns how much that was.
double per_second(int threads, double seconds, const std::function<double(int)>& work) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(threads);
  std::atomic<int> waiting = threads;
  const auto run = [&](int thread) {
    double done = 0;
    double elapsed = 0;
    work(thread);
    for (--waiting; waiting > 0;) {
    }
    for (const auto start = Clock::now(); elapsed < seconds;
         elapsed = std::chrono::duration<double>(Clock::now() - start).count()) {
      done += work(thread);
    }
    rates[thread] = done / elapsed;
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

double multiply_add(int) {
  constexpr int kSteps = 1024;
  Floats factor = Floats{} + 0.999F;
  Floats term = Floats{} + 0.001F;
  hide(factor);
  hide(term);
  Floats sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = Floats{} + static_cast<float>(i);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sums[i] = sums[i] * factor + term;
  }
  Floats total{};
  for (int i = 0; i < kAccumulators; ++i) total += sums[i];
  hide(total);
  return 2.0 * kSteps * kAccumulators * kLanes;
}

double read(int) {
  constexpr int kPasses = 256;
  constexpr int kVectors = kReadBytes / kVectorBytes;
  constexpr int kChains = 8;
  Words buffer[kVectors] = {};
  const Words* begin = buffer;
  Words sums[kChains] = {};
  for (int pass = 0; pass < kPasses; ++pass) {
    asm volatile("" : "+r"(begin));  // who knows where it points now
    for (int vector = 0; vector < kVectors; vector += kChains) {
#pragma GCC unroll 8
      for (int i = 0; i < kChains; ++i) sums[i] += begin[vector + i];
    }
  }
  Words total{};
  for (int i = 0; i < kChains; ++i) total += sums[i];
  hide(total);
  return static_cast<double>(kPasses) * kReadBytes;
}

}  // namespace

extern "C" {

// Floating point operations, a multiply-add being two, in float32.
double operations_per_second(int threads, double seconds) {
  return per_second(threads, seconds, multiply_add);
}

// Bytes that come out of the first-level cache.
double read_bytes_per_second(int threads, double seconds) { return per_second(threads, seconds, read); }

// Bytes read plus bytes written, when `bytes` are moved: half of them read, half of them written.
double copy_bytes_per_second(int threads, double seconds, std::size_t bytes) {
  static std::unique_ptr<char[]> memory;
  static std::size_t size = 0;
  if (size < bytes) {
    memory.reset(new char[bytes]);
    std::memset(memory.get(), 1, bytes);
    size = bytes;
  }
  const std::size_t half = bytes / 2;
  const std::size_t part = half / threads;
  return per_second(threads, seconds, [&](int thread) {
    char* const source = memory.get() + thread * part;
    std::memcpy(source + half, source, part);
    forget();
    return 2.0 * static_cast<double>(part);
  });
}

}  // extern "C"
