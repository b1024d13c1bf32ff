// Runs the source of the CUDA kernels in an emulation of CUDA on the processor, and compares it with the
// equations (design section 3), written as a plain loop, and with finite differences of that loop. A machine
// without a GPU checks the arithmetic, the addresses and the meeting of lanes this way; what it cannot check
// is in tests/python/test_operator_cuda.py.
#include "cuda_emulation.h"
// The kernels come after the names of CUDA that they use.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/inter_frame_attention.cuh"
#include "far_apart.h"

namespace {

using namespace sifa;
using cuda::Accumulator;
using cuda::Contribution;

struct Options {
  std::string name;
  int64_t batch = 2, channels = 16, frames = 2, memory_frames = 2, height = 3, width = 4;
  int64_t kernel_size = 3, dilation = 1, groups = 1, frame_shift = 1;
  bool clamp = true, softmax = false, residual = true;
  int64_t padding = 0;  // elements between one pixel and the next
  bool float_offset = true;
  bool whole_blocks = false;  // one block per tile; otherwise one block goes through all of them
};

// Tensors of a call as plain vectors. Offsets are about 1.5 pixels, some of them not finite, and some far
// outside.
template <typename T>
struct Tensors {
  std::vector<T> query, memory, grad;  // padded: see strides()
  std::vector<T> offset;               // dense, channels last
  std::vector<float> float_offset;
};

template <typename T>
std::vector<T> random_features(int64_t pixels, int64_t channels, int64_t padding, std::mt19937& random) {
  std::normal_distribution<double> normal;
  // Between the pixels lies what must never be read.
  std::vector<T> values(pixels * (channels + padding),
                        static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; ++c)
      values[i * (channels + padding) + c] = static_cast<T>(normal(random));
  }
  return values;
}

template <typename T>
Tensors<T> random_tensors(const Options& options, bool wild_offsets, unsigned int seed) {
  std::mt19937 random(seed);
  Tensors<T> tensors;
  const int64_t frame = options.height * options.width;
  const int64_t pixels = options.batch * options.frames * frame;
  tensors.query = random_features<T>(pixels, options.channels, options.padding, random);
  tensors.memory = random_features<T>(options.batch * options.memory_frames * frame, options.channels,
                                      options.padding, random);
  tensors.grad = random_features<T>(pixels, options.channels, options.padding, random);
  std::normal_distribution<double> normal(0, 1.5);
  std::uniform_real_distribution<double> fraction(0.1, 0.9);
  for (int64_t i = 0; i < pixels * 2 * options.kernel_size * options.kernel_size; ++i) {
    // Away from integers, where the derivative is not defined; then some special positions.
    double value = std::floor(normal(random)) + fraction(random);
    if (wild_offsets && i % 11 == 3) value = std::numeric_limits<double>::quiet_NaN();
    if (wild_offsets && i % 13 == 5) value = std::numeric_limits<double>::infinity();
    if (wild_offsets && i % 17 == 7) value = -3e4;
    if (wild_offsets && i % 5 == 1) value = std::round(value);
    tensors.offset.push_back(static_cast<T>(value));
    tensors.float_offset.push_back(static_cast<float>(value));
  }
  return tensors;
}

template <typename T>
ScalarKind kind() {
  if (std::is_same_v<T, float>) return ScalarKind::kFloat32;
  return std::is_same_v<T, double> ? ScalarKind::kFloat64 : ScalarKind::kFloat16;
}

