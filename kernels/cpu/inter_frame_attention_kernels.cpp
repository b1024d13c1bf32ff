// The CPU kernels of inter-frame attention, vectorised over channels. Compiled once per instruction set, with
// the compiler flags and the SIFA_CPU_CAPABILITY (which names the table it defines) that
// kernels/CMakeLists.txt gives it. Everything but that table is in an unnamed namespace and includes no
// function of the standard library that could be emitted out of line: see SIFA_HOST_DEVICE.
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "table.h"
#include "vector.h"

namespace sifa::cpu {
namespace {

constexpr int kMaxTaps = 81;  // kernel_size 9
constexpr int kTilePixels = kTileSize * kTileSize;
// Room for loops over taps to run past the last one, to a multiple of 4.
constexpr int kTapRoom = 84;

SIFA_INLINE float exponential(float x) { return __builtin_expf(x); }
SIFA_INLINE double exponential(double x) { return __builtin_exp(x); }

template <typename T>
SIFA_INLINE const T* pixel(const void* data, const PixelStrides& strides, int64_t n, int64_t t, int64_t y,
                           int64_t x) {
  return static_cast<const T*>(data) + n * strides.batch + t * strides.frame + y * strides.row +
         x * strides.column;
}

SIFA_INLINE int64_t dense_pixel(const InterFrameAttention& call, int64_t frames, int64_t n, int64_t t,
                                int64_t y, int64_t x) {
  return ((n * frames + t) * call.height + y) * call.width + x;
}

// Where a tile lies: its first pixel, and how many of its rows and columns are inside the frame.
struct Tile {
  int64_t n, t, y, x;
  int64_t rows, columns;

  SIFA_INLINE Tile(const InterFrameAttention& call, int64_t index) {
    const int64_t across = (call.width + kTileSize - 1) / kTileSize, frame = index / tiles_per_frame(call);
    n = frame / call.frames;
    t = frame % call.frames;
    y = index % tiles_per_frame(call) / across * kTileSize;
    x = index % across * kTileSize;
    rows = call.height - y < kTileSize ? call.height - y : kTileSize;
    columns = call.width - x < kTileSize ? call.width - x : kTileSize;
  }

  // Fetches the first 512 bytes of channels at at(y, x) for the pixel that for_pixels comes to next, or one
  // nearby: a tile's rows are too short for the processor to foresee more than the rest of a pixel. At 128
  // channels a tenth of the time.
  template <bool kWritten, typename At>
  SIFA_INLINE void fetch_next(const InterFrameAttention& call, int64_t row, int64_t column,
                              const At& at) const {
    if (++column == x + columns) {
      column = x;
      if (row + 1 < call.height) ++row;
    }
    const auto* pixel = at(row, column);
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(*pixel));
    const int64_t count = call.channels < 8 * kLine ? call.channels : 8 * kLine;
    for (int64_t c = 0; c < count; c += kLine) __builtin_prefetch(pixel + c, kWritten);
  }

  // Calls body(y, x, lane) for the pixels inside the frame.
  template <typename Body>
  SIFA_INLINE void for_pixels(const Body& body) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        body(y + row, x + column, static_cast<int>(row * kTileSize + column));
      }
    }
  }
};

// The taps of a tile: a pixel in each lane, so that they are located together.
template <typename T, typename Real = Accumulator<T>>
class Taps {
 public:
  // Of the low corner of each tap along y and x. Outside the frame it is -1.
  int32_t top[kMaxTaps][kTilePixels], left[kMaxTaps][kTilePixels];
  // Whether the tap contributes, and which of its rows and columns lie in the frame: kTop to kRight.
  int32_t flags[kMaxTaps][kTilePixels];
  static constexpr int32_t kContributes = 1, kTop = 2, kBottom = 4, kLeft = 8, kRight = 16;
  // Weights of the low and the high row and column, 0 outside the frame: see AxisSample.
  Real y_weight[kMaxTaps][2][kTilePixels], x_weight[kMaxTaps][2][kTilePixels];

