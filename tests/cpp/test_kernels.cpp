// Compares the CPU kernels, for every instruction set of this processor, with the equations (design section
// 3) written as a plain loop in double precision: random calls with random layouts, and offsets that are
// partly not finite or far outside. SIFA_TEST_ALL=1 in the environment tries ten times as many.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernel_tensors.h"
#include "kernels.h"
#include "scratch.h"

namespace {

using namespace sifa;

// --- The equations ---------------------------------------------------------------------------------------

// Sums and gradients in double; dense, (N, frames, H, W, channels).
struct Expected {
  std::vector<double> output, grad_query, grad_memory, grad_offset;
};

struct Case {
  InterFrameAttentionBackward call{};
  std::unique_ptr<Tensor> query, memory, offset, grad_output;
  std::string description;

  int64_t taps() const { return call.kernel_size * call.kernel_size; }
};

// One corner of a bilinear sample: where it is, its weight, and the weight's derivatives along y and x.
struct Corner {
  int64_t y, x;
  double weight, dy, dx;
};

std::vector<Corner> corners_of(const Case& c, double y, double x) {
  std::vector<Corner> corners;
  if (!(y > -1 && y < c.call.height && x > -1 && x < c.call.width)) return corners;
  const double top = std::floor(y), left = std::floor(x);
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const double row = top + i, column = left + j;
      if (row < 0 || row >= c.call.height || column < 0 || column >= c.call.width) continue;
      const double along_y = i ? y - top : 1 - (y - top), along_x = j ? x - left : 1 - (x - left);
      corners.push_back({static_cast<int64_t>(row), static_cast<int64_t>(column), along_y * along_x,
                         (i ? 1 : -1) * along_x, (j ? 1 : -1) * along_y});
    }
  }
  return corners;
}

Expected evaluate(const Case& c) {
  const auto& call = c.call;
  const int64_t taps = c.taps(), channels = call.channels / call.groups, radius = (call.kernel_size - 1) / 2;
  // The kernels add the offset in the type they accumulate in.
  const auto position = [&](int64_t integer, double delta) {
    return call.features == ScalarKind::kFloat64
               ? integer + delta
               : static_cast<double>(static_cast<float>(integer) + static_cast<float>(delta));
  };
  Expected e;
  const int64_t pixels = call.batch * call.frames * call.height * call.width;
  e.output.assign(pixels * call.channels, 0);
  e.grad_query.assign(pixels * call.channels, 0);
  e.grad_memory.assign(call.batch * call.memory_frames * call.height * call.width * call.channels, 0);
  e.grad_offset.assign(pixels * 2 * taps, 0);

  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t x = pixel % call.width, y = pixel / call.width % call.height;
    const int64_t t = pixel / (call.width * call.height) % call.frames,
                  n = pixel / (call.width * call.height * call.frames);
    const auto query = [&](int64_t channel) { return c.query->at(n, t, y, x, channel); };
    const auto grad = [&](int64_t channel) { return c.grad_output->at(n, t, y, x, channel); };
    for (int64_t channel = 0; channel < call.channels && call.residual; ++channel) {
      e.output[pixel * call.channels + channel] = query(channel);
      e.grad_query[pixel * call.channels + channel] = grad(channel);
    }
    int64_t m = t + call.frame_shift;
    if (call.clamp) m = std::clamp<int64_t>(m, 0, call.memory_frames - 1);
    if (m < 0 || m >= call.memory_frames) continue;

    std::vector<std::vector<Corner>> corners(taps);
    for (int64_t p = 0; p < taps; ++p) {
      const int64_t i = p / call.kernel_size, j = p % call.kernel_size;
      corners[p] =
          corners_of(c, position(y + (i - radius) * call.dilation, c.offset->at(n, t, y, x, 2 * p)),
                     position(x + (j - radius) * call.dilation, c.offset->at(n, t, y, x, 2 * p + 1)));
    }
    for (int64_t group = 0; group < call.groups; ++group) {
      std::vector<std::vector<double>> samples(taps, std::vector<double>(channels, 0));
      std::vector<double> weights(taps, 0), grad_weights(taps, 0), grad_logits(taps, 0);
      for (int64_t p = 0; p < taps; ++p) {
        for (int64_t k = 0; k < channels; ++k) {
          for (const Corner& corner : corners[p]) {
            samples[p][k] += corner.weight * c.memory->at(n, m, corner.y, corner.x, group * channels + k);
          }
          weights[p] += call.scale * query(group * channels + k) * samples[p][k];
          grad_weights[p] += grad(group * channels + k) * samples[p][k];
        }
      }
      if (call.softmax) {
        const double largest = *std::max_element(weights.begin(), weights.end());
        double total = 0, mean = 0;
        for (double& weight : weights) total += weight = std::exp(weight - largest);
        for (double& weight : weights) weight /= total;
        for (int64_t p = 0; p < taps; ++p) mean += weights[p] * grad_weights[p];
        for (int64_t p = 0; p < taps; ++p)
          grad_logits[p] = call.scale * weights[p] * (grad_weights[p] - mean);
      } else {
        for (int64_t p = 0; p < taps; ++p) grad_logits[p] = call.scale * grad_weights[p];
      }
      for (int64_t p = 0; p < taps; ++p) {
        for (int64_t k = 0; k < channels; ++k) {
          const int64_t channel = group * channels + k;
          e.output[pixel * call.channels + channel] += weights[p] * samples[p][k];
          e.grad_query[pixel * call.channels + channel] += grad_logits[p] * samples[p][k];
          const double grad_sample = weights[p] * grad(channel) + grad_logits[p] * query(channel);
          for (const Corner& corner : corners[p]) {
            const double value = c.memory->at(n, m, corner.y, corner.x, channel);
            const int64_t target =
                ((n * call.memory_frames + m) * call.height + corner.y) * call.width + corner.x;
            e.grad_memory[target * call.channels + channel] += corner.weight * grad_sample;
            e.grad_offset[(pixel * taps + p) * 2] += grad_sample * corner.dy * value;
            e.grad_offset[(pixel * taps + p) * 2 + 1] += grad_sample * corner.dx * value;
          }
        }
      }
    }
  }
  return e;
}