template <typename T>
InterFrameAttentionBackward make_call(const Options& options, const Tensors<T>& tensors) {
  InterFrameAttentionBackward call{};
  call.batch = options.batch;
  call.channels = options.channels;
  call.frames = options.frames;
  call.memory_frames = options.memory_frames;
  call.height = options.height;
  call.width = options.width;
  call.kernel_size = options.kernel_size;
  call.dilation = options.dilation;
  call.groups = options.groups;
  call.frame_shift = options.frame_shift;
  call.scale = 1.5 * options.groups / options.channels;
  call.clamp = options.clamp;
  call.softmax = options.softmax;
  call.residual = options.residual;
  call.features = kind<T>();
  call.offsets = options.float_offset ? ScalarKind::kFloat32 : kind<T>();
  const int64_t pixel = options.channels + options.padding;
  call.query = tensors.query.data();
  call.query_strides = dense_strides(pixel, options.frames, options.height, options.width);
  call.memory = tensors.memory.data();
  call.memory_strides = dense_strides(pixel, options.memory_frames, options.height, options.width);
  call.grad_output = tensors.grad.data();
  call.grad_output_strides = call.query_strides;
  call.offset =
      options.float_offset ? static_cast<const void*>(tensors.float_offset.data()) : tensors.offset.data();
  const int64_t taps = 2 * options.kernel_size * options.kernel_size;
  const PixelStrides at = dense_strides(taps, options.frames, options.height, options.width);
  call.offset_strides = {at.batch, 1, at.frame, at.row, at.column};
  return call;
}

// The equations, one pixel and one tap at a time, in float64. Returns (N, T, H, W, C).
template <typename T>
std::vector<double> slow_forward(const Options& o, const Tensors<T>& tensors) {
  const int64_t pixel = o.channels + o.padding, k = o.kernel_size, taps = k * k,
                group_size = o.channels / o.groups;
  const double scale = 1.5 * o.groups / o.channels;
  std::vector<double> output;
  for (int64_t n = 0; n < o.batch; ++n)
    for (int64_t t = 0; t < o.frames; ++t)
      for (int64_t y = 0; y < o.height; ++y)
        for (int64_t x = 0; x < o.width; ++x) {
          const int64_t here = ((n * o.frames + t) * o.height + y) * o.width + x;
          int64_t m = t + o.frame_shift;
          bool has_frame = m >= 0 && m < o.memory_frames;
          if (!has_frame && o.clamp) {
            m = m < 0 ? 0 : o.memory_frames - 1;
            has_frame = true;
          }
          std::vector<std::vector<double>> samples(taps, std::vector<double>(o.channels, 0.0));
          for (int64_t p = 0; p < taps && has_frame; ++p) {
            const int64_t index = here * 2 * taps + 2 * p;
            const double dy = o.float_offset ? static_cast<double>(tensors.float_offset[index])
                                             : static_cast<double>(tensors.offset[index]);
            const double dx = o.float_offset ? static_cast<double>(tensors.float_offset[index + 1])
                                             : static_cast<double>(tensors.offset[index + 1]);
            const double py = y + (p / k - (k - 1) / 2) * o.dilation + dy;
            const double px = x + (p % k - (k - 1) / 2) * o.dilation + dx;
            if (!(py > -1 && py < o.height && px > -1 && px < o.width)) continue;
            for (int64_t cy = 0; cy < o.height; ++cy)
              for (int64_t cx = 0; cx < o.width; ++cx) {
                const double weight =
                    std::max(0.0, 1 - std::abs(py - cy)) * std::max(0.0, 1 - std::abs(px - cx));
                if (weight == 0) continue;
                const int64_t there = ((n * o.memory_frames + m) * o.height + cy) * o.width + cx;
                for (int64_t c = 0; c < o.channels; ++c) {
                  samples[p][c] += weight * static_cast<double>(tensors.memory[there * pixel + c]);
                }
              }
          }
          for (int64_t g = 0; g < o.groups; ++g) {
            std::vector<double> weights(taps);
            double total = 0;
            for (int64_t p = 0; p < taps; ++p) {
              for (int64_t c = g * group_size; c < (g + 1) * group_size; ++c) {
                weights[p] += scale * samples[p][c] * static_cast<double>(tensors.query[here * pixel + c]);
              }
              total += std::exp(weights[p]);
            }
            for (int64_t c = g * group_size; c < (g + 1) * group_size; ++c) {
              double value = o.residual ? static_cast<double>(tensors.query[here * pixel + c]) : 0.0;
              for (int64_t p = 0; p < taps; ++p) {
                value += (o.softmax ? std::exp(weights[p]) / total : weights[p]) * samples[p][c];
              }
              output.push_back(value);
            }
          }
        }
  return output;
}

