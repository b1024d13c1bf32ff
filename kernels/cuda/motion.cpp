// sifa::motion_saliency, its backward and sifa::motion_offset on CUDA: turns tensors into the parameter
// structs and enqueues the kernels on the current stream of the query's device. The convolution of the last
// is torch's.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "../checks.h"
#include "launch.h"
#include "stream.h"

namespace sifa::cuda {
namespace {

using torch::headeronly::MemoryFormat;
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
  read_gradient(call, grad_output);
  call.grad_query = grad_query.mutable_data_ptr();
  call.grad_memory = grad_memory.mutable_data_ptr();
  const cudaStream_t stream = current_stream(query);
  motion_saliency_backward_query(call, stream);
  if (grad_memory.numel() > 0) motion_saliency_backward_memory(call, stream);
  return {grad_query, grad_memory};
}

// aten::convolution of (N, C, H, W) with (O, C, 3, 3), padded with one zero. The stable ABI has no function
// for it.
Tensor convolve(const Tensor& frames, const Tensor& weight) {
  using torch::stable::detail::from;
  constexpr int64_t kOnes[] = {1, 1}, kZeros[] = {0, 0};
  const torch::headeronly::IntHeaderOnlyArrayRef ones(kOnes, 2), zeros(kZeros, 2);
  const int64_t groups = 1;
  // Bias; stride, padding, dilation; transposed, padding of the output, groups.
  std::array<StableIValue, 9> stack{from(frames), from(weight), from(std::optional<Tensor>()),
                                    from(ones),   from(ones),   from(ones),
                                    from(false),  from(zeros),  from(groups)};
  // Not STABLE_TORCH_ERROR_CODE_CHECK: torch 2.11 does not have it.
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor offset(Tensor query, Tensor memory, Tensor weight, int64_t frame_shift, std::string edge,
              bool residual) {
  const MotionOffset call = check_motion_offset(query, memory, weight, frame_shift, edge, residual);
  if (query.numel() == 0) {  // which torch refuses to convolve
    const DeviceGuard guard(query.get_device_index());
    Tensor output = empty_channels_last(query, call.outputs);
    return torch::stable::zero_(output);
  }

  // In channels-last memory both foldings are views.
  const Tensor frames = torch::stable::transpose(saliency(query, memory, frame_shift, edge, residual), 1, 2);
  const int64_t folded[] = {call.batch * call.frames, call.channels, call.height, call.width};
  const int64_t unfolded[] = {call.batch, call.frames, call.outputs, call.height, call.width};
  const Tensor output = convolve(torch::stable::reshape(frames, {folded, 4}), weight);
  return torch::stable::contiguous(
      torch::stable::transpose(torch::stable::reshape(output, {unfolded, 5}), 1, 2),
      MemoryFormat::ChannelsLast3d);
}

}  // namespace
}  // namespace sifa::cuda

STABLE_TORCH_LIBRARY_IMPL(sifa, CUDA, library) {
  library.impl("motion_saliency", TORCH_BOX(&sifa::cuda::saliency));
  library.impl("motion_saliency_backward", TORCH_BOX(&sifa::cuda::saliency_backward));
  library.impl("motion_offset", TORCH_BOX(&sifa::cuda::offset));
}
