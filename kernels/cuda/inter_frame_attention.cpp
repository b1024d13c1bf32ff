// sifa::inter_frame_attention and its backward on CUDA: turns tensors into the parameter struct and enqueues
// the kernels on the current stream of the query's device.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>

#include "../checks.h"
#include "launch.h"
#include "stream.h"

namespace sifa::cuda {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

Tensor inter_frame_attention(Tensor query, Tensor memory, Tensor offset, int64_t kernel_size,
                             int64_t dilation, int64_t groups, std::optional<double> scale,
                             int64_t frame_shift, std::string edge, bool softmax, bool residual) {
  InterFrameAttention call = check_arguments(query, memory, offset, kernel_size, dilation, groups, scale,
                                             frame_shift, edge, softmax, residual);
  const DeviceGuard guard(query.get_device_index());
  Tensor output = empty_channels_last(query);
  if (output.numel() == 0) return output;

  read_features(call, query, memory);
  call.offset = offset.const_data_ptr();
  call.offset_strides = offset_strides(offset);
  call.output = output.mutable_data_ptr();
  forward(call, current_stream(query));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> inter_frame_attention_backward(
    Tensor grad_output, Tensor query, Tensor memory, Tensor offset, int64_t kernel_size, int64_t dilation,
    int64_t groups, std::optional<double> scale, int64_t frame_shift, std::string edge, bool softmax,
    bool residual, bool deterministic) {
  InterFrameAttentionBackward call{};
  static_cast<InterFrameAttention&>(call) = check_arguments(
      query, memory, offset, kernel_size, dilation, groups, scale, frame_shift, edge, softmax, residual);
  check_grad_output(grad_output, query);
  const DeviceGuard guard(query.get_device_index());
  Tensor grad_query = empty_channels_last(query);
  Tensor grad_memory = empty_channels_last(memory);
  Tensor grad_offset = empty_channels_last(offset);
  if (query.numel() == 0) {
    torch::stable::zero_(grad_memory);
    torch::stable::zero_(grad_offset);
    return {grad_query, grad_memory, grad_offset};
  }

  read_features(call, query, memory);
  read_gradient(call, grad_output);
  call.offset = offset.const_data_ptr();
  call.offset_strides = offset_strides(offset);
  call.grad_query = grad_query.mutable_data_ptr();
  call.grad_offset = grad_offset.mutable_data_ptr();

  const cudaStream_t stream = current_stream(query);
  const int64_t bytes = backward_scratch_bytes(call);
  const Tensor buffer = torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, query.device());
  void* const scratch = buffer.mutable_data_ptr();
  backward_query(call, scratch, stream);
  if (grad_memory.numel() == 0) return {grad_query, grad_memory, grad_offset};
  if (!deterministic) {
    call.grad_memory = grad_memory.mutable_data_ptr();
    backward_memory(call, scratch, stream);
    return {grad_query, grad_memory, grad_offset};
  }

  // Many terms meet in one element: half and bfloat16 are summed in float32 and rounded once.
  const bool in_place = call.features == ScalarKind::kFloat32 || call.features == ScalarKind::kFloat64;
  Tensor sums = grad_memory;
  if (!in_place) {
    sums = torch::stable::empty(memory.sizes(), ScalarType::Float, std::nullopt, memory.device(),
                                std::nullopt, MemoryFormat::ChannelsLast3d);
  }
  torch::stable::zero_(sums);
  backward_memory_in_order(call, scratch, sums.mutable_data_ptr(), stream);
  if (!in_place) torch::stable::copy_(grad_memory, sums);
  return {grad_query, grad_memory, grad_offset};
}

}  // namespace
}  // namespace sifa::cuda

STABLE_TORCH_LIBRARY_IMPL(sifa, CUDA, library) {
  library.impl("inter_frame_attention", TORCH_BOX(&sifa::cuda::inter_frame_attention));
  library.impl("inter_frame_attention_backward", TORCH_BOX(&sifa::cuda::inter_frame_attention_backward));
}