// --- Random calls ----------------------------------------------------------------------------------------

Case random_case(uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](std::vector<int64_t> values) {
    return values[std::uniform_int_distribution<size_t>(0, values.size() - 1)(random)];
  };
  Case c;
  auto& call = c.call;
  call.features = static_cast<ScalarKind>(pick({0, 1, 2, 3}));
  call.offsets = pick({0, 1}) ? ScalarKind::kFloat32 : call.features;
  call.kernel_size = pick({1, 3, 3, 3, 5, 9});
  call.dilation = pick({1, 1, 2, 3});
  call.groups = pick({1, 1, 2, 3});
  // Fewer, as many and more channels than a vector of any instruction set has, and what is left beside a
  // multiple.
  call.channels = call.groups * pick({1, 2, 3, 4, 7, 8, 12, 16, 19, 33, 64, 71});
  call.batch = pick({0, 1, 2, 2});
  call.frames = pick({1, 2, 3});
  call.memory_frames = pick({1, 2, 3});
  // The last are larger than the window that the CPU kernels list a pixel's corners in.
  call.height = pick({1, 2, 4, 5, 13});
  call.width = pick({1, 3, 4, 17});
  call.clamp = pick({0, 1});
  if (!call.clamp && pick({0, 0, 0, 0, 1})) call.memory_frames = 0;
  call.frame_shift = std::clamp(pick({-2, -1, 0, 1, 1, 3}), -call.frames, call.memory_frames);
  call.scale = pick({0, 1}) ? static_cast<double>(call.groups) / call.channels : -0.3;
  call.softmax = pick({0, 1});
  call.residual = pick({0, 1});

  std::normal_distribution<double> normal;
  const auto value = [&] { return normal(random); };
  c.query = std::make_unique<Tensor>(call.features, call.batch, call.frames, call.height, call.width,
                                     call.channels, pick({0, 3}));
  c.memory = std::make_unique<Tensor>(call.features, call.batch, call.memory_frames, call.height, call.width,
                                      call.channels, pick({0, 5}));
  c.grad_output = std::make_unique<Tensor>(call.features, call.batch, call.frames, call.height, call.width,
                                           call.channels, pick({0, 1}));
  c.offset =
      std::make_unique<Tensor>(call.offsets, call.batch, call.frames, call.height, call.width, 2 * c.taps());
  switch (pick({0, 1, 2})) {
    case 1:
      c.offset->arrange_in_planes();
      break;
    case 2:
      c.offset->arrange_by_frames();
      break;
  }
  c.query->fill(value);
  c.memory->fill(value);
  c.grad_output->fill(value);
  const double sigma = pick({0, 1, 3, 9}) * 0.7;
  const double infinity = std::numeric_limits<double>::infinity();
  const double strange[] = {infinity, -infinity, std::nan(""), 6e4, -6e4, 2147483648.0, -1e30, 3e38};
  c.offset->fill([&] {
    const int64_t lot = std::uniform_int_distribution<int64_t>(0, 79)(random);
    if (lot < 8) return strange[lot];
    if (lot < 12) return std::round(sigma * normal(random));  // exactly on a pixel, or on the edge
    return sigma * normal(random);
  });

  call.query = c.query->data.get();
  call.query_strides = c.query->strides;
  call.memory = c.memory->data.get();
  call.memory_strides = c.memory->strides;
  call.grad_output = c.grad_output->data.get();
  call.grad_output_strides = c.grad_output->strides;
  call.offset = c.offset->data.get();
  const PixelStrides& strides = c.offset->strides;
  call.offset_strides = {strides.batch, c.offset->channel_stride, strides.frame, strides.row, strides.column};

  std::ostringstream text;
  text << "seed " << seed << ": " << name_of(call.features) << " features, " << name_of(call.offsets)
       << " offsets, " << call.batch << "x" << call.channels << "x" << call.frames << " (memory "
       << call.memory_frames << ") x" << call.height << "x" << call.width << ", kernel " << call.kernel_size
       << ", dilation " << call.dilation << ", groups " << call.groups << ", shift " << call.frame_shift
       << (call.clamp ? ", clamp" : ", skip") << (call.softmax ? ", softmax" : "")
       << (call.residual ? ", residual" : "");
  c.description = text.str();
  return c;
}

