// Argument checks of the operators, and the step from tensors to the parameter struct: the same for every
// device, and compiled into each of the libraries that register kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "inter_frame_attention.h"
#include "motion.h"

namespace sifa {

// These check every argument of an operator and return the parameters that are no addresses: sizes, options
// and element types. They throw std::runtime_error that names the operator, the argument, what was expected
// and what was given.
InterFrameAttention check_arguments(const torch::stable::Tensor& query, const torch::stable::Tensor& memory,
                                    const torch::stable::Tensor& offset, int64_t kernel_size,
                                    int64_t dilation, int64_t groups, std::optional<double> scale,
                                    int64_t frame_shift, const std::string& edge, bool softmax,
                                    bool residual);

// Checks that grad_output, of inter_frame_attention's backward, has the shape, element type and device of
// query.
void check_grad_output(const torch::stable::Tensor& grad_output, const torch::stable::Tensor& query);

MotionSaliency check_motion_saliency(const torch::stable::Tensor& query, const torch::stable::Tensor& memory,
                                     int64_t frame_shift, const std::string& edge, bool residual);

MotionSaliencyBackward check_motion_saliency_backward(const torch::stable::Tensor& grad_output,
                                                      const torch::stable::Tensor& query,
                                                      const torch::stable::Tensor& memory,
                                                      int64_t frame_shift, const std::string& edge,
                                                      bool residual);

MotionOffset check_motion_offset(const torch::stable::Tensor& query, const torch::stable::Tensor& memory,
                                 const torch::stable::Tensor& weight, int64_t frame_shift,
                                 const std::string& edge, bool residual);

// For the gradient of the weight, which the weight has no part in, `weight` is null: grad_output then says
// how many outputs there are.
MotionOffsetBackward check_motion_offset_backward(const torch::stable::Tensor& grad_output,
                                                  const torch::stable::Tensor& query,
                                                  const torch::stable::Tensor& memory,
                                                  const torch::stable::Tensor* weight, int64_t frame_shift,
                                                  const std::string& edge, bool residual);

// `features` itself if its channels are adjacent in memory, whatever its other strides: channels_last_3d
// tensors, the channels-last output of a 2-D backbone viewed as a clip, and slices of both are read in place.
// Anything else is converted to channels_last_3d, once.
torch::stable::Tensor with_adjacent_channels(const torch::stable::Tensor& features);

PixelStrides pixel_strides(const torch::stable::Tensor& features);
OffsetStrides offset_strides(const torch::stable::Tensor& offset);

// Puts the features into the parameter struct of any operator. They are converted where they have to be, so
// they must outlive the call.
template <typename Call>
void read_features(Call& call, torch::stable::Tensor& query, torch::stable::Tensor& memory) {
  query = with_adjacent_channels(query);
  memory = with_adjacent_channels(memory);
  call.query = query.const_data_ptr();
  call.query_strides = pixel_strides(query);
  call.memory = memory.const_data_ptr();
  call.memory_strides = pixel_strides(memory);
}

// The same of the gradient of the output.
template <typename Call>
void read_gradient(Call& call, torch::stable::Tensor& grad_output) {
  grad_output = with_adjacent_channels(grad_output);
  call.grad_output = grad_output.const_data_ptr();
  call.grad_output_strides = pixel_strides(grad_output);
}

// An uninitialised channels_last_3d tensor with the shape, element type and device of `like`.
torch::stable::Tensor empty_channels_last(const torch::stable::Tensor& like);
// The same with another number of channels.
torch::stable::Tensor empty_channels_last(const torch::stable::Tensor& like, int64_t channels);

}  // namespace sifa
