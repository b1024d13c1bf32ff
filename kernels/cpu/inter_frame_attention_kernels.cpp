// The CPU kernels of inter-frame attention, vectorised over channels. Compiled once per instruction set, with
// the compiler flags and the SIFA_CPU_CAPABILITY (which names the table it defines) that
// kernels/CMakeLists.txt gives it. Everything but that table is in an unnamed namespace and includes no
// function of the standard library that could be emitted out of line: see SIFA_HOST_DEVICE.
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "vector.h"

namespace sifa::cpu {
namespace {

constexpr int kMaxTaps = 81;  // kernel_size 9
// Room for loops over taps to run past the last one, to a multiple of the longest vector.
constexpr int kTapStep = 16;
constexpr int kTapRoom = 96;

SIFA_INLINE float exponential(float x) { return __builtin_expf(x); }
SIFA_INLINE double exponential(double x) { return __builtin_exp(x); }

// Row (n, t, y) of the query frames.
struct Row {
  int64_t n, t, y;
};

SIFA_INLINE Row row_at(const InterFrameAttention& call, int64_t index) {
  const int64_t frame = index / call.height;
  return {frame / call.frames, frame % call.frames, index % call.height};
}

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

// The taps of one pixel. An array per quantity, so that the compiler computes several taps at once.
template <typename T, typename Real = Accumulator<T>>
class Taps {
 public:
  int count = 0;            // of taps that contribute
  int32_t index[kMaxTaps];  // their p, ascending
  // By p, for the taps that contribute: see AxisSample.
  int32_t y_low[kTapRoom], y_high[kTapRoom], x_low[kTapRoom], x_high[kTapRoom];
  Real y_weight_low[kTapRoom], y_weight_high[kTapRoom], x_weight_low[kTapRoom], x_weight_high[kTapRoom];
  Real y_slope_low[kTapRoom], y_slope_high[kTapRoom], x_slope_low[kTapRoom], x_slope_high[kTapRoom];

  explicit Taps(const InterFrameAttention& call)
      : call_(call), number_(static_cast<int>(call.kernel_size * call.kernel_size)) {
    for (int p = 0; p < number_; ++p) {
      row_[p] = static_cast<int32_t>(p / call.kernel_size);
      column_[p] = static_cast<int32_t>(p % call.kernel_size);
    }
  }

  SIFA_INLINE void locate_at(const Row& row, int64_t x) {
    read_offsets(row, x);
    for (int first = 0; first < number_; first += kTapStep) {
      for (int p = first; p < first + kTapStep; ++p) {
        AxisSample<Real> along_y, along_x;
        const bool y_inside = locate(tap_position(row.y, row_[p], call_.kernel_size, call_.dilation, dy_[p]),
                                     call_.height, along_y);
        const bool x_inside = locate(tap_position(x, column_[p], call_.kernel_size, call_.dilation, dx_[p]),
                                     call_.width, along_x);
        contributes_[p] = y_inside & x_inside;
        y_low[p] = along_y.low;
        y_high[p] = along_y.high;
        x_low[p] = along_x.low;
        x_high[p] = along_x.high;
        y_weight_low[p] = along_y.weight_low;
        y_weight_high[p] = along_y.weight_high;
        x_weight_low[p] = along_x.weight_low;
        x_weight_high[p] = along_x.weight_high;
        y_slope_low[p] = along_y.slope_low;
        y_slope_high[p] = along_y.slope_high;
        x_slope_low[p] = along_x.slope_low;
        x_slope_high[p] = along_x.slope_high;
      }
    }
    count = 0;
    for (int p = 0; p < number_; ++p) {
      index[count] = p;
      count += contributes_[p];
    }
  }

 private:
  SIFA_INLINE void read_offsets(const Row& row, int64_t x) {
    const OffsetStrides& strides = call_.offset_strides;
    const int64_t base =
        row.n * strides.batch + row.t * strides.frame + row.y * strides.row + x * strides.column;
    if (call_.offsets == ScalarKind::kFloat32) {
      read_offsets(static_cast<const float*>(call_.offset) + base, strides.channel);
    } else {
      read_offsets(static_cast<const T*>(call_.offset) + base, strides.channel);
    }
  }

