// The schemas of every operator of the library. Kernels register beside them, one file per device: cpu/ and
// cuda/.
#include <torch/csrc/stable/library.h>

// A backward is an operator of its own: the stable ABI has no autograd, so Python ties the two together,
// and passes `deterministic` because the stable ABI does not expose torch's global flag either.
STABLE_TORCH_LIBRARY(sifa, library) {
  library.def(
      "inter_frame_attention(Tensor query, Tensor memory, Tensor offset, int kernel_size=3, int dilation=1, "
      "int groups=1, float? scale=None, int frame_shift=1, str edge=\"clamp\", bool softmax=False, "
      "bool residual=True) -> Tensor");
  library.def(
      "inter_frame_attention_backward(Tensor grad_output, Tensor query, Tensor memory, Tensor offset, "
      "int kernel_size, int dilation, int groups, float? scale, int frame_shift, str edge, bool softmax, "
      "bool residual, bool deterministic) -> (Tensor, Tensor, Tensor)");

  library.def(
      "motion_saliency(Tensor query, Tensor memory, int frame_shift=1, str edge=\"clamp\", "
      "bool residual=False) -> Tensor");
  library.def(
      "motion_saliency_backward(Tensor grad_output, Tensor query, Tensor memory, int frame_shift, str edge, "
      "bool residual) -> (Tensor, Tensor)");

  library.def(
      "motion_offset(Tensor query, Tensor memory, Tensor weight, int frame_shift=1, str edge=\"clamp\", "
      "bool residual=False) -> Tensor");
  // Two, because training without one of the gradients is common. On CUDA there are none:
  // python/sifa/ops/motion.py composes the gradients of motion_saliency's and torch's convolution's.
  library.def(
      "motion_offset_backward_features(Tensor grad_output, Tensor query, Tensor memory, Tensor weight, "
      "int frame_shift, str edge, bool residual) -> (Tensor, Tensor)");
  library.def(
      "motion_offset_backward_weight(Tensor grad_output, Tensor query, Tensor memory, int frame_shift, "
      "str edge, bool residual) -> Tensor");
}