  explicit Taps(const InterFrameAttention& call)
      : call_(call), number_(static_cast<int>(call.kernel_size * call.kernel_size)) {}

  SIFA_INLINE int number() const { return number_; }

  SIFA_INLINE void locate(const Tile& tile) {
    if (call_.offsets == ScalarKind::kFloat32) {
      locate(tile, static_cast<const float*>(call_.offset));
    } else {
      locate(tile, static_cast<const T*>(call_.offset));
    }
  }

  // Writes the taps of a pixel that contribute, in ascending order, and returns how many they are.
  SIFA_INLINE int contributing(int lane, int* taps) const {
    int count = 0;
    for (int p = 0; p < number_; ++p) {
      taps[count] = p;
      count += flags[p][lane] & kContributes;
    }
    return count;
  }

 private:
  template <typename Offset>
  SIFA_INLINE void locate(const Tile& tile, const Offset* offset) {
    const OffsetStrides& strides = call_.offset_strides;
    int32_t rows[kTilePixels], columns[kTilePixels];
    for (int lane = 0; lane < kTilePixels; ++lane) {
      // What lies outside the frame is not used: the nearest pixel inside takes its lane.
      const int64_t row = lane / kTileSize < tile.rows ? lane / kTileSize : tile.rows - 1;
      const int64_t column = lane % kTileSize < tile.columns ? lane % kTileSize : tile.columns - 1;
      rows[lane] = static_cast<int32_t>(tile.y + row);
      columns[lane] = static_cast<int32_t>(tile.x + column);
      const Offset* of_pixel = offset + tile.n * strides.batch + tile.t * strides.frame +
                               rows[lane] * strides.row + columns[lane] * strides.column;
      for (int p = 0; p < number_; ++p, of_pixel += 2 * strides.channel) {
        dy_[p][lane] = load_one(of_pixel);
        dx_[p][lane] = load_one(of_pixel + strides.channel);
      }
    }
    const int32_t size = static_cast<int32_t>(call_.kernel_size);
    const int32_t dilation = static_cast<int32_t>(call_.dilation);
    for (int p = 0; p < number_; ++p) {
      const int32_t i = p / size, j = p % size;
      for (int lane = 0; lane < kTilePixels; ++lane) {
        AxisSample<Real> y, x;
        const bool inside =
            sifa::locate(tap_position(rows[lane], i, size, dilation, dy_[p][lane]), call_.height, y) &
            sifa::locate(tap_position(columns[lane], j, size, dilation, dx_[p][lane]), call_.width, x);
        const int32_t has_top = y.slope_low != 0, has_left = x.slope_low != 0;
        const int32_t has_bottom = y.slope_high != 0, has_right = x.slope_high != 0;
        top[p][lane] = y.low - 1 + has_top;
        left[p][lane] = x.low - 1 + has_left;
        flags[p][lane] = inside * kContributes + has_top * kTop + has_bottom * kBottom + has_left * kLeft +
                         has_right * kRight;
        y_weight[p][0][lane] = y.weight_low;
        y_weight[p][1][lane] = y.weight_high;
        x_weight[p][0][lane] = x.weight_low;
        x_weight[p][1][lane] = x.weight_high;
      }
    }
  }

  const InterFrameAttention& call_;
  const int number_;
  Real dy_[kMaxTaps][kTilePixels], dx_[kMaxTaps][kTilePixels];
};