// --- Running the kernels ---------------------------------------------------------------------------------

struct Buffers {
  Tensor output, grad_query, grad_memory, grad_offset;

  explicit Buffers(const Case& c)
      : output(c.call.features, c.call.batch, c.call.frames, c.call.height, c.call.width, c.call.channels),
        grad_query(c.call.features, c.call.batch, c.call.frames, c.call.height, c.call.width,
                   c.call.channels),
        grad_memory(c.call.features, c.call.batch, c.call.memory_frames, c.call.height, c.call.width,
                    c.call.channels),
        grad_offset(c.call.offsets, c.call.batch, c.call.frames, c.call.height, c.call.width, 2 * c.taps()) {}
};

// Runs forward and backward, cut into pieces of `size` tiles or rows.
Buffers run(const cpu::Kernels& kernels, const Case& c, int64_t size) {
  Buffers buffers(c);
  InterFrameAttentionBackward call = c.call;
  call.output = buffers.output.data.get();
  call.grad_query = buffers.grad_query.data.get();
  call.grad_memory = buffers.grad_memory.data.get();
  call.grad_offset = buffers.grad_offset.data.get();
  const cpu::Scratch tap_gradients = cpu::allocate(cpu::tap_gradient_bytes(call));
  for (int64_t begin = 0; begin < cpu::tiles(call); begin += size) {
    const int64_t end = std::min(begin + size, cpu::tiles(call));
    const cpu::Scratch scratch = cpu::allocate(cpu::scratch_bytes(call));
    kernels.forward(call, begin, end, scratch.get());
    kernels.backward_query(call, begin, end, tap_gradients.get(), scratch.get());
  }
  for (int64_t frame = 0; frame < call.batch * call.memory_frames; ++frame) {
    for (int64_t begin = 0; begin < call.height; begin += size) {
      const int64_t end = std::min(begin + size, call.height);
      const cpu::Scratch scratch = cpu::allocate(cpu::memory_scratch_bytes(call, end - begin));
      kernels.backward_memory(call, frame / call.memory_frames, frame % call.memory_frames, begin, end,
                              tap_gradients.get(), scratch.get());
    }
  }
  return buffers;
}

