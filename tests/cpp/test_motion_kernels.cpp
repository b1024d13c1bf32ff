// Compares the CPU kernels of motion_saliency, motion_offset and their backward, for every instruction set of
// this processor, with their equations (design section 3) written as a plain loop in double precision: random
// calls with random layouts. SIFA_TEST_ALL=1 in the environment tries ten times as many.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernel_tensors.h"
#include "motion_kernels.h"
#include "scratch.h"

namespace {

using namespace sifa;

// One struct of parameters serves both operators: an offset call is a saliency call and more.
struct Case {
  MotionOffset call{};
  std::unique_ptr<Tensor> query, memory, grad_output, grad_offset,
      weight;  // weight: (outputs, 3, 3, 1, channels)
  std::string description;
};

Case random_case(uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](std::initializer_list<int64_t> values) {
    return *(values.begin() + std::uniform_int_distribution<size_t>(0, values.size() - 1)(random));
  };
  std::normal_distribution<double> normal;
  Case c;
  auto& call = c.call;
  const ScalarKind kinds[] = {ScalarKind::kFloat32, ScalarKind::kFloat64, ScalarKind::kFloat16,
                              ScalarKind::kBFloat16};
  call.features = kinds[seed % 4];
  call.batch = pick({1, 1, 2});
  call.channels = pick({1, 3, 8, 16, 17, 31, 64, 65, 130});
  call.frames = pick({1, 2, 3, 7});
  call.memory_frames = pick({1, 2, 4});
  call.height = pick({1, 2, 3, 7, 8, 20});
  call.width = pick({1, 2, 5, 7, 12, 30});
  // The loop below is slow, and slower under the sanitizers.
  if (call.height * call.width > 100) call.channels = pick({1, 3, 17});
  if (seed % 29 == 7) {  // rows that are cut into pieces
    call.width = 460;
    call.height = call.batch = 1;
    call.channels = 3;
  }
  call.outputs = pick({1, 2, 7, 9, 18, 18, 33});
  call.clamp = pick({0, 1, 1}) != 0;
  if (!call.clamp && seed % 5 == 0) call.memory_frames = 0;
  call.frame_shift = std::clamp<int64_t>(pick({1, 1, -1, 0, 2, -3}), -call.frames, call.memory_frames);
  call.residual = pick({0, 1}) != 0;

  const auto random_clip = [&](int64_t frames, int64_t channels, int64_t padding) {
    auto tensor = std::make_unique<Tensor>(call.features, call.batch, frames, call.height, call.width,
                                           channels, padding);
    tensor->fill([&] { return 2 * normal(random); });
    return tensor;
  };
  c.query = random_clip(call.frames, call.channels, pick({0, 3}));
  c.memory = random_clip(call.memory_frames, call.channels, pick({0, 5}));
  c.grad_output = random_clip(call.frames, call.channels, pick({0, 1}));
  c.grad_offset = random_clip(call.frames, call.outputs, pick({0, 1}));
  c.weight = std::make_unique<Tensor>(call.features, call.outputs, 3, 3, 1, call.channels, pick({0, 2}));
  c.weight->fill([&] { return normal(random); });
  call.query = c.query->data.get();
  call.query_strides = c.query->strides;
  call.memory = c.memory->data.get();
  call.memory_strides = c.memory->strides;
  call.weight = c.weight->data.get();
  const PixelStrides& strides = c.weight->strides;
  call.weight_strides = {strides.batch, 1, strides.frame, strides.row};

  std::ostringstream text;
  text << "seed " << seed << ": " << name_of(call.features) << " " << call.batch << "x" << call.channels
       << "x" << call.frames << " (memory " << call.memory_frames << ") x" << call.height << "x" << call.width
       << ", outputs " << call.outputs << ", shift " << call.frame_shift
       << (call.clamp ? ", clamp" : ", skip") << (call.residual ? ", residual" : "");
  c.description = text.str();
  return c;
}