// The four pixels of each sample of a tile, in the order (low, low), (low, high), (high, low), (high, high)
// of (y, x), and their bilinear weights. A corner outside the frame is `zeros`, as many as there are
// channels: not another pixel with weight 0, because 0 times infinity is not 0.
template <typename T, typename Real = Accumulator<T>>
class Corners {
 public:
  SIFA_INLINE void find(const Taps<T>& taps, const T* frame, const PixelStrides& strides, const T* zeros) {
    // Addresses as integers, which are computed for several pixels at once.
    const int64_t row = strides.row * static_cast<int64_t>(sizeof(T));
    const int64_t column = strides.column * static_cast<int64_t>(sizeof(T));
    const int64_t base = reinterpret_cast<int64_t>(frame), none = reinterpret_cast<int64_t>(zeros);
    for (int p = 0; p < taps.number(); ++p) {
      for (int lane = 0; lane < kTilePixels; ++lane) {
        const int64_t first = base + taps.top[p][lane] * row + taps.left[p][lane] * column;
        const int32_t flags = taps.flags[p][lane];
        const bool top = flags & Taps<T>::kTop, bottom = flags & Taps<T>::kBottom;
        const bool left = flags & Taps<T>::kLeft, right = flags & Taps<T>::kRight;
        at_[p][0][lane] = top & left ? first : none;
        at_[p][1][lane] = top & right ? first + column : none;
        at_[p][2][lane] = bottom & left ? first + row : none;
        at_[p][3][lane] = bottom & right ? first + row + column : none;
      }
      for (int lane = 0; lane < kTilePixels; ++lane) {
        const Real top = taps.y_weight[p][0][lane], bottom = taps.y_weight[p][1][lane];
        const Real left = taps.x_weight[p][0][lane], right = taps.x_weight[p][1][lane];
        weight_[p][0][lane] = top * left;
        weight_[p][1][lane] = top * right;
        weight_[p][2][lane] = bottom * left;
        weight_[p][3][lane] = bottom * right;
      }
    }
  }

  SIFA_INLINE const T* at(int p, int corner, int lane) const {
    return reinterpret_cast<const T*>(at_[p][corner][lane]);
  }
  SIFA_INLINE Real weight(int p, int corner, int lane) const { return weight_[p][corner][lane]; }

 private:
  int64_t at_[kMaxTaps][4][kTilePixels];
  Real weight_[kMaxTaps][4][kTilePixels];
};

// The scratch of a pixel: a row of zeros to read in place of corners outside the frame, then the samples of
// one group.
template <typename T>
SIFA_INLINE const T* clear_zeros(const InterFrameAttention& call, void* scratch) {
  std::memset(scratch, 0, static_cast<size_t>(call.channels) * sizeof(T));
  return static_cast<const T*>(scratch);
}

template <typename T>
SIFA_INLINE Accumulator<T>* samples_of(const InterFrameAttention& call, void* scratch) {
  return reinterpret_cast<Accumulator<T>*>(static_cast<char*>(scratch) + zeros_bytes(call));
}

// Turns the logits of the contributing taps into weights: softmax over all k^2 taps, of which the dropped
// ones keep logit 0. Without softmax the weights are the logits.
template <typename Real>
SIFA_INLINE void normalise(const InterFrameAttention& call, int count, Real* weights) {
  if (!call.softmax) return;
  const int64_t dropped = call.kernel_size * call.kernel_size - count;
  Real largest = dropped > 0 || count == 0 ? Real(0) : weights[0];
  for (int i = 0; i < count; ++i) largest = weights[i] > largest ? weights[i] : largest;
  // Without dropped taps the largest may be so negative that exp(-largest) overflows.
  Real total = dropped > 0 ? static_cast<Real>(dropped) * exponential(-largest) : Real(0);
  for (int i = 0; i < count; ++i) {
    weights[i] = exponential(weights[i] - largest);
    total += weights[i];
  }
  for (int i = 0; i < count; ++i) weights[i] /= total;
}

// Samples kTaps taps of one group: writes each sample, and its product with the query.
template <int kTaps, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void sample_taps(const T* query, const Corners<T>& corners, const int* taps, int lane,
                             int64_t channel, int64_t channels, Real* samples, int64_t stride,
                             ChannelSum<T>* products) {
  // Copies of our own: the compiler cannot know that the samples are not written over them.
  const T* at[kTaps][4];
  Real weight[kTaps][4];
  for (int i = 0; i < kTaps; ++i) {
    for (int j = 0; j < 4; ++j) {
      at[i][j] = corners.at(taps[i], j, lane) + channel;
      weight[i][j] = corners.weight(taps[i], j, lane);
    }
  }
  ChannelSum<T> sums[kTaps];
  for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto q = load<kLanes>(query + c);
    for (int i = 0; i < kTaps; ++i) {
      auto value = load<kLanes>(at[i][0] + c) * weight[i][0];
      for (int j = 1; j < 4; ++j) value += load<kLanes>(at[i][j] + c) * weight[i][j];
      store<kLanes>(samples + i * stride + c, value);
      sums[i].template add<kLanes>(value * q);
    }
  });
  for (int i = 0; i < kTaps; ++i) products[i] = sums[i];
}

