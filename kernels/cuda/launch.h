// What the CUDA kernels offer to the file that knows torch: plain structs of device pointers, and a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../inter_frame_attention.h"
#include "../motion.h"

namespace sifa::cuda {

// The functions below only enqueue work on `stream`, on the current device, and throw std::runtime_error if
// that fails. Nothing may be empty: not one of batch, channels, frames, height and width is 0.

void forward(const InterFrameAttention& call, cudaStream_t stream);

// Bytes of `tap_gradients`, the scratch of the backward, which is aligned to 16 bytes.
int64_t tap_gradient_bytes(const InterFrameAttention& call);

// Writes call.grad_query and call.grad_offset, and fills `tap_gradients` for backward_memory.
void backward_query(const InterFrameAttentionBackward& call, void* tap_gradients, cudaStream_t stream);

// Adds to `sums`, which has the shape of the memory, dense channels-last, and starts at zero: in float64 for
// float64 features, else in float32. `deterministic` adds in one fixed order, slowly; otherwise with atomic
// additions.
void backward_memory(const InterFrameAttentionBackward& call, const void* tap_gradients, void* sums,
                     bool deterministic, cudaStream_t stream);

// Of these, only the tensor that is written must not be empty.

void motion_saliency(const MotionSaliency& call, cudaStream_t stream);

// Writes grad_query.
void motion_saliency_backward_query(const MotionSaliencyBackward& call, cudaStream_t stream);

// Writes grad_memory, of which every element is summed by one thread, in the order of the frames.
void motion_saliency_backward_memory(const MotionSaliencyBackward& call, cudaStream_t stream);

}  // namespace sifa::cuda