// --- The equations ---------------------------------------------------------------------------------------

// Dense, (N, frames, H, W, C).
struct Expected {
  std::vector<double> saliency, grad_query, grad_memory;
  // Of the offset, all but its own value. The gradient of the weight is (outputs, channels, 3, 3).
  std::vector<double> offset, grad_query_of_offset, grad_memory_of_offset, grad_weight;
};

Expected evaluate(const Case& c) {
  const auto& call = c.call;
  const int64_t pixels = call.batch * call.frames * call.height * call.width;
  Expected e;
  e.saliency.assign(pixels * call.channels, 0);
  e.grad_query.assign(pixels * call.channels, 0);
  e.grad_memory.assign(call.batch * call.memory_frames * call.height * call.width * call.channels, 0);
  e.grad_query_of_offset = e.grad_query;
  e.grad_memory_of_offset = e.grad_memory;
  e.offset.assign(pixels * call.outputs, 0);
  e.grad_weight.assign(call.outputs * call.channels * 9, 0);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t x = pixel % call.width, y = pixel / call.width % call.height;
    const int64_t t = pixel / (call.width * call.height) % call.frames,
                  n = pixel / (call.width * call.height * call.frames);
    int64_t m = t + call.frame_shift;
    if (call.clamp) m = std::clamp<int64_t>(m, 0, call.memory_frames - 1);
    if (m < 0 || m >= call.memory_frames) continue;
    for (int64_t k = 0; k < call.channels; ++k) {
      const double f = c.query->at(n, t, y, x, k), neighbour = c.memory->at(n, m, y, x, k);
      const double g = c.grad_output->at(n, t, y, x, k), s = 1 / (1 + std::exp(f - neighbour));
      const double value = s * neighbour + (call.residual ? neighbour : 0);
      const double slope = s * (1 - s) * neighbour;
      e.saliency[pixel * call.channels + k] = value;
      e.grad_query[pixel * call.channels + k] = -g * slope;
      const int64_t target = ((n * call.memory_frames + m) * call.height + y) * call.width + x;
      e.grad_memory[target * call.channels + k] += g * (slope + s + (call.residual ? 1 : 0));
      double of_saliency = 0;
      // Every output that sees this pixel.
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t j = 0; j < 3; ++j) {
          const int64_t row = y + 1 - i, column = x + 1 - j;
          if (row < 0 || row >= call.height || column < 0 || column >= call.width) continue;
          const int64_t seen = ((n * call.frames + t) * call.height + row) * call.width + column;
          for (int64_t o = 0; o < call.outputs; ++o) {
            const double w = c.weight->at(o, i, j, 0, k), of_offset = c.grad_offset->at(n, t, row, column, o);
            e.offset[seen * call.outputs + o] += value * w;
            of_saliency += of_offset * w;
            e.grad_weight[((o * call.channels + k) * 3 + i) * 3 + j] += of_offset * value;
          }
        }
      }
      e.grad_query_of_offset[pixel * call.channels + k] = -of_saliency * slope;
      e.grad_memory_of_offset[target * call.channels + k] +=
          of_saliency * (slope + s + (call.residual ? 1 : 0));
    }
  }
  return e;
}

// --- Running the kernels ---------------------------------------------------------------------------------

struct Buffers {
  Tensor saliency, grad_query, grad_memory, offset, grad_query_of_offset, grad_memory_of_offset, grad_weight;

  explicit Buffers(const MotionOffset& call)
      : saliency(call.features, call.batch, call.frames, call.height, call.width, call.channels),
        grad_query(call.features, call.batch, call.frames, call.height, call.width, call.channels),
        grad_memory(call.features, call.batch, call.memory_frames, call.height, call.width, call.channels),
        offset(call.features, call.batch, call.frames, call.height, call.width, call.outputs),
        grad_query_of_offset(call.features, call.batch, call.frames, call.height, call.width, call.channels),
        grad_memory_of_offset(call.features, call.batch, call.memory_frames, call.height, call.width,
                              call.channels),
        grad_weight(call.features, call.outputs, call.channels, 3, 3, 1) {}
};

