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

// Bytes of the `scratch` of the backward, which is aligned to 16 bytes. The pointers of `call` are set,
// except those of the gradients.
int64_t backward_scratch_bytes(const InterFrameAttentionBackward& call);

// Writes call.grad_query and call.grad_offset, and fills `scratch` for one of those below.
void backward_query(const InterFrameAttentionBackward& call, void* scratch, cudaStream_t stream);

// Writes call.grad_memory; where many terms meet in one element, their order may change from run to run.
void backward_memory(const InterFrameAttentionBackward& call, void* scratch, cudaStream_t stream);

// The same in one fixed order, slowly. Adds to `sums` instead, which has the shape of the memory, dense
// channels-last, and starts at zero: in float64 for float64 features, else in float32.
void backward_memory_in_order(const InterFrameAttentionBackward& call, void* scratch, void* sums,
                              cudaStream_t stream);

// Of these, only the tensor that is written must not be empty.

void motion_saliency(const MotionSaliency& call, cudaStream_t stream);

// Writes grad_query.
void motion_saliency_backward_query(const MotionSaliencyBackward& call, cudaStream_t stream);

// Writes grad_memory, of which every element is summed by one thread, in the order of the frames.
void motion_saliency_backward_memory(const MotionSaliencyBackward& call, cudaStream_t stream);

}  // namespace sifa::cuda