  template <typename Offset>
  SIFA_INLINE void read_offsets(const Offset* offset, int64_t stride) {
    for (int p = 0; p < number_; ++p, offset += 2 * stride) {
      dy_[p] = load_one(offset);
      dx_[p] = load_one(offset + stride);
    }
  }

  const InterFrameAttention& call_;
  const int number_;
  int32_t row_[kTapRoom] = {}, column_[kTapRoom] = {};  // i and j of tap p
  Real dy_[kTapRoom] = {}, dx_[kTapRoom] = {};
  int32_t contributes_[kTapRoom];
};

// The four pixels of a sample, in the order (low, low), (low, high), (high, low), (high, high) of (y, x), and
// their bilinear weights.
template <typename T>
struct Corners {
  const T* at[4];
  Accumulator<T> weight[4];

  SIFA_INLINE Corners from(int64_t channel) const {
    return {{at[0] + channel, at[1] + channel, at[2] + channel, at[3] + channel},
            {weight[0], weight[1], weight[2], weight[3]}};
  }
};

// Finds the taps of one pixel in memory frame m, none if m is negative, and the corners of those that
// contribute. A corner outside the frame is `zeros`, as many as there are channels: not another pixel with
// weight 0, because 0 times infinity is not 0.
template <typename T>
SIFA_INLINE void find_taps(const InterFrameAttention& call, const Row& row, int64_t x, int64_t m,
                           const T* zeros, Taps<T>& taps, Corners<T>* corners) {
  if (m < 0) {
    taps.count = 0;
    return;
  }
  taps.locate_at(row, x);
  const PixelStrides& strides = call.memory_strides;
  const T* frame = pixel<T>(call.memory, strides, row.n, m, 0, 0);
  for (int i = 0; i < taps.count; ++i) {
    const int p = taps.index[i];
    const bool has_top = taps.y_slope_low[p] != 0, has_bottom = taps.y_slope_high[p] != 0;
    const bool has_left = taps.x_slope_low[p] != 0, has_right = taps.x_slope_high[p] != 0;
    const T* top = frame + taps.y_low[p] * strides.row;
    const T* bottom = frame + taps.y_high[p] * strides.row;
    const int64_t left = taps.x_low[p] * strides.column, right = taps.x_high[p] * strides.column;
    corners[i] = {
        {has_top & has_left ? top + left : zeros, has_top & has_right ? top + right : zeros,
         has_bottom & has_left ? bottom + left : zeros, has_bottom & has_right ? bottom + right : zeros},
        {taps.y_weight_low[p] * taps.x_weight_low[p], taps.y_weight_low[p] * taps.x_weight_high[p],
         taps.y_weight_high[p] * taps.x_weight_low[p], taps.y_weight_high[p] * taps.x_weight_high[p]}};
  }
}

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

// Samples kTaps taps of one group: writes each sample, and returns the lanes of its product with the query.
template <int kTaps, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void sample_taps(const T* query, const Corners<T>* corners, int64_t channel, int64_t channels,
                             Real* samples, int64_t stride, Vector<Real, kNarrow<Real>>* products) {
  // Copies of our own: the compiler cannot know that the samples are not written over them.
  Corners<T> taps[kTaps];
  for (int i = 0; i < kTaps; ++i) taps[i] = corners[i].from(channel);
  ChannelSum<Real> sums[kTaps];
  for_channels<Real>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto q = load<kLanes>(query + c);
    for (int i = 0; i < kTaps; ++i) {
      Vector<Real, kLanes> value = load<kLanes>(taps[i].at[0] + c) * taps[i].weight[0];
      for (int j = 1; j < 4; ++j) value += load<kLanes>(taps[i].at[j] + c) * taps[i].weight[j];
      store<kLanes>(samples + i * stride + c, value);
      sums[i].template add<kLanes>(value * q);
    }
  });
  for (int i = 0; i < kTaps; ++i) products[i] = sums[i].lanes();
}

