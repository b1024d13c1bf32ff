// Times the CUDA kernels of inter-frame attention alone, without torch: for tuning them, and for profilers.
//
//   nvcc -std=c++17 -O3 -arch=native -lineinfo -Ikernels benchmarks/cuda_kernels.cu \
//     kernels/cuda/inter_frame_attention.cu -o build/cuda_kernels
//   build/cuda_kernels                     one Markdown row per case; a few seconds
//   build/cuda_kernels 128x28x28 once      one case, every kernel once: for ncu and compute-sanitizer
//
// Times are medians of 7 blocks of 20 calls between two events, inputs random, in the second-level cache as
// far as they fit. "of the taps" divides by the time in which the first-level caches could deliver four
// corners of every tap, at 128 bytes per cycle and multiprocessor and the highest clock.
// `benchmarks/attention.py --device cuda` measures the operator, checks its outputs, and knows its rivals.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace {

using namespace sifa;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_kernels: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Memory of the GPU, filled with bytes of the host if there are any.
class Buffer {
 public:
  explicit Buffer(size_t bytes, const void* from = nullptr) {
    check(cudaMalloc(&data_, bytes));
    if (from != nullptr) check(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

template <typename Call>
double microseconds(const Call& call) {
  constexpr int kBlocks = 7, kCalls = 20;
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) call();
  std::vector<float> times(kBlocks);
  for (float& time : times) {
    check(cudaEventRecord(begin));
    for (int i = 0; i < kCalls; ++i) call();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&time, begin, end));
  }
  std::nth_element(times.begin(), times.begin() + kBlocks / 2, times.end());
  return 1e3 * times[kBlocks / 2] / kCalls;
}

struct Case {
  const char* name;
  int64_t batch, channels, frames, height, width, kernel_size;
  float sigma;  // of the offsets, in pixels
};

const Case kCases[] = {
    {"128x28x28", 16, 128, 4, 28, 28, 3, 1},
    {"256x14x14", 16, 256, 4, 14, 14, 3, 1},
    {"512x7x7", 16, 512, 4, 7, 7, 3, 1},
    {"64x90x160", 16, 64, 4, 90, 160, 3, 1},
    {"128x28x28-offsets8", 16, 128, 4, 28, 28, 3, 8},
    {"128x28x28-k5", 16, 128, 4, 28, 28, 5, 1},
    {"96x56x56", 16, 96, 4, 56, 56, 3, 1},
    {"128x28x28-batch1", 1, 128, 4, 28, 28, 3, 1},
};

template <typename T>
void run(const Case& c, const char* type, ScalarKind kind, bool once) {
  const int64_t pixels = c.batch * c.frames * c.height * c.width, elements = pixels * c.channels;
  const int64_t taps = c.kernel_size * c.kernel_size;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(1 << 20), offsets(pixels * 2 * taps);
  for (float& number : numbers) number = normal(random);
  for (float& offset : offsets) offset = c.sigma * normal(random);
  std::vector<T> features(elements);
  const auto fill = [&](int64_t step) {
    for (int64_t i = 0; i < elements; ++i) features[i] = T(numbers[(i * step + i / 999983) % numbers.size()]);
  };
  fill(7);
  const Buffer query(elements * sizeof(T), features.data());
  fill(11);
  const Buffer grad(elements * sizeof(T), features.data());
  const Buffer offset(offsets.size() * sizeof(float), offsets.data());
  const Buffer output(elements * sizeof(T)), grad_query(elements * sizeof(T)),
      grad_memory(elements * sizeof(T));
  const Buffer grad_offset(offsets.size() * sizeof(float));

  InterFrameAttentionBackward call{};
  call.batch = c.batch;
  call.channels = c.channels;
  call.frames = call.memory_frames = c.frames;
  call.height = c.height;
  call.width = c.width;
  call.kernel_size = c.kernel_size;
  call.dilation = call.groups = call.frame_shift = 1;
  call.scale = 1.0 / c.channels;
  call.clamp = call.residual = true;
  call.features = kind;
  call.offsets = ScalarKind::kFloat32;
  call.query = call.memory = query.get();
  call.query_strides = call.memory_strides = call.grad_output_strides =
      dense_strides(c.channels, c.frames, c.height, c.width);
  call.offset = offset.get();
  const PixelStrides at = dense_strides(2 * taps, c.frames, c.height, c.width);
  call.offset_strides = {at.batch, 1, at.frame, at.row, at.column};
  call.output = output.get();
  call.grad_output = grad.get();
  call.grad_query = grad_query.get();
  call.grad_memory = grad_memory.get();
  call.grad_offset = grad_offset.get();
  const Buffer scratch(cuda::backward_scratch_bytes(call));

  const auto forward = [&] { cuda::forward(call, nullptr); };
  const auto backward_query = [&] { cuda::backward_query(call, scratch.get(), nullptr); };
  const auto backward_memory = [&] { cuda::backward_memory(call, scratch.get(), nullptr); };
  if (once) {
    forward();
    backward_query();
    backward_memory();
    check(cudaDeviceSynchronize());
    return;
  }
  int device, multiprocessors, kilohertz;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device));
  const double floor = 4e6 * taps * elements * sizeof(T) / (128.0 * multiprocessors * 1e3 * kilohertz);
  const double first = microseconds(forward), second = microseconds(backward_query);
  const double third = microseconds(backward_memory);
  check(cudaDeviceSynchronize());
  std::printf("| %s | %s | %.1f | %.2f | %.1f | %.1f | %.2f |\n", c.name, type, first, first / floor, second,
              third, (first + second + third) / first);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  const bool once = argc > 2 && std::strcmp(argv[2], "once") == 0;
  if (!once) {
    std::printf(
        "| case | type | attend, us | of the taps | differentiate, us | gather, us | both / forward |\n");
    std::printf("| --- | --- | --- | --- | --- | --- | --- |\n");
  }
  bool found = false;
  for (const Case& c : kCases) {
    if (!wanted.empty() && wanted != c.name) continue;
    found = true;
    run<__half>(c, "float16", ScalarKind::kFloat16, once);
    run<__nv_bfloat16>(c, "bfloat16", ScalarKind::kBFloat16, once);
    run<float>(c, "float32", ScalarKind::kFloat32, once);
  }
  if (found) return 0;
  std::fprintf(stderr, "cuda_kernels: no case is called %s; there are:", wanted.c_str());
  for (const Case& c : kCases) std::fprintf(stderr, " %s", c.name);
  std::fprintf(stderr, "\n");
  return 1;
}