class MotionKernels : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    saliency_ = cpu::find_motion_saliency_kernels(GetParam());
    offset_ = cpu::find_motion_offset_kernels(GetParam());
    offset_backward_ = cpu::find_motion_offset_backward_kernels(GetParam());
    if (saliency_ == nullptr) GTEST_SKIP() << "this processor or this build has no " << GetParam();
  }

  // Cut into pieces of `size` rows, pixels, channels or outputs of the weights, strips, tiles, and parts.
  Buffers run(const Case& c, int64_t size) const {
    Buffers buffers(c.call);
    const auto in_pieces = [&](int64_t all, const auto& piece) {
      for (int64_t begin = 0; begin < all; begin += size) piece(begin, std::min(begin + size, all));
    };
    MotionSaliencyBackward call{};
    static_cast<MotionSaliency&>(call) = c.call;
    call.output = buffers.saliency.data.get();
    call.grad_output = c.grad_output->data.get();
    call.grad_output_strides = c.grad_output->strides;
    call.grad_query = buffers.grad_query.data.get();
    call.grad_memory = buffers.grad_memory.data.get();
    in_pieces(call.batch * call.frames * call.height,
              [&](int64_t begin, int64_t end) { saliency_->forward(call, begin, end); });
    in_pieces(call.batch * call.height * call.width,
              [&](int64_t begin, int64_t end) { saliency_->backward(call, begin, end); });

    MotionOffset offset = c.call;
    offset.output = buffers.offset.data.get();
    const cpu::Scratch weights = cpu::allocate(offset_->weight_bytes(offset));
    in_pieces(offset.channels, [&](int64_t begin, int64_t end) {
      offset_->transform_weights(offset, begin, end, weights.get());
    });
    in_pieces(offset_->strips(offset), [&](int64_t begin, int64_t end) {
      const cpu::Scratch scratch = cpu::allocate(offset_->scratch_bytes(offset));
      offset_->forward(offset, weights.get(), begin, end, scratch.get());
    });

    MotionOffsetBackward backward{};
    static_cast<MotionOffset&>(backward) = c.call;
    backward.grad_output = c.grad_offset->data.get();
    backward.grad_output_strides = c.grad_offset->strides;
    backward.grad_query = buffers.grad_query_of_offset.data.get();
    backward.grad_memory = buffers.grad_memory_of_offset.data.get();
    backward.grad_weight = buffers.grad_weight.data.get();
    run_backward(backward, in_pieces);
    return buffers;
  }

  template <typename InPieces>
  void run_backward(const MotionOffsetBackward& call, const InPieces& in_pieces) const {
    // A memory without frames has no tiles that would write grad_query: the operator does not come this far.
    if (call.memory_frames == 0) {
      const int64_t count = call.batch * call.frames * call.height * call.width * call.channels;
      for (int64_t i = 0; i < count; ++i) write(call.grad_query, call.features, i, 0);
    }
    const auto& table = *offset_backward_;
    const cpu::Scratch weights = cpu::allocate(table.weight_bytes(call));
    in_pieces(call.outputs,
              [&](int64_t begin, int64_t end) { table.transform_weights(call, begin, end, weights.get()); });
    in_pieces(table.tiles(call), [&](int64_t begin, int64_t end) {
      const cpu::Scratch scratch = cpu::allocate(table.feature_scratch_bytes(call));
      table.features(call, weights.get(), begin, end, scratch.get());
    });
    const cpu::Scratch parts = cpu::allocate(table.part_bytes(call));
    in_pieces(table.parts(call), [&](int64_t begin, int64_t end) {
      const cpu::Scratch scratch = cpu::allocate(table.weight_scratch_bytes(call));
      table.weight_parts(call, begin, end, parts.get(), scratch.get());
    });
    in_pieces(call.outputs, [&](int64_t begin, int64_t end) { table.weight(call, parts.get(), begin, end); });
  }

  const cpu::MotionSaliencyKernels* saliency_ = nullptr;
  const cpu::MotionOffsetKernels* offset_ = nullptr;
  const cpu::MotionOffsetBackwardKernels* offset_backward_ = nullptr;
};