class CpuKernels : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = cpu::find_kernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor or this build has no " << GetParam();
  }
  const cpu::Kernels* kernels_ = nullptr;
};

TEST_P(CpuKernels, AgreeWithTheEquations) {
  const uint32_t cases = std::getenv("SIFA_TEST_ALL") != nullptr ? 4000 : 400;
  for (uint32_t seed = 0; seed < cases; ++seed) {
    const Case c = random_case(seed);
    SCOPED_TRACE(c.description);
    const Expected expected = evaluate(c);
    const Buffers actual = run(*kernels_, c, std::numeric_limits<int32_t>::max());
    expect_near(actual.output, expected.output, c.call.features, "output");
    expect_near(actual.grad_query, expected.grad_query, c.call.features, "grad_query");
    expect_near(actual.grad_memory, expected.grad_memory, c.call.features, "grad_memory");
    expect_near(actual.grad_offset, expected.grad_offset, c.call.features, "grad_offset");
    if (HasFatalFailure()) return;
  }
}

// What makes results the same for any number of threads.
TEST_P(CpuKernels, DoNotDependOnTheCut) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const Case c = random_case(seed);
    SCOPED_TRACE(c.description);
    const Buffers whole = run(*kernels_, c, std::numeric_limits<int32_t>::max());
    for (const int64_t size : {1, 2, 3}) {
      const Buffers cut = run(*kernels_, c, size);
      expect_same_bits(whole.output, cut.output, "output");
      expect_same_bits(whole.grad_query, cut.grad_query, "grad_query");
      expect_same_bits(whole.grad_memory, cut.grad_memory, "grad_memory");
      expect_same_bits(whole.grad_offset, cut.grad_offset, "grad_offset");
    }
  }
}

// Every 16-bit pattern survives being loaded and stored: the output of a frame without a neighbour is its
// query. All widths of vectors are taken, because 65536 = 71 * 923 + 3 and the last pixel is filled up with
// the first patterns.
TEST_P(CpuKernels, LoadAndStoreEveryHalf) {
  for (const ScalarKind kind : {ScalarKind::kFloat16, ScalarKind::kBFloat16}) {
    SCOPED_TRACE(name_of(kind));
    Case c;
    auto& call = c.call;
    call.features = call.offsets = kind;
    call.batch = call.frames = call.height = 1;
    call.width = 924;
    call.channels = 71;
    call.kernel_size = call.dilation = call.groups = 1;
    call.residual = true;
    c.query = std::make_unique<Tensor>(kind, 1, 1, 1, call.width, call.channels);
    auto* bits = reinterpret_cast<uint16_t*>(c.query->data.get());
    for (int64_t i = 0; i < call.width * call.channels; ++i) bits[i] = static_cast<uint16_t>(i);
    call.query = bits;
    call.query_strides = c.query->strides;
    Tensor output(kind, 1, 1, 1, call.width, call.channels);
    call.output = output.data.get();
    const cpu::Scratch scratch = cpu::allocate(cpu::scratch_bytes(call));
    kernels_->forward(call, 0, cpu::tiles(call), scratch.get());
    for (int64_t i = 0; i < call.width * call.channels; ++i) {
      const auto result = reinterpret_cast<const uint16_t*>(output.data.get())[i];
      if (std::isnan(c.query->at(0, 0, 0, 0, i))) {
        ASSERT_TRUE(std::isnan(output.at(0, 0, 0, 0, i))) << bits[i];
      } else {
        ASSERT_EQ(result, bits[i]);
      }
    }
  }
}

