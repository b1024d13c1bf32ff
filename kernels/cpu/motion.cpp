// sifa::motion_saliency, sifa::motion_offset and their backward on the CPU: turns tensors into parameter
// structs, cuts the work and hands it to torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "../checks.h"
#include "motion_kernels.h"
#include "scratch.h"

namespace sifa::cpu {
namespace {

using torch::stable::Tensor;

// Pieces per thread that are worth a thread, of so many elements or products each.
int64_t grain(int64_t per_piece, int64_t worth) {
  return std::max<int64_t>(1, worth / std::max<int64_t>(1, per_piece));
}
constexpr int64_t kElements = 1 << 15;  // torch's own loops ask for as many
constexpr int64_t kProducts = 1 << 18;

void read_weight(MotionOffset& call, const Tensor& weight) {
  call.weight = weight.const_data_ptr();
  call.weight_strides = {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

Tensor motion_saliency(Tensor query, Tensor memory, int64_t frame_shift, std::string edge, bool residual) {
  MotionSaliency call = check_motion_saliency(query, memory, frame_shift, edge, residual);
  Tensor output = empty_channels_last(query);
  if (output.numel() == 0) return output;

  read_features(call, query, memory);
  call.output = output.mutable_data_ptr();
  const MotionSaliencyKernels& table = motion_saliency_kernels();
  torch::stable::parallel_for(0, call.batch * call.frames * call.height,
                              grain(call.width * call.channels, kElements),
                              [&](int64_t begin, int64_t end) { table.forward(call, begin, end); });
  return output;
}

std::tuple<Tensor, Tensor> motion_saliency_backward(Tensor grad_output, Tensor query, Tensor memory,
                                                    int64_t frame_shift, std::string edge, bool residual) {
  MotionSaliencyBackward call =
      check_motion_saliency_backward(grad_output, query, memory, frame_shift, edge, residual);
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
  const MotionSaliencyKernels& table = motion_saliency_kernels();
  const int64_t per_pixel = (call.frames + call.memory_frames) * call.channels;
  torch::stable::parallel_for(0, call.batch * call.height * call.width, grain(per_pixel, kElements),
                              [&](int64_t begin, int64_t end) { table.backward(call, begin, end); });
  return {grad_query, grad_memory};
}

Tensor motion_offset(Tensor query, Tensor memory, Tensor weight, int64_t frame_shift, std::string edge,
                     bool residual) {
  MotionOffset call = check_motion_offset(query, memory, weight, frame_shift, edge, residual);
  Tensor output = empty_channels_last(query, call.outputs);
  if (query.numel() == 0) return torch::stable::zero_(output);  // not empty where there are no channels

  read_features(call, query, memory);
  call.output = output.mutable_data_ptr();
  read_weight(call, weight);
  const MotionOffsetKernels& table = motion_offset_kernels();
  const Scratch weights = allocate(table.weight_bytes(call));
  torch::stable::parallel_for(
      0, call.channels, grain(16 * call.outputs, kElements),
      [&](int64_t begin, int64_t end) { table.transform_weights(call, begin, end, weights.get()); });
  // Of every pixel of a strip's four rows, 2.25 products per output and channel.
  const int64_t per_strip = 9 * call.width * call.channels * call.outputs;
  torch::stable::parallel_for(0, table.strips(call), grain(per_strip, kProducts),
                              [&](int64_t begin, int64_t end) {
                                const Scratch scratch = allocate(table.scratch_bytes(call));
                                table.forward(call, weights.get(), begin, end, scratch.get());
                              });
  return output;
}

std::tuple<Tensor, Tensor> motion_offset_backward_features(Tensor grad_output, Tensor query, Tensor memory,
                                                           Tensor weight, int64_t frame_shift,
                                                           std::string edge, bool residual) {
  MotionOffsetBackward call =
      check_motion_offset_backward(grad_output, query, memory, &weight, frame_shift, edge, residual);
  Tensor grad_query = empty_channels_last(query);
  Tensor grad_memory = empty_channels_last(memory);
  if (query.numel() == 0 || memory.numel() == 0) {
    torch::stable::zero_(grad_query);
    torch::stable::zero_(grad_memory);
    return {grad_query, grad_memory};
  }

  read_features(call, query, memory);
  read_weight(call, weight);
  read_gradient(call, grad_output);
  call.grad_query = grad_query.mutable_data_ptr();
  call.grad_memory = grad_memory.mutable_data_ptr();
  const MotionOffsetBackwardKernels& table = motion_offset_backward_kernels();
  const Scratch weights = allocate(table.weight_bytes(call));
  torch::stable::parallel_for(
      0, call.outputs, grain(16 * call.channels, kElements),
      [&](int64_t begin, int64_t end) { table.transform_weights(call, begin, end, weights.get()); });
  // Of a frame of the memory, on average; a skipped edge leaves it one at most.
  const int64_t readers = call.clamp ? std::max<int64_t>(1, call.frames / call.memory_frames) : 1;
  const int64_t per_tile = 36 * readers * call.channels * call.outputs;
  torch::stable::parallel_for(0, table.tiles(call), grain(per_tile, kProducts),
                              [&](int64_t begin, int64_t end) {
                                const Scratch scratch = allocate(table.feature_scratch_bytes(call));
                                table.features(call, weights.get(), begin, end, scratch.get());
                              });
  return {grad_query, grad_memory};
}

Tensor motion_offset_backward_weight(Tensor grad_output, Tensor query, Tensor memory, int64_t frame_shift,
                                     std::string edge, bool residual) {
  MotionOffsetBackward call =
      check_motion_offset_backward(grad_output, query, memory, nullptr, frame_shift, edge, residual);
  const int64_t sizes[] = {call.outputs, call.channels, 3, 3};
  Tensor grad_weight =
      torch::stable::empty({sizes, 4}, query.scalar_type(), std::nullopt, query.device(), std::nullopt);
  if (query.numel() == 0 || memory.numel() == 0) return torch::stable::zero_(grad_weight);

  read_features(call, query, memory);
  read_gradient(call, grad_output);
  call.grad_weight = grad_weight.mutable_data_ptr();
  const MotionOffsetBackwardKernels& table = motion_offset_backward_kernels();
  const Scratch parts = allocate(table.part_bytes(call));
  const int64_t count = table.parts(call);
  const int64_t pixels = call.batch * call.frames * call.height * call.width;
  const int64_t per_part = 9 * pixels * call.channels * call.outputs / (4 * count);
  torch::stable::parallel_for(0, count, grain(per_part, kProducts), [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(table.weight_scratch_bytes(call));
    table.weight_parts(call, begin, end, parts.get(), scratch.get());
  });
  torch::stable::parallel_for(
      0, call.outputs, grain(9 * count * call.channels, kElements),
      [&](int64_t begin, int64_t end) { table.weight(call, parts.get(), begin, end); });
  return grad_weight;
}

}  // namespace
}  // namespace sifa::cpu

STABLE_TORCH_LIBRARY_IMPL(sifa, CPU, library) {
  library.impl("motion_saliency", TORCH_BOX(&sifa::cpu::motion_saliency));
  library.impl("motion_saliency_backward", TORCH_BOX(&sifa::cpu::motion_saliency_backward));
  library.impl("motion_offset", TORCH_BOX(&sifa::cpu::motion_offset));
  library.impl("motion_offset_backward_features", TORCH_BOX(&sifa::cpu::motion_offset_backward_features));
  library.impl("motion_offset_backward_weight", TORCH_BOX(&sifa::cpu::motion_offset_backward_weight));
}
