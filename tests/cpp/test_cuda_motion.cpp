// Runs the source of the CUDA kernels of motion_saliency in an emulation of CUDA on the processor, and
// compares them with the equations written as a plain loop; see test_cuda_arithmetic.cpp.
#include "cuda_emulation.h"
// The kernels come after the names of CUDA that they use.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/motion.cuh"
#include "far_apart.h"

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
  std::vector<T> values(kBatch * frames * kHeight * kWidth * pixel, static_cast<T>(NAN));
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
    return std::vector<T>(kBatch * frames * image * options.channels, static_cast<T>(NAN));
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
          const double f = static_cast<double>(query[from * pixel + c]),
                       value = static_cast<double>(memory[to * pixel + c]),
                       g = static_cast<double>(grad[from * pixel + c]);
          const double s = 1 / (1 + std::exp(f - value)), slope = s * (1 - s) * value;
          const double direct = options.residual ? 1 : 0;
          expected[from * options.channels + c] = s * value + direct * value;
          expected_query[from * options.channels + c] = -g * slope;
          expected_memory[to * options.channels + c] += g * (slope + s + direct);
        }
      }
    }
  }
  const double tolerance = sizeof(T) == 8 ? 1e-13 : sizeof(T) == 4 ? 1e-5 : 1e-3;
  const auto compare = [&](const std::vector<T>& actual, const std::vector<double>& wanted,
                           const char* what) {
    for (size_t i = 0; i < wanted.size(); ++i)
      ASSERT_TRUE(std::fabs(static_cast<double>(actual[i]) - wanted[i]) <=
                  tolerance * std::max(1.0, std::fabs(wanted[i])))
          << what << "[" << i << "]";
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
  check<_Float16, 1>(options);
}

TEST_P(CudaMotion, PacksAgreeWithTheEquations) {
  check<float, 4>(GetParam());
  check<double, 2>(GetParam());
  Options options = GetParam();
  options.channels *= 2;  // to a multiple of 8
  options.padding *= 2;
  check<_Float16, 8>(options);
}

INSTANTIATE_TEST_SUITE_P(, CudaMotion,
                         testing::Values(Options{"Paper", 8, 3, 3, 1, true, false, 0},
                                         Options{"CausalSkipResidual", 12, 3, 3, -1, false, true, 4},
                                         Options{"ManyReaders", 4, 5, 2, 1, true, true, 0},
                                         Options{"NoReaders", 4, 2, 5, 1, true, false, 8},
                                         Options{"NothingThere", 8, 2, 2, 2, false, true, 0}),
                         [](const auto& info) { return info.param.name; });

// One pixel, whose memory is far from its query: where the exponential overflows and underflows, the results
// are those of the limits, and finite.
template <typename T, int V>
void check_limits_of_the_sigmoid() {
  // The first two are further apart than the largest float16, the others than the exponents of a float32.
  const std::vector<T> query = {T(6e4f), T(-6e4f), T(90), T(-90), T(110), T(-110), T(800), T(-800)};
  std::vector<T> memory(8, T(2)), grad(8, T(1)), output(8), grad_query(8), grad_memory(8);
  memory[0] = T(-6e4f);
  memory[1] = T(6e4f);
  MotionSaliencyBackward call{};
  call.batch = call.frames = call.memory_frames = call.height = call.width = 1;
  call.channels = 8;
  call.query = query.data();
  call.memory = memory.data();
  call.grad_output = grad.data();
  call.query_strides = call.memory_strides = call.grad_output_strides = dense_strides(8, 1, 1, 1);
  call.output = output.data();
  call.grad_query = grad_query.data();
  call.grad_memory = grad_memory.data();
  emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency<T, V>(call); });
  emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency_backward_query<T, V>(call); });
  emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency_backward_memory<T, V>(call); });
  for (int i = 0; i < 8; ++i) {
    const double share = i % 2;
    EXPECT_NEAR(static_cast<double>(output[i]), share * static_cast<double>(memory[i]), 1e-30) << i;
    EXPECT_NEAR(static_cast<double>(grad_query[i]), 0, 1e-30) << i;
    EXPECT_NEAR(static_cast<double>(grad_memory[i]), share, 1e-30) << i;
  }
}