// target = (residual +) sum_i weights[i] * samples[i], over the channels of a group.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void weighted_sum(const T* residual, const Real* samples, int64_t stride, const Real* weights,
                              int count, int64_t channels, T* target) {
  for_channel_blocks<T>(channels, [&](auto lanes, auto block, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value, kBlock = decltype(block)::value;
    Block<Real, kLanes> sums[kBlock] = {};
    if (residual != nullptr) {
      for (int b = 0; b < kBlock; ++b) sums[b] = load<kLanes>(residual + c + b * kLanes);
    }
    for (int i = 0; i < count; ++i) {
      for (int b = 0; b < kBlock; ++b)
        sums[b] += load<kLanes>(samples + i * stride + c + b * kLanes) * weights[i];
    }
    for (int b = 0; b < kBlock; ++b) store<kLanes>(target + c + b * kLanes, sums[b]);
  });
}

// The output of one pixel and group of kBlocks whole blocks of channels, without softmax: a tap's sample
// stays in registers between its weight and its part in the sum, and so does the sum.
template <int kBlocks, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void attend_in_registers(const T* query, bool residual, const Corners<T>& corners,
                                     const int* taps, int count, int lane, int64_t channel, Real scale,
                                     T* output) {
  constexpr int kLanes = kWidest<T>, kChains = kBlocks < 2 ? 1 : kBlocks < 4 ? 2 : 4;
  Block<Real, kLanes> q[kBlocks], sums[kBlocks] = {};
  for (int b = 0; b < kBlocks; ++b) q[b] = load<kLanes>(query + b * kLanes);
  if (residual) {
    for (int b = 0; b < kBlocks; ++b) sums[b] = q[b];
  }
  for (int b = 0; b < kBlocks; ++b) q[b] = q[b] * scale;
  for (int i = 0; i < count; ++i) {
    Block<Real, kLanes> sample[kBlocks];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const T* at = corners.at(taps[i], j, lane) + channel;
      const Real weight = corners.weight(taps[i], j, lane);
      for (int b = 0; b < kBlocks; ++b) {
        const auto part = load<kLanes>(at + b * kLanes) * weight;
        sample[b] = j == 0 ? part : sample[b] + part;
      }
    }
    // What comes next waits for this sum: chains of additions side by side, and q is scaled before them.
    ChannelSum<T> products[kChains];
    for (int b = 0; b < kBlocks; ++b) products[b % kChains].template add<kLanes>(sample[b] * q[b]);
    for (int n = kChains / 2; n > 0; n /= 2) {
      for (int k = 0; k < n; ++k) products[k] = products[k] + products[k + n];
    }
    const Real weight = products[0].total();
    for (int b = 0; b < kBlocks; ++b) sums[b] += sample[b] * weight;
  }
  for (int b = 0; b < kBlocks; ++b) store<kLanes>(output + b * kLanes, sums[b]);
}

