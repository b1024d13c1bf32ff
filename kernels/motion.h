// What one call of sifa::motion_saliency or sifa::motion_offset means: its parameters as plain structs,
// shared by the CPU and the CUDA kernels. Knows nothing of torch.
//
// Source of the equations: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022,
// section 3. With f_t a query frame and f_n the memory frame n(t) that it reads,
//
//   saliency  m_t = sigmoid(f_n - f_t) * f_n  (+ f_n)
//   offset    o_t = the 3x3 convolution of m_t, with a padding of one zero and no bias
//
// A frame that reads no memory frame (frame_shift without clamp) has saliency 0.
#pragma once

#include <cstdint>

#include "clip.h"

namespace sifa {

// The element type of query, memory and output is `features`. `output` is dense channels-last:
// dense_strides(channels, frames, height, width).
struct MotionSaliency {
  int64_t batch, channels, frames, memory_frames;
  int64_t height, width;
  int64_t frame_shift;  // within [-frames, memory_frames], which covers every effect it can have
  bool clamp;           // a neighbour outside the memory is clamped into it; otherwise there is none
  bool residual;        // adds f_n
  ScalarKind features;

  const void* query;
  PixelStrides query_strides;
  const void* memory;
  PixelStrides memory_strides;
  void* output;
};

// The gradients have the element type and the shape of what they are gradients of, and are dense
// channels-last. `output` is not used.
struct MotionSaliencyBackward : MotionSaliency {
  const void* grad_output;
  PixelStrides grad_output_strides;
  void* grad_query;
  void* grad_memory;
};

struct WeightStrides {
  int64_t output, channel, row, column;
};

// `output` has `outputs` channels: dense_strides(outputs, frames, height, width). The element type of the
// weight (outputs, channels, 3, 3) is `features`.
struct MotionOffset : MotionSaliency {
  int64_t outputs;
  const void* weight;
  WeightStrides weight_strides;
};

// grad_output has the shape and the element type of `output`, which is not used, and grad_weight those of the
// weight; it is dense. grad_query and grad_memory are as those of the saliency.
struct MotionOffsetBackward : MotionOffset {
  const void* grad_output;
  PixelStrides grad_output_strides;
  void* grad_query;
  void* grad_memory;
  void* grad_weight;
};

// The query frames that read one memory frame: [begin, end).
struct FrameRange {
  int64_t begin, end;
};

// The query frames t with neighbour_frame(call, t) == m. They are adjacent, because n(t) never decreases.
SIFA_HOST_DEVICE FrameRange readers_of(const MotionSaliency& call, int64_t m) {
  const bool takes_earlier = call.clamp && m == 0, takes_later = call.clamp && m == call.memory_frames - 1;
  int64_t begin = takes_earlier ? 0 : m - call.frame_shift;
  int64_t end = takes_later ? call.frames : m - call.frame_shift + 1;
  begin = begin < 0 ? 0 : begin;
  end = end > call.frames ? call.frames : end;
  return {begin, end};
}

}  // namespace sifa