// target = (residual +) sum_i weights[i] * samples[i], over the channels of a group.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void weighted_sum(const T* residual, const Real* samples, int64_t stride, const Real* weights,
                              int count, int64_t channels, T* target) {
  for_channel_blocks<Real>(channels, [&](auto lanes, auto block, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value, kBlock = decltype(block)::value;
    Vector<Real, kLanes> sums[kBlock] = {};
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

template <typename T, typename Real = Accumulator<T>>
void forward_rows(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  const int64_t channels = call.channels / call.groups, stride = sample_stride(call);
  const Real scale = static_cast<Real>(call.scale);
  const T* zeros = clear_zeros<T>(call, scratch);
  Real* samples = samples_of<T>(call, scratch);
  Taps<T> taps(call);
  Corners<T> corners[kMaxTaps];
  Vector<Real, kNarrow<Real>> products[kMaxTaps];
  Real weights[kMaxTaps];

  for (int64_t index = begin; index < end; ++index) {
    const Row row = row_at(call, index);
    const int64_t m = neighbour_frame(call, row.t);
    for (int64_t x = 0; x < call.width; ++x) {
      find_taps(call, row, x, m, zeros, taps, corners);
      const T* query_pixel = pixel<T>(call.query, call.query_strides, row.n, row.t, row.y, x);
      T* output_pixel = static_cast<T*>(call.output) +
                        dense_pixel(call, call.frames, row.n, row.t, row.y, x) * call.channels;
      for (int64_t channel = 0; channel < call.channels; channel += channels) {
        const T* query = query_pixel + channel;
        int i = 0;
        for (; i + 2 <= taps.count; i += 2) {
          sample_taps<2>(query, corners + i, channel, channels, samples + i * stride, stride, products + i);
        }
        if (i < taps.count) {
          sample_taps<1>(query, corners + i, channel, channels, samples + i * stride, stride, products + i);
        }
        for (i = 0; i < taps.count; ++i) weights[i] = scale * sum_lanes<Real>(products[i]);
        normalise(call, taps.count, weights);
        weighted_sum(call.residual ? query : nullptr, samples, stride, weights, taps.count, channels,
                     output_pixel + channel);
      }
    }
  }
}

// From products with the four corners to those with the sample of tap p and its derivatives along y and x.
template <typename T, typename Lanes>
SIFA_INLINE void combine(const Taps<T>& taps, int p, const Lanes* corner, Lanes& sample, Lanes& dy,
                         Lanes& dx) {
  const Lanes low = corner[0] * taps.x_weight_low[p] + corner[1] * taps.x_weight_high[p];
  const Lanes high = corner[2] * taps.x_weight_low[p] + corner[3] * taps.x_weight_high[p];
  sample = low * taps.y_weight_low[p] + high * taps.y_weight_high[p];
  dy = low * taps.y_slope_low[p] + high * taps.y_slope_high[p];
  dx = (corner[0] * taps.x_slope_low[p] + corner[1] * taps.x_slope_high[p]) * taps.y_weight_low[p] +
       (corner[2] * taps.x_slope_low[p] + corner[3] * taps.x_slope_high[p]) * taps.y_weight_high[p];
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
void backward_query_rows(const InterFrameAttentionBackward& call, int64_t begin, int64_t end,
                         void* tap_gradients, void* scratch) {
  const int64_t channels = call.channels / call.groups, stride = sample_stride(call);
  const int64_t tap_count = call.kernel_size * call.kernel_size;
  const Real scale = static_cast<Real>(call.scale);
  const T* zeros = clear_zeros<T>(call, scratch);
  Real* samples = samples_of<T>(call, scratch);
  Taps<T> taps(call);
  Corners<T> corners[kMaxTaps];
  Real weights[kMaxTaps], logit_gradients[kMaxTaps];
  // Products of the query and of G with the sample and with its derivatives.
  Real query_dy[kMaxTaps], query_dx[kMaxTaps], grad_sample[kMaxTaps], grad_dy[kMaxTaps], grad_dx[kMaxTaps];
  Real offset_gradients[2 * kMaxTaps];

  for (int64_t index = begin; index < end; ++index) {
    const Row row = row_at(call, index);
    const int64_t m = neighbour_frame(call, row.t);
    for (int64_t x = 0; x < call.width; ++x) {
      find_taps(call, row, x, m, zeros, taps, corners);
      const int64_t position = dense_pixel(call, call.frames, row.n, row.t, row.y, x);
      Real* kept = static_cast<Real*>(tap_gradients) + position * tap_count * call.groups * 2;
      for (int64_t i = 0; i < 2 * tap_count; ++i) offset_gradients[i] = 0;

      for (int64_t group = 0; group < call.groups; ++group) {
        const int64_t channel = group * channels;
        const T* query = pixel<T>(call.query, call.query_strides, row.n, row.t, row.y, x) + channel;
        const T* grad =
            pixel<T>(call.grad_output, call.grad_output_strides, row.n, row.t, row.y, x) + channel;
        for (int i = 0; i < taps.count; ++i) {
          const Corners<T> tap = corners[i].from(channel);
          Real* sample = samples + i * stride;
          ChannelSum<Real> query_sums[4], grad_sums[4];
          for_channels<Real>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
            constexpr int kLanes = decltype(lanes)::value;
            const auto q = load<kLanes>(query + c), g = load<kLanes>(grad + c);
            Vector<Real, kLanes> value{};
            for (int j = 0; j < 4; ++j) {
              const auto corner = load<kLanes>(tap.at[j] + c);
              value += corner * tap.weight[j];
              query_sums[j].template add<kLanes>(q * corner);
              grad_sums[j].template add<kLanes>(g * corner);
            }
            store<kLanes>(sample + c, value);
          });
          using Lanes = Vector<Real, kNarrow<Real>>;
          const Lanes query_corners[4] = {query_sums[0].lanes(), query_sums[1].lanes(), query_sums[2].lanes(),
                                          query_sums[3].lanes()};
          const Lanes grad_corners[4] = {grad_sums[0].lanes(), grad_sums[1].lanes(), grad_sums[2].lanes(),
                                         grad_sums[3].lanes()};
          Lanes along, dy, dx;
          combine(taps, taps.index[i], query_corners, along, dy, dx);
          weights[i] = scale * sum_lanes<Real>(along);
          query_dy[i] = sum_lanes<Real>(dy);
          query_dx[i] = sum_lanes<Real>(dx);
          combine(taps, taps.index[i], grad_corners, along, dy, dx);
          grad_sample[i] = sum_lanes<Real>(along);
          grad_dy[i] = sum_lanes<Real>(dy);
          grad_dx[i] = sum_lanes<Real>(dx);
        }
        normalise(call, taps.count, weights);

        Real mean = 0;
        for (int i = 0; i < taps.count && call.softmax; ++i) mean += weights[i] * grad_sample[i];
        for (int i = 0; i < taps.count; ++i) {
          const int64_t p = taps.index[i];
          const Real logit =
              call.softmax ? scale * weights[i] * (grad_sample[i] - mean) : scale * grad_sample[i];
          logit_gradients[i] = logit;
          offset_gradients[2 * p] += weights[i] * grad_dy[i] + logit * query_dy[i];
          offset_gradients[2 * p + 1] += weights[i] * grad_dx[i] + logit * query_dx[i];
          kept[(p * call.groups + group) * 2] = weights[i];
          kept[(p * call.groups + group) * 2 + 1] = logit;
        }
        weighted_sum(call.residual ? grad : nullptr, samples, stride, logit_gradients, taps.count, channels,
                     static_cast<T*>(call.grad_query) + position * call.channels + channel);
      }
      store_grad_offset<T>(call, position * 2 * tap_count, 2 * tap_count, offset_gradients);
    }
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
  for_channels<Real>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
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

  Taps<T> taps(call);
  for (int64_t t = 0; t < call.frames; ++t) {
    if (neighbour_frame(call, t) != m) continue;
    for (int64_t y = 0; y < call.height; ++y) {
      for (int64_t x = 0; x < call.width; ++x) {
        taps.locate_at({n, t, y}, x);
        const int64_t position = dense_pixel(call, call.frames, n, t, y, x);
        const Real* kept = static_cast<const Real*>(tap_gradients) + position * tap_count * call.groups * 2;
        const T* query = pixel<T>(call.query, call.query_strides, n, t, y, x);
        const T* grad = pixel<T>(call.grad_output, call.grad_output_strides, n, t, y, x);
        for (int i = 0; i < taps.count; ++i) {
          const int p = taps.index[i];
          // The corners that exist and lie in [begin, end): 0, 1, 2 or 4.
          const bool has_row[2] = {
              taps.y_slope_low[p] != 0 && taps.y_low[p] >= begin && taps.y_low[p] < end,
              taps.y_slope_high[p] != 0 && taps.y_high[p] >= begin && taps.y_high[p] < end};
          const bool has_column[2] = {taps.x_slope_low[p] != 0, taps.x_slope_high[p] != 0};
          const int64_t rows[2] = {taps.y_low[p] - begin, taps.y_high[p] - begin};
          const int64_t columns[2] = {taps.x_low[p], taps.x_high[p]};
          const Real row_weights[2] = {taps.y_weight_low[p], taps.y_weight_high[p]};
          const Real column_weights[2] = {taps.x_weight_low[p], taps.x_weight_high[p]};
          Real* targets[4];
          Real corner_weights[4];
          int corners = 0;
          for (int row = 0; row < 2; ++row) {
            for (int column = 0; column < 2; ++column) {
              if (!has_row[row] || !has_column[column]) continue;
              targets[corners] = sums + rows[row] * row_size + columns[column] * call.channels;
              corner_weights[corners++] = row_weights[row] * column_weights[column];
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
      }
    }
  }
  if constexpr (!kInPlace) {
    for_channels<Real>((end - begin) * row_size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      constexpr int kLanes = decltype(lanes)::value;
      store<kLanes>(target + c, load<kLanes>(sums + c));
    });
  }
}

template <typename Run>
SIFA_INLINE void for_feature_type(ScalarKind kind, const Run& run) {
  switch (kind) {
    case ScalarKind::kFloat32:
      return run(float{});
    case ScalarKind::kFloat64:
      return run(double{});
    case ScalarKind::kFloat16:
      return run(Half{});
    case ScalarKind::kBFloat16:
      return run(BFloat16{});
  }
}

void forward(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  for_feature_type(call.features,
                   [&](auto type) { forward_rows<decltype(type)>(call, begin, end, scratch); });
}

void backward_query(const InterFrameAttentionBackward& call, int64_t begin, int64_t end, void* tap_gradients,
                    void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    backward_query_rows<decltype(type)>(call, begin, end, tap_gradients, scratch);
  });
}

void backward_memory(const InterFrameAttentionBackward& call, int64_t n, int64_t m, int64_t begin,
                     int64_t end, const void* tap_gradients, void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    backward_memory_rows<decltype(type)>(call, n, m, begin, end, tap_gradients, scratch);
  });
}

}  // namespace

#define SIFA_JOIN_(a, b) a##b
#define SIFA_JOIN(a, b) SIFA_JOIN_(a, b)
#define SIFA_STRING_(name) #name
#define SIFA_STRING(name) SIFA_STRING_(name)
#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _kernels)

extern const Kernels SIFA_TABLE;
const Kernels SIFA_TABLE = {SIFA_STRING(SIFA_CPU_CAPABILITY), forward, backward_query, backward_memory};

}  // namespace sifa::cpu
