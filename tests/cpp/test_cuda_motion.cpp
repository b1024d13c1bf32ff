// Runs the source of the CUDA kernels of motion_saliency in an emulation of CUDA on the processor, and
// compares them with the equations written as a plain loop; see test_cuda_arithmetic.cpp.
#include "cuda_emulation.h"
// The kernels come after the names of CUDA that they use.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/motion.cuh"

namespace {

using namespace sifa;

struct Options {
  std::string name;
  int64_t channels, frames, memory_frames, frame_shift;
  bool clamp, residual;
  int64_t padding;  // elements between one pixel and the next
};

constexpr int64_t kBatch = 2, kHeight = 3, kWidth = 5;

template <typename T>
std::vector<T> random_features(int64_t frames, const Options& options, std::mt19937& random) {
  std::normal_distribution<double> normal(0, 2);
  const int64_t pixel = options.channels + options.padding;
  // Between the pixels lies what must never be read.
  std::vector<T> values(kBatch * frames * kHeight * kWidth * pixel, std::numeric_limits<T>::quiet_NaN());
  for (size_t i = 0; i < values.size(); ++i) {
    if (static_cast<int64_t>(i) % pixel < options.channels) values[i] = static_cast<T>(normal(random));
  }
  return values;
}

template <typename T, int V>
void check(const Options& options) {
  std::mt19937 random(3);
  const auto query = random_features<T>(options.frames, options, random);
  const auto memory = random_features<T>(options.memory_frames, options, random);
  const auto grad = random_features<T>(options.frames, options, random);
  const int64_t pixel = options.channels + options.padding, image = kHeight * kWidth;

  MotionSaliencyBackward call{};
  call.batch = kBatch;
  call.channels = options.channels;
  call.frames = options.frames;
  call.memory_frames = options.memory_frames;
  call.height = kHeight;
  call.width = kWidth;
  call.frame_shift = options.frame_shift;
  call.clamp = options.clamp;
  call.residual = options.residual;
  call.query = query.data();
  call.query_strides = dense_strides(pixel, options.frames, kHeight, kWidth);
  call.memory = memory.data();
  call.memory_strides = dense_strides(pixel, options.memory_frames, kHeight, kWidth);
  call.grad_output = grad.data();
  call.grad_output_strides = call.query_strides;
  const auto filled = [&](int64_t frames) {
    return std::vector<T>(kBatch * frames * image * options.channels, std::numeric_limits<T>::quiet_NaN());
  };
  auto output = filled(options.frames), grad_query = filled(options.frames);
  auto grad_memory = filled(options.memory_frames);
  call.output = output.data();
  call.grad_query = grad_query.data();
  call.grad_memory = grad_memory.data();
  ASSERT_EQ(cuda::allows_packs(call, 16 / static_cast<int64_t>(sizeof(T))), V > 1);
  // Few blocks: each thread goes through several packs.
  emulation::launch(2, cuda::kBlock, 0, false, [&] { cuda::saliency<T, V>(call); });
  emulation::launch(2, cuda::kBlock, 0, true, [&] { cuda::saliency_backward_query<T, V>(call); });
  emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency_backward_memory<T, V>(call); });

  std::vector<double> expected(output.size(), 0), expected_query(output.size(), 0),
      expected_memory(grad_memory.size(), 0);
  for (int64_t n = 0; n < kBatch; ++n) {
    for (int64_t t = 0; t < options.frames; ++t) {
      int64_t m = t + options.frame_shift;
      if (options.clamp) m = m < 0 ? 0 : m >= options.memory_frames ? options.memory_frames - 1 : m;
      if (m < 0 || m >= options.memory_frames) continue;
      for (int64_t i = 0; i < image; ++i) {
        const int64_t from = (n * options.frames + t) * image + i,
                      to = (n * options.memory_frames + m) * image + i;
        for (int64_t c = 0; c < options.channels; ++c) {
          const double f = query[from * pixel + c], value = memory[to * pixel + c],
                       g = grad[from * pixel + c];
          const double s = 1 / (1 + std::exp(f - value)), slope = s * (1 - s) * value;
          const double direct = options.residual ? 1 : 0;
          expected[from * options.channels + c] = s * value + direct * value;
          expected_query[from * options.channels + c] = -g * slope;
          expected_memory[to * options.channels + c] += g * (slope + s + direct);
        }
      }
    }
  }
  const double tolerance = sizeof(T) == 8 ? 1e-13 : 1e-5;
  const auto compare = [&](const std::vector<T>& actual, const std::vector<double>& wanted,
                           const char* what) {
    for (size_t i = 0; i < wanted.size(); ++i)
      ASSERT_TRUE(std::fabs(actual[i] - wanted[i]) <= tolerance) << what << "[" << i << "]";
  };
  compare(output, expected, "output");
  compare(grad_query, expected_query, "grad_query");
  compare(grad_memory, expected_memory, "grad_memory");
}

class CudaMotion : public testing::TestWithParam<Options> {};

TEST_P(CudaMotion, SinglesAgreeWithTheEquations) {
  Options options = GetParam();
  options.channels += 1;  // no multiple of a pack
  check<float, 1>(options);
  check<double, 1>(options);
}

TEST_P(CudaMotion, PacksAgreeWithTheEquations) {
  check<float, 4>(GetParam());
  check<double, 2>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(, CudaMotion,
                         testing::Values(Options{"Paper", 8, 3, 3, 1, true, false, 0},
                                         Options{"CausalSkipResidual", 12, 3, 3, -1, false, true, 4},
                                         Options{"ManyReaders", 4, 5, 2, 1, true, true, 0},
                                         Options{"NoReaders", 4, 2, 5, 1, true, false, 8},
                                         Options{"NothingThere", 8, 2, 2, 2, false, true, 0}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