unsigned int grid_of(const Options& options, int64_t items, int64_t per_block) {
  return options.whole_blocks ? static_cast<unsigned int>((items + per_block - 1) / per_block) : 1;
}

// As the launcher does, or all in one block.
void launch(const Options& options, const cuda::Layout& layout, bool backwards,
            const std::function<void()>& kernel) {
  emulation::launch(options.whole_blocks ? static_cast<unsigned int>(layout.blocks) : 1, layout.threads,
                    layout.shared_bytes, backwards, kernel);
}

template <typename T, int V, int Size = 0>
std::vector<T> run_forward(const Options& options, InterFrameAttentionBackward call, bool backwards) {
  const int64_t units = call.batch * call.frames * call.height * call.width * call.groups;
  std::vector<T> output(units / call.groups * call.channels,
                        static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
  call.output = output.data();
  EXPECT_TRUE(V == 1 || cuda::allows_packs(call, V));
  using Real = Accumulator<T>;
  const int channels = cuda::attend_channels<T, V>(call);
  const cuda::Layout layout = cuda::layout_for<T, V, cuda::Tap<Real, V>>(call, channels);
  EXPECT_TRUE(Size == 0 || Size == layout.team);
  const cuda::Plan<T, V> plan(call);
  launch(options, layout, backwards, [&] {
    channels == cuda::kFewChannels ? cuda::attend<T, V, cuda::kFewChannels, Size>(call, plan, layout)
                                   : cuda::attend<T, V, cuda::kManyChannels<T, V>, Size>(call, plan, layout);
  });
  return output;
}

template <typename T, int V, int Size = 0>
std::vector<T> run_forward(const Options& options, const Tensors<T>& tensors, bool backwards) {
  return run_forward<T, V, Size>(options, make_call(options, tensors), backwards);
}

template <typename T>
struct Gradients {
  std::vector<T> query;
  std::vector<T> memory;
  std::vector<Accumulator<T>> memory_in_order;
  std::vector<double> offset;
};

template <typename T, int V, int Size = 0>
Gradients<T> run_backward(const Options& options, InterFrameAttentionBackward call, bool backwards) {
  using Real = Accumulator<T>;
  const int64_t pixels = call.batch * call.frames * call.height * call.width, units = pixels * call.groups;
  const int64_t taps = call.kernel_size * call.kernel_size;
  const int64_t memory_pixels = call.batch * call.memory_frames * call.height * call.width;
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  Gradients<T> gradients;
  gradients.query.assign(pixels * call.channels, static_cast<T>(nan));
  gradients.memory.assign(memory_pixels * call.channels, static_cast<T>(nan));
  gradients.memory_in_order.assign(memory_pixels * call.channels, 0);
  std::vector<float> float_offset(pixels * 2 * taps, std::numeric_limits<float>::quiet_NaN());
  std::vector<T> offset(pixels * 2 * taps, static_cast<T>(nan));
  std::vector<Contribution<Real, V>> contributions(units * taps, {nan, nan, nan, nan, 0, 0, 0});
  std::vector<cuda::Index<V>> heads(cuda::num_cells(call), cuda::kNone<V>);
  std::vector<cuda::OffsetGradient<Real>> group_gradients(units * taps, {nan, nan});
  call.grad_query = gradients.query.data();
  call.grad_memory = gradients.memory.data();
  call.grad_offset = options.float_offset ? static_cast<void*>(float_offset.data()) : offset.data();
  EXPECT_TRUE(V == 1 || cuda::allows_packs(call, V));

  const cuda::Plan<T, V> plan(call, call.grad_output_strides);
  const cuda::Layout layout =
      cuda::layout_for<T, V, cuda::TapSlopes<Real, V>>(call, cuda::kManyChannels<T, V>);
  EXPECT_TRUE(Size == 0 || Size == layout.team);
  launch(options, layout, backwards, [&] {
    cuda::differentiate<T, V, Size>(call, plan, layout, contributions.data(), heads.data(),
                                    group_gradients.data());
  });
  if (call.groups > 1) {
    emulation::launch(grid_of(options, pixels * taps, cuda::kBlock), cuda::kBlock, 0, backwards, [&] {
      options.float_offset ? cuda::sum_groups<Real, float>(call, group_gradients.data())
                           : cuda::sum_groups<Real, T>(call, group_gradients.data());
    });
  }
  if (options.float_offset) {
    gradients.offset.assign(float_offset.begin(), float_offset.end());
  } else {
    gradients.offset.assign(offset.begin(), offset.end());
  }
  const cuda::GatherLayout<T, V> gathering(call);
  const cuda::Walk<cuda::Index<V>> walk(call.batch, call.memory_frames, call.height, call.width, call.groups);
  const cuda::Divisor<cuda::Index<V>> slabs(gathering.slabs_per_unit);
  emulation::launch(options.whole_blocks ? static_cast<unsigned int>(gathering.blocks) : 1, gathering.threads,
                    gathering.shared_bytes, backwards, [&] {
                      cuda::gather<T, V>(call, plan, walk, slabs, gathering.slabs, gathering.team,
                                         contributions.data(), heads.data());
                    });
  emulation::launch(grid_of(options, memory_pixels / call.width * call.channels, cuda::kBlock), cuda::kBlock,
                    0, backwards, [&] {
                      cuda::gather_in_order<T, V>(call, plan, contributions.data(),
                                                  gradients.memory_in_order.data());
                    });
  return gradients;
}

template <typename T, int V, int Size = 0>
Gradients<T> run_backward(const Options& options, const Tensors<T>& tensors, bool backwards) {
  return run_backward<T, V, Size>(options, make_call(options, tensors), backwards);
}

template <typename T>
void expect_close(const std::vector<T>& given, const std::vector<double>& expected, double tolerance,
                  const std::string& what) {
  ASSERT_EQ(given.size(), expected.size()) << what;
  for (size_t i = 0; i < given.size(); ++i) {
    const double difference = std::abs(static_cast<double>(given[i]) - expected[i]);
    ASSERT_TRUE(difference <= tolerance * (1 + std::abs(expected[i])))  // false for NaN
        << what << " at " << i << ": " << static_cast<double>(given[i]) << ", expected " << expected[i];
  }
}

template <typename T>
constexpr double kTolerance = std::is_same_v<T, double>  ? 1e-12
                              : std::is_same_v<T, float> ? 1e-5
                                                         : 2e-3;

template <typename T, int V, int Size = 0>
void check_forward(const Options& options) {
  const Tensors<T> tensors = random_tensors<T>(options, true, 1);
  const std::vector<double> expected = slow_forward(options, tensors);
  const std::vector<T> output = run_forward<T, V, Size>(options, tensors, false);
  expect_close(output, expected, kTolerance<T>, options.name);
  const std::vector<T> again = run_forward<T, V, Size>(options, tensors, true);
  ASSERT_EQ(std::memcmp(again.data(), output.data(), output.size() * sizeof(T)), 0)
      << options.name << ": the result depends on which thread runs first";
}

std::vector<Options> sizes_and_options() {
  std::vector<Options> all;
  all.push_back({"defaults"});
  all.push_back({"one tap", 1, 16, 2, 2, 3, 4, 1});
  all.push_back({"25 taps", 1, 16, 2, 2, 3, 4, 5});
  all.push_back({"81 taps, dilated", 1, 8, 1, 1, 4, 3, 9, 2});
  all.push_back({"one pixel", 1, 8, 1, 1, 1, 1});
  all.push_back({"groups", 1, 48, 2, 2, 3, 4, 3, 1, 2});
  all.push_back({"many small groups", 2, 64, 1, 1, 3, 5, 3, 1, 8});
  all.push_back({"24 channels: idle lanes", 1, 24, 2, 2, 2, 3});
  all.push_back({"256 channels: a full warp", 1, 256, 1, 1, 2, 2});
  all.push_back({"264 channels: two warps", 1, 264, 2, 2, 2, 3});
  all.push_back({"two warps per group", 1, 640, 1, 1, 2, 3, 3, 1, 2});
  all.push_back({"five warps of a team of eight", 1, 1200, 1, 1, 2, 2});
  Options options{"causal, skipped edge"};
  options.frame_shift = -1;
  options.clamp = false;
  options.frames = options.memory_frames = 3;
  all.push_back(options);
  options.name = "no frame at all";
  options.memory_frames = 0;
  all.push_back(options);
  options = {"streaming"};
  options.frames = 1;
  options.frame_shift = 0;
  options.residual = false;
  all.push_back(options);
  options = {"padded pixels, offsets of the features' type"};
  options.padding = 8;
  options.float_offset = false;
  all.push_back(options);
  const size_t count = all.size();
  for (size_t i = 0; i < count; ++i) {
    options = all[i];
    options.name += ", softmax";
    options.softmax = true;
    options.whole_blocks = true;
    all.push_back(options);
  }
  return all;
}

template <typename T>
void check_forward_everywhere() {
  constexpr int kPack = 16 / sizeof(T);
  for (const Options& options : sizes_and_options()) {
    check_forward<T, kPack>(options);
    check_forward<T, 1>(options);
  }
  for (const int64_t channels : {1, 2, 7, 33, 301}) {
    Options options{"odd channels"};
    options.batch = 1;
    options.channels = channels;
    options.padding = 1;
    check_forward<T, 1>(options);
  }
}

TEST(CudaKernels, ForwardFloat32) { check_forward_everywhere<float>(); }
TEST(CudaKernels, ForwardFloat64) { check_forward_everywhere<double>(); }
TEST(CudaKernels, ForwardFloat16) { check_forward_everywhere<_Float16>(); }

TEST(CudaKernels, LargestTeam) {
  Options options{"4096 channels", 1, 4096, 1, 1, 1, 2};
  check_forward<float, 4>(options);
  EXPECT_EQ(cuda::team_for(make_call(options, random_tensors<float>(options, false, 1)),
                           (cuda::kManyChannels<double, 2>)),
            cuda::kMaxThreads);
}

// A corner outside the frame counts as 0, beside an infinite feature too.
TEST(CudaKernels, DoNotReadInfinityOutside) {
  Options options{"infinite", 1, 4, 1, 1, 1, 1, 1};
  options.frame_shift = 0;
  Tensors<float> tensors = random_tensors<float>(options, false, 1);
  tensors.query = {1, 1, 1, 1};
  tensors.memory = {std::numeric_limits<float>::infinity(), 1, 1, 1};
  tensors.grad = {1, 1, 1, 1};
  tensors.float_offset = {0.5f, -0.5f};
  for (const float value : run_forward<float, 4>(options, tensors, false)) {
    EXPECT_EQ(value, std::numeric_limits<float>::infinity());
  }
  const Gradients<float> gradients = run_backward<float, 4>(options, tensors, false);
  for (const auto* values : {&gradients.query, &gradients.memory, &gradients.memory_in_order}) {
    for (const float value : *values) EXPECT_EQ(value, std::numeric_limits<float>::infinity());
  }
}

TEST(CudaKernels, PacksNeedAlignment) {
  Options options{"misaligned"};
  const Tensors<float> tensors = random_tensors<float>(options, false, 1);
  InterFrameAttentionBackward call = make_call(options, tensors);
  EXPECT_TRUE(cuda::allows_packs(call, 4));
  call.grad_output = tensors.grad.data() + 1;
  EXPECT_FALSE(cuda::allows_packs(call, 4));
  call = make_call(options, tensors);
  call.memory_strides.row += 1;
  EXPECT_FALSE(cuda::allows_packs(call, 4));
  call = make_call(options, tensors);
  call.groups = 8;
  EXPECT_FALSE(cuda::allows_packs(call, 4));
}

// The gradient of sum(grad * output), by central differences, of `values` (one of the vectors of `tensors`).
template <typename Value>
std::vector<double> differences(const Options& options, Tensors<double>& tensors, std::vector<Value>& values,
                                double step) {
  const auto loss = [&] {
    const std::vector<double> output = slow_forward(options, tensors);
    double sum = 0;
    for (size_t i = 0; i < output.size(); ++i) sum += output[i] * tensors.grad[i];
    return sum;
  };
  std::vector<double> result;
  for (Value& value : values) {
    const Value kept = value;
    value = static_cast<Value>(kept + step);
    const double high = loss(), upper = value;
    value = static_cast<Value>(kept - step);
    const double low = loss(), lower = value;
    value = kept;
    // A position that is not finite, or too far away to be moved, has no neighbours to compare.
    result.push_back(upper > lower ? (high - low) / (upper - lower) : 0);
  }
  return result;
}

template <int V>
void check_backward(const Options& options) {
  Tensors<double> tensors = random_tensors<double>(options, false, 2);
  for (size_t i = 3; i < tensors.offset.size(); i += 11) {
    tensors.offset[i] =
        i % 2 ? std::numeric_limits<double>::quiet_NaN() : -1e30;  // dropped taps have gradient 0
    tensors.float_offset[i] = static_cast<float>(tensors.offset[i]);
  }
  const std::vector<double> query = differences(options, tensors, tensors.query, 1e-4);
  const std::vector<double> memory = differences(options, tensors, tensors.memory, 1e-4);
  const std::vector<double> offset = options.float_offset
                                         ? differences(options, tensors, tensors.float_offset, 1e-3)
                                         : differences(options, tensors, tensors.offset, 1e-4);
  for (const bool backwards : {false, true}) {
    const Gradients<double> gradients = run_backward<double, V>(options, tensors, backwards);
    expect_close(gradients.query, query, 1e-6, options.name + ": grad_query");
    expect_close(gradients.memory, memory, 1e-6, options.name + ": grad_memory");
    expect_close(gradients.memory_in_order, memory, 1e-6, options.name + ": grad_memory in order");
    expect_close(gradients.offset, offset, 1e-4, options.name + ": grad_offset");
  }
}

std::vector<Options> small_options() {
  std::vector<Options> all;
  all.push_back({"defaults", 1, 8, 2, 2, 3, 2});
  all.push_back({"groups", 1, 20, 1, 1, 2, 3, 3, 1, 2});
  all.push_back({"25 taps, dilated", 1, 4, 1, 1, 3, 3, 5, 2});
  all.push_back({"one pixel", 1, 6, 2, 2, 1, 1});
  all.push_back({"two warps", 1, 260, 1, 1, 2, 1, 1});
  Options options{"causal, skipped edge, no residual", 1, 6, 2, 3, 2, 3, 3, 1, 1, -1};
  options.clamp = false;
  options.residual = false;
  all.push_back(options);
  options = {"offsets of the features' type", 2, 6, 1, 2, 2, 2};
  options.float_offset = false;
  all.push_back(options);
  const size_t count = all.size();
  for (size_t i = 0; i < count; ++i) {
    options = all[i];
    options.name += ", softmax";
    options.softmax = true;
    options.whole_blocks = true;
    all.push_back(options);
  }
  return all;
}

TEST(CudaKernels, BackwardInPacks) {
  for (const Options& options : small_options()) check_backward<2>(options);
}

TEST(CudaKernels, BackwardByElement) {
  for (const Options& options : small_options()) check_backward<1>(options);
  check_backward<1>({"odd channels", 1, 7, 1, 1, 2, 2});
}

// float32 and half kernels are the same source: the gradients of equal inputs agree with float64's.
template <typename T, int V>
void check_backward_against_float64(double tolerance) {
  for (const bool softmax : {false, true}) {
    Options options{"against float64", 1, 48, 2, 2, 3, 3, 3, 1, 2};
    options.softmax = softmax;
    options.padding = 8;
    const Tensors<T> tensors = random_tensors<T>(options, true, 3);
    Tensors<double> wide;
    wide.query.assign(tensors.query.begin(), tensors.query.end());
    wide.memory.assign(tensors.memory.begin(), tensors.memory.end());
    wide.grad.assign(tensors.grad.begin(), tensors.grad.end());
    wide.float_offset = tensors.float_offset;
    const Gradients<double> expected = run_backward<double, 2>(options, wide, false);
    const Gradients<T> gradients = run_backward<T, V>(options, tensors, false);
    expect_close(gradients.query, expected.query, tolerance, "grad_query");
    expect_close(gradients.memory, expected.memory, tolerance, "grad_memory");
    expect_close(gradients.memory_in_order, expected.memory, 1e-4, "grad_memory in order");
    expect_close(gradients.offset, expected.offset, 1e-4, "grad_offset");
  }
}

TEST(CudaKernels, BackwardFloat32) { check_backward_against_float64<float, 4>(1e-4); }
TEST(CudaKernels, BackwardFloat16) { check_backward_against_float64<_Float16, 8>(2e-3); }

TEST(CudaKernels, AddressesOfMoreThan31Bits) {
  Options options{"far apart", 2, 8, 2, 2, 3, 4};
  const Tensors<float> tensors = random_tensors<float>(options, true, 5);
  const int64_t row = options.width * options.channels, taps = 2 * options.kernel_size * options.kernel_size;
  const FarApart<float> query(tensors.query, row), memory(tensors.memory, row), grad(tensors.grad, row),
      offset(tensors.float_offset, options.width * taps);
  if (!query.exists() || !memory.exists() || !grad.exists() || !offset.exists()) {
    GTEST_SKIP() << "needs 192 GiB of address space";
  }
  InterFrameAttentionBackward call = make_call(options, tensors);
  call.query = query.data();
  call.memory = memory.data();
  call.grad_output = grad.data();
  call.offset = offset.data();
  const PixelStrides strides = FarApart<float>::strides(options.channels, options.frames, options.height);
  call.query_strides = call.memory_strides = call.grad_output_strides = strides;
  call.offset_strides = {strides.batch, 1, strides.frame, strides.row, taps};
  EXPECT_FALSE(cuda::allows_packs(call, 4));  // they are counted in 31 bits
  EXPECT_EQ((run_forward<float, 1>(options, call, false)), (run_forward<float, 1>(options, tensors, false)));
  const Gradients<float> far = run_backward<float, 1>(options, call, false),
                         near = run_backward<float, 1>(options, tensors, false);
  EXPECT_EQ(far.query, near.query);
  EXPECT_EQ(far.memory, near.memory);
  EXPECT_EQ(far.memory_in_order, near.memory_in_order);
  EXPECT_EQ(far.offset, near.offset);
}

TEST(CudaKernels, WalkVisitsEveryUnitOnce) {
  for (const int64_t width : {1, 7, 8, 9, 28}) {
    const int64_t batch = 2, frames = 3, height = 5, groups = 3;
    const cuda::Walk<unsigned int> walk(batch, frames, height, width, groups);
    ASSERT_EQ(walk.units, batch * frames * height * width * groups);
    std::vector<bool> visited(walk.units);
    for (int64_t place = 0; place < walk.units; ++place) {
      const cuda::Unit<unsigned int> unit = walk.unit_at(static_cast<unsigned int>(place));
      EXPECT_EQ(unit.index,
                (((unit.batch * frames + unit.t) * height + unit.y) * width + unit.x) * groups + unit.group);
      EXPECT_TRUE(unit.x < width && unit.y < height && unit.t < frames && unit.group < groups);
      ASSERT_LT(unit.index, walk.units);
      EXPECT_FALSE(visited[unit.index]);
      visited[unit.index] = true;
    }
  }
}

// Of a tensor that is dense, and hence large.
TEST(CudaKernels, UnitsBeyond31Bits) {
  const int64_t height = 1 << 14, width = 1 << 15, frame = 4 * 7 + 6, y = 16381, x = 32765;
  const cuda::Walk<unsigned long long> walk(5, 7, height, width, 3);
  const int64_t place =
      frame * height * width + x / cuda::kStrip * cuda::kStrip * height + y * cuda::kStrip + x % cuda::kStrip;
  const cuda::Unit<unsigned long long> unit = walk.unit_at(place * 3 + 2);
  EXPECT_EQ(std::vector<unsigned long long>({unit.batch, unit.t, unit.y, unit.x, unit.group, unit.index}),
            std::vector<unsigned long long>({4, 6, y, x, 2, ((frame * height + y) * width + x) * 3 + 2}));
}

template <typename Index>
void check_divisors(const std::vector<int64_t>& numbers) {
  for (const int64_t divisor : numbers) {
    if (divisor == 0) continue;
    const cuda::Divisor<Index> by(divisor);
    for (const int64_t number : numbers) {
      Index quotient = static_cast<Index>(number);
      EXPECT_EQ(by.split(quotient), static_cast<Index>(number % divisor)) << number << " / " << divisor;
      EXPECT_EQ(quotient, static_cast<Index>(number / divisor)) << number << " / " << divisor;
    }
  }
}

TEST(CudaKernels, Divisors) {
  std::vector<int64_t> numbers = {0,   1,   2,   3,     6,     7,       8,          9,
                                  640, 641, 784, 65535, 65536, 1 << 30, 0x7ffffffe, 0x7fffffff};
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) numbers.push_back(random() >> (1 + i % 31));
  check_divisors<unsigned int>(numbers);
  numbers.insert(numbers.end(), {int64_t(1) << 31, int64_t(1) << 40, (int64_t(1) << 45) - 1});
  check_divisors<unsigned long long>(numbers);
}