constexpr int64_t kWhole = std::numeric_limits<int32_t>::max();

TEST_P(MotionKernels, AgreeWithTheEquations) {
  const uint32_t cases = std::getenv("SIFA_TEST_ALL") != nullptr ? 1500 : 150;
  for (uint32_t seed = 0; seed < cases; ++seed) {
    const Case c = random_case(seed);
    SCOPED_TRACE(c.description);
    const Expected expected = evaluate(c);
    const Buffers actual = run(c, kWhole);
    expect_near(actual.saliency, expected.saliency, c.call.features, "saliency");
    expect_near(actual.grad_query, expected.grad_query, c.call.features, "grad_query");
    expect_near(actual.grad_memory, expected.grad_memory, c.call.features, "grad_memory");
    expect_near(actual.offset, expected.offset, c.call.features, "offset");
    expect_near(actual.grad_query_of_offset, expected.grad_query_of_offset, c.call.features,
                "grad_query of the offset");
    expect_near(actual.grad_memory_of_offset, expected.grad_memory_of_offset, c.call.features,
                "grad_memory of the offset");
    expect_near(actual.grad_weight, expected.grad_weight, c.call.features, "grad_weight");
    if (HasFatalFailure()) return;
  }
}

// What makes results the same for any number of threads.
TEST_P(MotionKernels, DoNotDependOnTheCut) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const Case c = random_case(seed);
    SCOPED_TRACE(c.description);
    const Buffers whole = run(c, kWhole);
    for (const int64_t size : {1, 3, 5}) {
      const Buffers cut = run(c, size);
      expect_same_bits(whole.saliency, cut.saliency, "saliency");
      expect_same_bits(whole.grad_query, cut.grad_query, "grad_query");
      expect_same_bits(whole.grad_memory, cut.grad_memory, "grad_memory");
      expect_same_bits(whole.offset, cut.offset, "offset");
      expect_same_bits(whole.grad_query_of_offset, cut.grad_query_of_offset, "grad_query of the offset");
      expect_same_bits(whole.grad_memory_of_offset, cut.grad_memory_of_offset, "grad_memory of the offset");
      expect_same_bits(whole.grad_weight, cut.grad_weight, "grad_weight");
    }
  }
}

// The exponential of our own, over all it can be asked for, in vectors and in single numbers.
TEST_P(MotionKernels, SigmoidIsExact) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const ScalarKind kind : {ScalarKind::kFloat32, ScalarKind::kFloat64}) {
    SCOPED_TRACE(name_of(kind));
    MotionSaliency call{};
    call.batch = call.frames = call.memory_frames = call.height = 1;
    call.width = 1000;
    call.channels = 71;
    call.clamp = true;
    call.features = kind;
    Tensor query(kind, 1, 1, 1, call.width, call.channels), memory(kind, 1, 1, 1, call.width, call.channels),
        output(kind, 1, 1, 1, call.width, call.channels);
    memory.fill([] { return 1.0; });
    const int64_t count = call.width * call.channels;
    int64_t index = 0;
    query.fill([&] { return -120 + 240.0 * static_cast<double>(index++) / static_cast<double>(count); });
    const double special[] = {infinity, -infinity, 1e30, -1e30, 1e4, -1e4, 89, -89};
    for (int64_t i = 0; i < 8; ++i) write(query.data.get(), kind, 137 * i, special[i]);
    call.query = query.data.get();
    call.query_strides = query.strides;
    call.memory = memory.data.get();
    call.memory_strides = memory.strides;
    call.output = output.data.get();
    saliency_->forward(call, 0, 1);
    for (int64_t i = 0; i < count; ++i) {
      const double q = read(query.data.get(), kind, i), value = read(output.data.get(), kind, i);
      const double difference =
          kind == ScalarKind::kFloat32 ? static_cast<double>(1.f - static_cast<float>(q)) : 1.0 - q;
      const double expected = 1 / (1 + std::exp(-difference));
      // Where float32 holds no normal number any more, 0 is right too.
      const double tolerance = std::ldexp(expected, 2 - precision_of(kind)) +
                               (kind == ScalarKind::kFloat32 ? std::ldexp(1.2, -126) : 0);
      ASSERT_TRUE(std::fabs(value - expected) <= tolerance)
          << "sigmoid(" << difference << ") is " << value << ", expected " << expected;
    }
  }
}