// The output of one pixel and group of any number of channels: all samples first, then their sum.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void attend_in_scratch(const InterFrameAttention& call, const T* query, const Corners<T>& corners,
                                   const int* taps, int count, int lane, int64_t channel, Real* samples,
                                   T* output) {
  const int64_t channels = call.channels / call.groups, stride = sample_stride(call);
  ChannelSum<T> products[kTapRoom];
  Real weights[kTapRoom];
  int i = 0;
  for (; i + 2 <= count; i += 2) {
    sample_taps<2>(query, corners, taps + i, lane, channel, channels, samples + i * stride, stride,
                   products + i);
  }
  if (i < count) {
    sample_taps<1>(query, corners, taps + i, lane, channel, channels, samples + i * stride, stride,
                   products + i);
  }
  for (i = 0; i < count; i += 4) total<4>(products + i, weights + i);
  for (i = 0; i < count; ++i) weights[i] *= static_cast<Real>(call.scale);
  normalise(call, count, weights);
  weighted_sum(call.residual ? query : nullptr, samples, stride, weights, count, channels, output);
}

// With kBlocks > 0 groups have as many whole blocks of channels, and there is no softmax.
template <int kBlocks, typename T, typename Real = Accumulator<T>>
void forward_tiles(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  const int64_t channels = kBlocks > 0 ? kBlocks * kWidest<T> : call.channels / call.groups;
  const T* zeros = clear_zeros<T>(call, scratch);
  Taps<T> located(call);
  int taps[kMaxTaps];
  Corners<T> corners;

  for (int64_t index = begin; index < end; ++index) {
    const Tile tile(call, index);
    const int64_t m = neighbour_frame(call, tile.t);
    if (m >= 0) {
      located.locate(tile);
      corners.find(located, pixel<T>(call.memory, call.memory_strides, tile.n, m, 0, 0), call.memory_strides,
                   zeros);
    }
    const auto query_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return pixel<T>(call.query, call.query_strides, tile.n, tile.t, y, x);
    };
    const auto output_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return static_cast<T*>(call.output) +
             dense_pixel(call, call.frames, tile.n, tile.t, y, x) * call.channels;
    };
    tile.for_pixels([&](int64_t y, int64_t x, int lane) __attribute__((always_inline)) {
      const int count = m < 0 ? 0 : located.contributing(lane, taps);
      const T* query = query_at(y, x);
      T* output = output_at(y, x);
      tile.fetch_next<false>(call, y, x, query_at);
      tile.fetch_next<true>(call, y, x, output_at);
      for (int64_t channel = 0; channel < call.channels; channel += channels) {
        if constexpr (kBlocks > 0) {
          attend_in_registers<kBlocks>(query + channel, call.residual, corners, taps, count, lane, channel,
                                       static_cast<Real>(call.scale), output + channel);
        } else {
          attend_in_scratch(call, query + channel, corners, taps, count, lane, channel,
                            samples_of<T>(call, scratch), output + channel);
        }
      }
    });
  }
}

// Calls body(Lanes<number>) if `number` is in 1 to kMost.
template <int kMost, typename Body>
SIFA_INLINE bool with_constant(int64_t number, const Body& body) {
  if constexpr (kMost > 0) {
    if (number == kMost) {
      body(Lanes<kMost>{});
      return true;
    }
    return with_constant<kMost - 1>(number, body);
  }
  return false;
}

template <typename T, typename Real = Accumulator<T>>
void forward_of_type(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  // A block is held three times, in the query, a sample and the sum; the rest is for what is being added.
  constexpr int kMost = kRegisters / 4 * kWide<Real> / kWidest<T>;
  const int64_t channels = call.channels / call.groups;
  const bool done = !call.softmax && channels % kWidest<T> == 0 &&
                    with_constant<kMost>(channels / kWidest<T>, [&](auto blocks) {
                      forward_tiles<decltype(blocks)::value, T>(call, begin, end, scratch);
                    });
  if (!done) forward_tiles<0, T>(call, begin, end, scratch);
}

// From products with the four corners of tap p to those with its sample and the sample's derivatives along y
// and x.
template <typename T, typename Real>
SIFA_INLINE void combine(const Taps<T>& taps, int p, int lane, const Real* corner, Real& sample, Real& dy,
                         Real& dx) {
  const Real top = taps.y_weight[p][0][lane], bottom = taps.y_weight[p][1][lane];
  const Real left = taps.x_weight[p][0][lane], right = taps.x_weight[p][1][lane];
  sample = (corner[0] * left + corner[1] * right) * top + (corner[2] * left + corner[3] * right) * bottom;
  dy = (corner[2] - corner[0]) * left + (corner[3] - corner[1]) * right;
  dx = (corner[1] - corner[0]) * top + (corner[3] - corner[2]) * bottom;
}