// Kernels that know the size of their teams.
template <int Size>
void check_team(int64_t channels) {
  Options options{"a team of " + std::to_string(Size), 1, channels, 2, 2, 3, 9};
  check_forward<float, 4, Size>(options);
  if (channels <= cuda::kSmallGroup) return;  // then the backward's teams are smaller
  const Tensors<float> tensors = random_tensors<float>(options, true, 4);
  const Gradients<float> expected = run_backward<float, 4>(options, tensors, false);
  const Gradients<float> gradients = run_backward<float, 4, Size>(options, tensors, false);
  EXPECT_EQ(gradients.query, expected.query);
  EXPECT_EQ(gradients.memory, expected.memory);
  EXPECT_EQ(gradients.offset, expected.offset);
}

TEST(CudaKernels, TeamsOfKnownSize) {
  check_team<8>(64);
  check_team<8>(96);
  check_team<16>(256);
  check_team<32>(512);
}

// More contributions to one pixel than a team takes up at a time.
TEST(CudaKernels, AllTapsInOneCell) {
  Options options{"one cell", 1, 8, 1, 1, 3, 8};
  Tensors<double> tensors = random_tensors<double>(options, false, 6);
  for (int64_t y = 0, i = 0; y < options.height; ++y) {
    for (int64_t x = 0; x < options.width; ++x) {
      for (int64_t p = 0; p < 9; ++p) {
        tensors.float_offset[i++] = static_cast<float>(1.25 - static_cast<double>(y + p / 3 - 1));
        tensors.float_offset[i++] = static_cast<float>(2.5 - static_cast<double>(x + p % 3 - 1));
      }
    }
  }
  const Gradients<double> gradients = run_backward<double, 2>(options, tensors, false);
  const std::vector<double> expected(gradients.memory_in_order.begin(), gradients.memory_in_order.end());
  expect_close(gradients.memory, expected, 1e-12, options.name);
  EXPECT_NE(gradients.memory[(1 * options.width + 2) * options.channels], 0);
}

}  // namespace