// Sums are stored to the nearest, ties to even: with softmax the only tap of a pixel has weight 1, so the
// output is query + memory, of 16-bit values whose sums are often half way between two others.
TEST_P(CpuKernels, RoundToNearestEven) {
  for (const ScalarKind kind : {ScalarKind::kFloat16, ScalarKind::kBFloat16}) {
    SCOPED_TRACE(name_of(kind));
    std::mt19937 random(7);
    Case c;
    auto& call = c.call;
    call.features = kind;
    call.offsets = ScalarKind::kFloat32;
    call.batch = call.frames = call.memory_frames = call.height = 1;
    call.width = 300;
    call.channels = 71;
    call.kernel_size = call.dilation = call.groups = 1;
    call.scale = 0;
    call.softmax = call.residual = true;
    c.query = std::make_unique<Tensor>(kind, 1, 1, 1, call.width, call.channels);
    c.memory = std::make_unique<Tensor>(kind, 1, 1, 1, call.width, call.channels);
    c.offset = std::make_unique<Tensor>(ScalarKind::kFloat32, 1, 1, 1, call.width, 2);
    c.offset->fill([] { return 0.0; });
    // Every finite half; bfloat16 up to about 1e18, whose products float32 holds.
    const uint32_t end = kind == ScalarKind::kFloat16 ? 0x7c00 : 0x5d80;
    auto* query = reinterpret_cast<uint16_t*>(c.query->data.get());
    auto* memory = reinterpret_cast<uint16_t*>(c.memory->data.get());
    for (int64_t i = 0; i < call.width * call.channels; ++i) {
      query[i] = static_cast<uint16_t>(random() % end);
      const uint32_t smaller = random() % (end >> 4);  // by a few powers of two
      memory[i] =
          static_cast<uint16_t>((query[i] > smaller ? query[i] - smaller : query[i]) | (random() & 0x8000));
    }
    call.query = query;
    call.query_strides = c.query->strides;
    call.memory = memory;
    call.memory_strides = c.memory->strides;
    call.offset = c.offset->data.get();
    call.offset_strides = {0, 1, 0, 0, 2};
    call.clamp = true;
    Tensor output(kind, 1, 1, 1, call.width, call.channels),
        expected(kind, 1, 1, 1, call.width, call.channels);
    call.output = output.data.get();
    const cpu::Scratch scratch = cpu::allocate(cpu::scratch_bytes(call));
    kernels_->forward(call, 0, cpu::tiles(call), scratch.get());
    for (int64_t i = 0; i < call.width * call.channels; ++i) {
      const double q = c.query->at(0, 0, 0, 0, i), m = c.memory->at(0, 0, 0, 0, i);
      write(expected.data.get(), kind, i, static_cast<float>(q) + static_cast<float>(m));
      ASSERT_EQ(output.at(0, 0, 0, 0, i), expected.at(0, 0, 0, 0, i)) << q << " + " << m;
    }
  }
}

// A corner outside the frame counts as 0, beside an infinite feature too.
TEST_P(CpuKernels, DoNotReadInfinityOutside) {
  InterFrameAttention call{};
  call.batch = call.frames = call.memory_frames = call.height = call.width = 1;
  call.channels = 3;
  call.kernel_size = call.dilation = call.groups = 1;
  call.scale = 1;
  call.clamp = true;
  const float query[3] = {1, 1, 1}, memory[3] = {INFINITY, 1, 1}, offset[2] = {0.5f, -0.5f};
  float output[3];
  call.query = query;
  call.memory = memory;
  call.offset = offset;
  call.offset_strides.channel = 1;
  call.output = output;
  const cpu::Scratch scratch = cpu::allocate(cpu::scratch_bytes(call));
  kernels_->forward(call, 0, cpu::tiles(call), scratch.get());
  for (const float value : output) EXPECT_EQ(value, INFINITY);
}