// Writes the offset gradients of one pixel, in the type of the offsets.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void store_grad_offset(const InterFrameAttentionBackward& call, int64_t index, int64_t count,
                                   const Real* gradients) {
  if (call.offsets == ScalarKind::kFloat32) {
    float* target = static_cast<float*>(call.grad_offset) + index;
    for (int64_t i = 0; i < count; ++i) target[i] = static_cast<float>(gradients[i]);
  } else {
    T* target = static_cast<T*>(call.grad_offset) + index;
    for (int64_t i = 0; i < count; ++i) store_one(target + i, gradients[i]);
  }
}

// With G the gradient of the output, per group: the gradient of w_p is <G, s_p>; that of the product
// <q, s_p>, called the logit gradient, is scale times it, or, under softmax,
//   logit_p = scale * w_p (<G, s_p> - sum_j w_j <G, s_j>).
// Then
//   grad_query = (G +) sum_p logit_p s_p
//   grad s_p = w_p G + logit_p q
//   grad offset_p = <grad s_p, d s_p>
template <typename T, typename Real = Accumulator<T>>
void backward_query_tiles(const InterFrameAttentionBackward& call, int64_t begin, int64_t end,
                          void* tap_gradients, void* scratch) {
  const int64_t channels = call.channels / call.groups, stride = sample_stride(call);
  const int64_t tap_count = call.kernel_size * call.kernel_size;
  const Real scale = static_cast<Real>(call.scale);
  const T* zeros = clear_zeros<T>(call, scratch);
  Real* samples = samples_of<T>(call, scratch);
  Taps<T> located(call);
  int taps[kMaxTaps];
  Corners<T> corners;
  Real weights[kMaxTaps], logit_gradients[kMaxTaps];
  // Products of the query and of G with the sample and with its derivatives.
  Real query_dy[kMaxTaps], query_dx[kMaxTaps], grad_sample[kMaxTaps], grad_dy[kMaxTaps], grad_dx[kMaxTaps];
  Real offset_gradients[2 * kMaxTaps];

  for (int64_t index = begin; index < end; ++index) {
    const Tile tile(call, index);
    const int64_t m = neighbour_frame(call, tile.t);
    if (m >= 0) {
      located.locate(tile);
      corners.find(located, pixel<T>(call.memory, call.memory_strides, tile.n, m, 0, 0), call.memory_strides,
                   zeros);
    }
    const auto query_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return pixel<T>(call.query, call.query_strides, tile.n, tile.t, y, x);
    };
    const auto grad_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return pixel<T>(call.grad_output, call.grad_output_strides, tile.n, tile.t, y, x);
    };
    const auto target_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return static_cast<T*>(call.grad_query) +
             dense_pixel(call, call.frames, tile.n, tile.t, y, x) * call.channels;
    };
    tile.for_pixels([&](int64_t y, int64_t x, int lane) __attribute__((always_inline)) {
      tile.fetch_next<false>(call, y, x, query_at);
      tile.fetch_next<false>(call, y, x, grad_at);
      tile.fetch_next<true>(call, y, x, target_at);
      const int count = m < 0 ? 0 : located.contributing(lane, taps);
      const int64_t position = dense_pixel(call, call.frames, tile.n, tile.t, y, x);
      Real* kept = static_cast<Real*>(tap_gradients) + position * tap_count * call.groups * 2;
      for (int64_t i = 0; i < 2 * tap_count; ++i) offset_gradients[i] = 0;

      for (int64_t group = 0; group < call.groups; ++group) {
        const int64_t channel = group * channels;
        const T *query = query_at(y, x) + channel, *grad = grad_at(y, x) + channel;
        for (int i = 0; i < count; ++i) {
          const T* at[4];
          Real weight[4];
          for (int j = 0; j < 4; ++j) {
            at[j] = corners.at(taps[i], j, lane) + channel;
            weight[j] = corners.weight(taps[i], j, lane);
          }
          Real* sample = samples + i * stride;
          ChannelSum<T> sums[8];  // of the query with the four corners, then of G
          for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
            constexpr int kLanes = decltype(lanes)::value;
            const auto q = load<kLanes>(query + c), g = load<kLanes>(grad + c);
            Block<Real, kLanes> value{};
            for (int j = 0; j < 4; ++j) {
              auto corner = load<kLanes>(at[j] + c);
              keep(corner);
              value += corner * weight[j];
              sums[j].template add<kLanes>(q * corner);
              sums[4 + j].template add<kLanes>(g * corner);
            }
            store<kLanes>(sample + c, value);
          });
          Real products[8];
          total<8>(sums, products);
          combine(located, taps[i], lane, products, weights[i], query_dy[i], query_dx[i]);
          combine(located, taps[i], lane, products + 4, grad_sample[i], grad_dy[i], grad_dx[i]);
          weights[i] *= scale;
        }
        normalise(call, count, weights);

        Real mean = 0;
        for (int i = 0; i < count && call.softmax; ++i) mean += weights[i] * grad_sample[i];
        for (int i = 0; i < count; ++i) {
          const int64_t p = taps[i];
          const Real logit =
              call.softmax ? scale * weights[i] * (grad_sample[i] - mean) : scale * grad_sample[i];
          logit_gradients[i] = logit;
          offset_gradients[2 * p] += weights[i] * grad_dy[i] + logit * query_dy[i];
          offset_gradients[2 * p + 1] += weights[i] * grad_dx[i] + logit * query_dx[i];
          kept[(p * call.groups + group) * 2] = weights[i];
          kept[(p * call.groups + group) * 2 + 1] = logit;
        }
        weighted_sum(call.residual ? grad : nullptr, samples, stride, logit_gradients, count, channels,
                     target_at(y, x) + channel);
      }
      store_grad_offset<T>(call, position * 2 * tap_count, 2 * tap_count, offset_gradients);
    });
  }
}