TEST(CudaMotionKernels, LimitsOfTheSigmoid) {
  check_limits_of_the_sigmoid<float, 4>();
  check_limits_of_the_sigmoid<double, 2>();
  check_limits_of_the_sigmoid<_Float16, 8>();
}

TEST(CudaMotionKernels, PacksNeedAlignment) {
  alignas(16) const float features[8] = {};
  MotionSaliencyBackward aligned{};
  aligned.batch = aligned.frames = aligned.memory_frames = aligned.height = aligned.width = 2;
  aligned.channels = 8;
  aligned.query = aligned.memory = aligned.grad_output = features;
  aligned.query_strides = aligned.memory_strides = aligned.grad_output_strides = dense_strides(8, 2, 2, 2);
  EXPECT_TRUE(cuda::allows_packs(aligned, 4));
  for (const void* MotionSaliencyBackward::* const tensor :
       {static_cast<const void* MotionSaliencyBackward::*>(&MotionSaliency::query),
        static_cast<const void* MotionSaliencyBackward::*>(&MotionSaliency::memory),
        &MotionSaliencyBackward::grad_output}) {
    MotionSaliencyBackward call = aligned;
    call.*tensor = features + 1;
    EXPECT_FALSE(cuda::allows_packs(call, 4));
  }
  MotionSaliencyBackward call = aligned;
  call.query_strides.column += 1;
  EXPECT_FALSE(cuda::allows_packs(call, 4));
  call = aligned;
  call.channels = 7;
  EXPECT_FALSE(cuda::allows_packs(call, 4));
}

TEST(CudaMotionKernels, AddressesOfMoreThan31Bits) {
  const Options options{"", 4, 2, 2, 1, true, false, 0};
  std::mt19937 random(4);
  const auto query = random_features<float>(2, options, random);
  const auto memory = random_features<float>(2, options, random);
  const auto grad = random_features<float>(2, options, random);
  const FarApart<float> far_query(query, 4 * kWidth), far_memory(memory, 4 * kWidth),
      far_grad(grad, 4 * kWidth);
  if (!far_query.exists() || !far_memory.exists() || !far_grad.exists()) {
    GTEST_SKIP() << "needs 144 GiB of address space";
  }
  const auto results = [&](const float* f, const float* n, const float* g, const PixelStrides& strides) {
    std::vector<float> values(3 * query.size(), NAN);
    MotionSaliencyBackward call{};
    call.batch = kBatch;
    call.channels = 4;
    call.frames = call.memory_frames = 2;
    call.height = kHeight;
    call.width = kWidth;
    call.frame_shift = 1;
    call.clamp = true;
    call.query = f;
    call.memory = n;
    call.grad_output = g;
    call.query_strides = call.memory_strides = call.grad_output_strides = strides;
    call.output = values.data();
    call.grad_query = values.data() + query.size();
    call.grad_memory = values.data() + 2 * query.size();
    emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency<float, 4>(call); });
    emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency_backward_query<float, 4>(call); });
    emulation::launch(1, cuda::kBlock, 0, false, [&] { cuda::saliency_backward_memory<float, 4>(call); });
    return values;
  };
  EXPECT_EQ(
      results(far_query.data(), far_memory.data(), far_grad.data(), FarApart<float>::strides(4, 2, kHeight)),
      results(query.data(), memory.data(), grad.data(), dense_strides(4, 2, kHeight, kWidth)));
}

// Of a tensor that is dense, and hence large.
TEST(CudaMotionKernels, PlacesBeyond31Bits) {
  MotionSaliency call{};
  call.channels = 8;
  call.height = 1 << 14;
  call.width = 1 << 15;
  const int64_t pixel = ((4 * 7 + 6) * call.height + 16381) * call.width + 32765;
  const cuda::PackPlace place = cuda::place_at<4>(call, 7, pixel * 2 + 1);
  EXPECT_EQ(std::vector<int64_t>({place.n, place.t, place.y, place.x, place.channel}),
            std::vector<int64_t>({4, 6, 16381, 32765, 4}));
}

}  // namespace