// One tap, whose logit is far below what the exponential can hold negated: its weight is 1.
TEST_P(CpuKernels, SoftmaxOfAVeryNegativeLogit) {
  InterFrameAttention call{};
  call.batch = call.frames = call.memory_frames = call.height = call.width = call.channels = 1;
  call.kernel_size = call.dilation = call.groups = 1;
  call.scale = 1;
  call.clamp = call.softmax = true;
  const float query = -100, memory = 10, offset[2] = {0, 0};
  float output;
  call.query = &query;
  call.memory = &memory;
  call.offset = offset;
  call.offset_strides.channel = 1;
  call.output = &output;
  const cpu::Scratch scratch = cpu::allocate(cpu::scratch_bytes(call));
  kernels_->forward(call, 0, cpu::tiles(call), scratch.get());
  EXPECT_EQ(output, 10);
}

INSTANTIATE_TEST_SUITE_P(, CpuKernels, testing::Values("default", "avx2", "avx512"),
                         [](const auto& info) { return std::string(info.param); });

TEST(CpuCapability, IsChosenByTheEnvironment) {
  ::setenv("SIFA_CPU_CAPABILITY", "sse9", 1);
  try {
    cpu::kernels();
    FAIL() << "SIFA_CPU_CAPABILITY=sse9 was accepted";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("default, avx2 or avx512"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("sse9"), std::string::npos) << error.what();
  }
  ::setenv("SIFA_CPU_CAPABILITY", "default", 1);
  EXPECT_STREQ(cpu::kernels().capability, "default");
}

// --- The geometry that the CPU and the CUDA kernels share ------------------------------------------------

TEST(Geometry, DropsWhatIsOutsideAndNotFinite) {
  AxisSample<float> sample;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float position :
       {-1.f, 4.f, 4.5f, infinity, -infinity, std::nanf(""), 3e38f, -3e38f, 2147483648.f}) {
    EXPECT_FALSE(locate(position, 4, sample)) << position;
    EXPECT_TRUE(sample.low >= 0 && sample.low < 4 && sample.high >= 0 && sample.high < 4) << position;
  }
}

TEST(Geometry, WeighsTheTwoNeighbours) {
  AxisSample<double> sample;
  ASSERT_TRUE(locate(1.25, 4, sample));
  EXPECT_EQ(sample.low, 1);
  EXPECT_EQ(sample.high, 2);
  EXPECT_EQ(sample.weight_low, 0.75);
  EXPECT_EQ(sample.weight_high, 0.25);
  EXPECT_EQ(sample.slope_low, -1);
  EXPECT_EQ(sample.slope_high, 1);

  ASSERT_TRUE(locate(-0.25, 4, sample));  // the low one is outside
  EXPECT_EQ(sample.low, 0);
  EXPECT_EQ(sample.high, 0);
  EXPECT_EQ(sample.weight_low, 0);
  EXPECT_EQ(sample.weight_high, 0.75);
  EXPECT_EQ(sample.slope_low, 0);

  ASSERT_TRUE(locate(3.25, 4, sample));  // the high one is outside
  EXPECT_EQ(sample.low, 3);
  EXPECT_EQ(sample.high, 3);
  EXPECT_EQ(sample.weight_low, 0.75);
  EXPECT_EQ(sample.weight_high, 0);
  EXPECT_EQ(sample.slope_high, 0);
}

TEST(Geometry, FindsTheNeighbourFrame) {
  InterFrameAttention call{};
  call.frames = 3;
  call.memory_frames = 3;
  call.frame_shift = 1;
  call.clamp = true;
  EXPECT_EQ(neighbour_frame(call, 0), 1);
  EXPECT_EQ(neighbour_frame(call, 2), 2);
  call.clamp = false;
  EXPECT_EQ(neighbour_frame(call, 2), -1);
  call.frame_shift = -1;
  EXPECT_EQ(neighbour_frame(call, 0), -1);
  call.clamp = true;
  EXPECT_EQ(neighbour_frame(call, 0), 0);
}

}  // namespace
