// What one call of sifa::inter_frame_attention means: its parameters as a plain struct, and the geometry of
// its taps, shared by the CPU and the CUDA kernels. Knows nothing of torch.
//
// Source of the equations: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022,
// section 3. For each pixel of query frame t, tap p = i * kernel_size + j reads the neighbour frame n(t) of
// the memory, bilinearly, at
//
//   (y + (i - (kernel_size - 1) / 2) * dilation + dy,  x + (j - (kernel_size - 1) / 2) * dilation + dx)
//
// where channels 2p and 2p + 1 of the offset hold (dy, dx) in pixels. With s_p the sample and q the query
// pixel, both cut into groups of channels:
//
//   w_p = scale * <q, s_p>,  or its softmax over the taps        A = sum_p w_p s_p        output = (q +) A
#pragma once

#include <cstdint>

#include "clip.h"

namespace sifa {

struct OffsetStrides {
  int64_t batch, channel, frame, row, column;
};

// Forward pass. The element type of query, memory and output is `features`; that of offset is `offsets`,
// which is `features` or kFloat32. `output` is dense channels-last: dense_strides(channels, frames, height,
// width).
struct InterFrameAttention {
  int64_t batch, channels, frames, memory_frames;
  int64_t height, width;  // up to kMaxExtent
  int64_t kernel_size;    // odd, 1 to 9
  int64_t dilation;       // 1 to kMaxExtent
  int64_t groups;         // divides channels
  int64_t frame_shift;    // within [-frames, memory_frames], which covers every effect it can have
  double scale;
  bool clamp;  // a neighbour outside the memory is clamped into it; otherwise its frame has no aggregate
  bool softmax;
  bool residual;
  ScalarKind features, offsets;

  const void* query;
  PixelStrides query_strides;
  const void* memory;
  PixelStrides memory_strides;
  const void* offset;
  OffsetStrides offset_strides;
  void* output;
};

// Backward pass. The gradients have the element types and shapes of what they are gradients of, and are dense
// channels-last. `output` is not used.
struct InterFrameAttentionBackward : InterFrameAttention {
  const void* grad_output;
  PixelStrides grad_output_strides;
  void* grad_query;
  void* grad_memory;
  void* grad_offset;
};

// The largest height, width and dilation: so far a float32 counts pixels exactly, and int32 holds any tap.
constexpr int64_t kMaxExtent = int64_t(1) << 24;

// Where tap `index` (i or j) of a window of `kernel_size` around `coordinate` lies along one axis, in pixels.
// The sum of integers is exact, so every implementation rounds once, the same way, and drops the same taps.
template <typename Real>
SIFA_HOST_DEVICE Real tap_position(int32_t coordinate, int32_t index, int32_t kernel_size, int32_t dilation,
                                   Real delta) {
  return static_cast<Real>(coordinate + (index - (kernel_size - 1) / 2) * dilation) + delta;
}

// One axis of a bilinear sample: the two rows (or columns) it reads, their weights, and the derivatives of
// these weights with respect to the position. A corner outside the frame counts as 0: its weight and slope
// are 0, and its index is the other corner's, which is a valid one.
template <typename Real>
struct AxisSample {
  int32_t low, high;
  Real weight_low, weight_high;
  Real slope_low, slope_high;
};

// Fills `sample` and returns true if the tap contributes, that is if -1 < position < size. NaN and infinite
// positions fail the comparison; nothing is converted to an integer before it is known to be in range. Free
// of branches, so that a loop over taps can be vectorised.
template <typename Real>
SIFA_HOST_DEVICE bool locate(Real position, int64_t size, AxisSample<Real>& sample) {
  const bool contributes = (position > Real(-1)) & (position < static_cast<Real>(size));
  const Real inside = contributes ? position : Real(0);
  const int32_t truncated = static_cast<int32_t>(inside);
  const int32_t low = truncated - (static_cast<Real>(truncated) > inside);  // floor(inside)
  const Real fraction = inside - static_cast<Real>(low);
  const int32_t has_low = low >= 0;
  const int32_t has_high = low + 1 < static_cast<int32_t>(size);
  sample.low = low + 1 - has_low;
  sample.high = low + has_high;
  sample.slope_low = -static_cast<Real>(has_low);
  sample.slope_high = static_cast<Real>(has_high);
  sample.weight_low = static_cast<Real>(has_low) * (Real(1) - fraction);
  sample.weight_high = static_cast<Real>(has_high) * fraction;
  return contributes;
}

}  // namespace sifa