// Adds w G + logit q, times its bilinear weight, to kCorners pixels.
template <int kCorners, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void scatter(const T* grad, const T* query, Real weight, Real logit, int64_t channels,
                         Real* const* target_list, const Real* weight_list) {
  Real* targets[kCorners];
  Real corner_weights[kCorners];
  for (int j = 0; j < kCorners; ++j) {
    targets[j] = target_list[j];
    corner_weights[j] = weight_list[j];
  }
  for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto value = load<kLanes>(grad + c) * weight + load<kLanes>(query + c) * logit;
    for (int j = 0; j < kCorners; ++j) {
      store<kLanes>(targets[j] + c, load<kLanes>(targets[j] + c) + value * corner_weights[j]);
    }
  });
}

template <typename T, typename Real = Accumulator<T>>
void backward_memory_rows(const InterFrameAttentionBackward& call, int64_t n, int64_t m, int64_t begin,
                          int64_t end, const void* tap_gradients, void* scratch) {
  constexpr bool kInPlace = sizeof(T) == sizeof(Real);
  const int64_t channels = call.channels / call.groups;
  const int64_t tap_count = call.kernel_size * call.kernel_size;
  const int64_t row_size = call.width * call.channels;
  T* target = static_cast<T*>(call.grad_memory) +
              dense_pixel(call, call.memory_frames, n, m, begin, 0) * call.channels;
  Real* sums;
  if constexpr (kInPlace) {
    sums = target;
  } else {
    sums = static_cast<Real*>(scratch);
  }
  std::memset(sums, 0, static_cast<size_t>((end - begin) * row_size) * sizeof(Real));

  Taps<T> located(call);
  int taps[kMaxTaps];
  for (int64_t t = 0; t < call.frames; ++t) {
    if (neighbour_frame(call, t) != m) continue;
    const int64_t first_tile = (n * call.frames + t) * tiles_per_frame(call);
    for (int64_t index = first_tile; index < first_tile + tiles_per_frame(call); ++index) {
      const Tile tile(call, index);
      located.locate(tile);
      const auto query_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
        return pixel<T>(call.query, call.query_strides, n, t, y, x);
      };
      const auto grad_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
        return pixel<T>(call.grad_output, call.grad_output_strides, n, t, y, x);
      };
      tile.for_pixels([&](int64_t y, int64_t x, int lane) __attribute__((always_inline)) {
        tile.fetch_next<false>(call, y, x, query_at);
        tile.fetch_next<false>(call, y, x, grad_at);
        const int count = located.contributing(lane, taps);
        const int64_t position = dense_pixel(call, call.frames, n, t, y, x);
        const Real* kept = static_cast<const Real*>(tap_gradients) + position * tap_count * call.groups * 2;
        const T *query = query_at(y, x), *grad = grad_at(y, x);
        for (int i = 0; i < count; ++i) {
          const int p = taps[i];
          const int32_t flags = located.flags[p][lane];
          const int64_t top = located.top[p][lane], left = located.left[p][lane];
          // The corners that exist and lie in [begin, end): 0, 1, 2 or 4.
          const bool has_row[2] = {flags & Taps<T>::kTop && top >= begin && top < end,
                                   flags & Taps<T>::kBottom && top + 1 >= begin && top + 1 < end};
          const bool has_column[2] = {(flags & Taps<T>::kLeft) != 0, (flags & Taps<T>::kRight) != 0};
          Real* targets[4];
          Real corner_weights[4];
          int corners = 0;
          for (int row = 0; row < 2; ++row) {
            for (int column = 0; column < 2; ++column) {
              if (!has_row[row] || !has_column[column]) continue;
              targets[corners] = sums + (top + row - begin) * row_size + (left + column) * call.channels;
              corner_weights[corners++] = located.y_weight[p][row][lane] * located.x_weight[p][column][lane];
            }
          }
          for (int64_t group = 0; group < call.groups && corners > 0; ++group) {
            const Real weight = kept[(p * call.groups + group) * 2],
                       logit = kept[(p * call.groups + group) * 2 + 1];
            const T *g = grad + group * channels, *q = query + group * channels;
            if (corners == 4) {
              scatter<4>(g, q, weight, logit, channels, targets, corner_weights);
            } else if (corners == 2) {
              scatter<2>(g, q, weight, logit, channels, targets, corner_weights);
            } else {
              scatter<1>(g, q, weight, logit, channels, targets, corner_weights);
            }
            for (int j = 0; j < corners; ++j) targets[j] += channels;
          }
        }
      });
    }
  }
  if constexpr (!kInPlace) {
    // Group by group, as they were summed: blocks of channels may be in another order than channels.
    const int64_t groups = (end - begin) * call.width * call.groups;
    for (int64_t group = 0; group < groups; ++group, sums += channels, target += channels) {
      for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
        constexpr int kLanes = decltype(lanes)::value;
        store<kLanes>(target + c, load<kLanes>(sums + c));
      });
    }
  }
}

void forward(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  for_feature_type(call.features,
                   [&](auto type) { forward_of_type<decltype(type)>(call, begin, end, scratch); });
}

void backward_query(const InterFrameAttentionBackward& call, int64_t begin, int64_t end, void* tap_gradients,
                    void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    backward_query_tiles<decltype(type)>(call, begin, end, tap_gradients, scratch);
  });
}

void backward_memory(const InterFrameAttentionBackward& call, int64_t n, int64_t m, int64_t begin,
                     int64_t end, const void* tap_gradients, void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    backward_memory_rows<decltype(type)>(call, n, m, begin, end, tap_gradients, scratch);
  });
}

}  // namespace

#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _kernels)

extern const Kernels SIFA_TABLE;
const Kernels SIFA_TABLE = {SIFA_STRING(SIFA_CPU_CAPABILITY), forward, backward_query, backward_memory};

}  // namespace sifa::cpu