// An output that sees what is not finite is not finite either, and only the tiles whose 6x6 windows hold it
// know of it.
TEST_P(MotionKernels, NotANumberStaysInItsTiles) {
  for (const double strange : {std::nan(""), HUGE_VAL}) {
    for (int64_t y = 0; y < 13; ++y) {
      constexpr int64_t kHeight = 13, kWidth = 15, kColumn = 8;
      Case c = random_case(0);
      auto& call = c.call;
      call.batch = call.frames = call.memory_frames = 1;
      call.height = kHeight;
      call.width = kWidth;
      call.channels = 3;
      call.outputs = 2;
      call.frame_shift = 0;
      Tensor features(call.features, 1, 1, kHeight, kWidth, 3), weight(call.features, 2, 3, 3, 1, 3),
          offset(call.features, 1, 1, kHeight, kWidth, 2);
      features.fill([] { return 1.0; });
      weight.fill([] { return 1.0; });
      write(features.data.get(), call.features, features.index(0, 0, y, kColumn, 1), strange);
      call.query = call.memory = features.data.get();
      call.query_strides = call.memory_strides = features.strides;
      call.weight = weight.data.get();
      call.weight_strides = {weight.strides.batch, 1, weight.strides.frame, weight.strides.row};
      call.output = offset.data.get();
      const cpu::Scratch weights = cpu::allocate(offset_->weight_bytes(call));
      const cpu::Scratch scratch = cpu::allocate(offset_->scratch_bytes(call));
      offset_->transform_weights(call, 0, 3, weights.get());
      offset_->forward(call, weights.get(), 0, offset_->strips(call), scratch.get());
      const auto in_window = [](int64_t of, int64_t pixel) {
        const int64_t first = of / 4 * 4 - 1;
        return first <= pixel && pixel < first + 6;
      };
      for (int64_t row = 0; row < kHeight; ++row) {
        for (int64_t column = 0; column < kWidth; ++column) {
          const bool seen = std::abs(row - y) <= 1 && std::abs(column - kColumn) <= 1;
          const bool in_tile = in_window(row, y) && in_window(column, kColumn);
          const bool finite = std::isfinite(offset.at(0, 0, row, column, 0));
          ASSERT_TRUE(seen ? !finite : in_tile || finite) << row << ", " << column;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, MotionKernels, testing::Values("default", "avx2", "avx512"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Readers, AreTheFramesThatReadAFrame) {
  for (int64_t frames = 1; frames < 5; ++frames) {
    for (int64_t memory_frames = 1; memory_frames < 5; ++memory_frames) {
      for (int64_t shift = -frames; shift <= memory_frames; ++shift) {
        for (const bool clamp : {false, true}) {
          MotionSaliency call{};
          call.frames = frames;
          call.memory_frames = memory_frames;
          call.frame_shift = shift;
          call.clamp = clamp;
          for (int64_t m = 0; m < memory_frames; ++m) {
            const FrameRange range = readers_of(call, m);
            for (int64_t t = 0; t < frames; ++t)
              EXPECT_EQ(neighbour_frame(call, t) == m, t >= range.begin && t < range.end);
          }
        }
      }
    }
  }
}

}  // namespace
