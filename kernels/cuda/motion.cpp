// sifa::motion_saliency and its backward on CUDA: turns tensors into the parameter structs and enqueues the
// kernels on the current stream of the query's device. sifa::motion_offset has no kernel here: see
// python/sifa/ops/motion.py.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>

#include "../checks.h"
#include "launch.h"
#include "stream.h"

namespace sifa::cuda {
namespace {

using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

Tensor saliency(Tensor query, Tensor memory, int64_t frame_shift, std::string edge, bool residual) {
  MotionSaliency call = check_motion_saliency(query, memory, frame_shift, edge, residual);
  const DeviceGuard guard(query.get_device_index());
  Tensor output = empty_channels_last(query);
  if (output.numel() == 0) return output;

  read_features(call, query, memory);
  call.output = output.mutable_data_ptr();
  motion_saliency(call, current_stream(query));
  return output;
}

std::tuple<Tensor, Tensor> saliency_backward(Tensor grad_output, Tensor query, Tensor memory,
                                             int64_t frame_shift, std::string edge, bool residual) {
  MotionSaliencyBackward call =
      check_motion_saliency_backward(grad_output, query, memory, frame_shift, edge, residual);
  const DeviceGuard guard(query.get_device_index());
  Tensor grad_query = empty_channels_last(query);
  Tensor grad_memory = empty_channels_last(memory);
  if (query.numel() == 0) {
    torch::stable::zero_(grad_memory);
    return {grad_query, grad_memory};
  }

  read_features(call, query, memory);
  grad_output = with_adjacent_channels(grad_output);
  call.grad_output = grad_output.const_data_ptr();
  call.grad_output_strides = pixel_strides(grad_output);
  call.grad_query = grad_query.mutable_data_ptr();
  call.grad_memory = grad_memory.mutable_data_ptr();
  const cudaStream_t stream = current_stream(query);
  motion_saliency_backward_query(call, stream);
  if (grad_memory.numel() > 0) motion_saliency_backward_memory(call, stream);
  return {grad_query, grad_memory};
}

}  // namespace
}  // namespace sifa::cuda

STABLE_TORCH_LIBRARY_IMPL(sifa, CUDA, library) {
  library.impl("motion_saliency", TORCH_BOX(&sifa::cuda::saliency));
  library.impl("motion_saliency_backward", TORCH_BOX(&sifa::cuda::saliency_backward));
}
