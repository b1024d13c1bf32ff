// Argument checks of the operators: one sentence per mistake, the same on every device.
#include "checks.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

namespace sifa {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws what is wrong with an argument of one operator. STD_TORCH_CHECK would put a function name and a
// source path before the sentence.
struct Require {
  const char* operator_name;

  template <typename... Parts>
  void operator()(bool condition, const Parts&... parts) const {
    if (condition) return;
    std::ostringstream message;
    message << operator_name << ": ";
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }
};

// Named in a message, which every call of an operator would otherwise write to throw it away.
struct ShapeOf {
  const Tensor& tensor;
};

std::ostream& operator<<(std::ostream& stream, const ShapeOf& shape) {
  stream << shape.tensor.dim() << "-D (";
  for (int64_t axis = 0; axis < shape.tensor.dim(); ++axis) {
    stream << (axis ? ", " : "") << shape.tensor.size(axis);
  }
  return stream << ")";
}

std::string dtype_name(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(type);
  }
}

std::string device_name(const Tensor& tensor) {
  const auto device = tensor.device();
  if (device.type() == DeviceType::CPU) return "cpu";
  const std::string type = device.type() == DeviceType::CUDA
                               ? "cuda"
                               : "device type " + std::to_string(static_cast<int>(device.type()));
  return type + ":" + std::to_string(device.index());
}

bool same_device(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() &&
         (a.device().type() == DeviceType::CPU || a.device().index() == b.device().index());
}

ScalarKind feature_kind(const Require& require, const Tensor& query) {
  switch (query.scalar_type()) {
    case ScalarType::Float:
      return ScalarKind::kFloat32;
    case ScalarType::Double:
      return ScalarKind::kFloat64;
    case ScalarType::Half:
      return ScalarKind::kFloat16;
    case ScalarType::BFloat16:
      return ScalarKind::kBFloat16;
    default:
      require(false, "query must be float32, float64, float16 or bfloat16, got ", dtype_name(query));
      return ScalarKind::kFloat32;
  }
}

void check_rank(const Require& require, const Tensor& tensor, const char* name, const char* axes) {
  require(tensor.dim() == 5, name, " must be 5-D ", axes, ", got ", ShapeOf{tensor});
}

void check_size(const Require& require, const Tensor& tensor, const char* name, int64_t axis,
                const char* what, const Tensor& query) {
  require(tensor.size(axis) == query.size(axis), name, " must have the ", what, " of query (",
          query.size(axis), "), got ", tensor.size(axis));
}

void check_height_and_width(const Require& require, const Tensor& tensor, const char* name,
                            const Tensor& query) {
  require(tensor.size(3) == query.size(3) && tensor.size(4) == query.size(4), name,
          " must have the height and width of query (", query.size(3), "x", query.size(4), "), got ",
          tensor.size(3), "x", tensor.size(4));
}

void check_device(const Require& require, const Tensor& tensor, const char* name, const Tensor& query) {
  require(same_device(tensor, query), name, " must be on the device of query (", device_name(query),
          "), got ", device_name(tensor));
}

void check_edge(const Require& require, const std::string& edge) {
  require(edge == "clamp" || edge == "skip", "edge must be \"clamp\" or \"skip\", got \"", edge, "\"");
}

void check_dtype(const Require& require, const Tensor& tensor, const char* name, const Tensor& query) {
  require(tensor.scalar_type() == query.scalar_type(), name, " must have the dtype of query (",
          dtype_name(query), "), got ", dtype_name(tensor));
}

// What the operators have in common: sizes of the features, and which frame reads which.
template <typename Call>
void fill_sizes(const Require& require, Call& call, const Tensor& query, const Tensor& memory,
                int64_t frame_shift, const std::string& edge) {
  call.batch = query.size(0);
  call.channels = query.size(1);
  call.frames = query.size(2);
  call.height = query.size(3);
  call.width = query.size(4);
  call.memory_frames = memory.size(2);
  call.clamp = edge == "clamp";
  require(!call.clamp || call.memory_frames > 0 || call.frames == 0,
          "memory must have at least one frame, got 0");
  call.frame_shift = std::clamp(frame_shift, -call.frames, call.memory_frames);
}

void check_memory(const Require& require, const Tensor& memory, const Tensor& query) {
  check_size(require, memory, "memory", 0, "batch size", query);
  check_size(require, memory, "memory", 1, "channels", query);
  check_height_and_width(require, memory, "memory", query);
}

void check_motion(const Require& require, MotionSaliency& call, const Tensor& query, const Tensor& memory,
                  int64_t frame_shift, const std::string& edge, bool residual) {
  check_rank(require, query, "query", "(N, C, T, H, W)");
  check_rank(require, memory, "memory", "(N, C, M, H, W)");
  check_edge(require, edge);
  check_device(require, memory, "memory", query);
  call.features = feature_kind(require, query);
  check_dtype(require, memory, "memory", query);
  check_memory(require, memory, query);
  fill_sizes(require, call, query, memory, frame_shift, edge);
  call.residual = residual;
}

// All of it but its number of channels.
void check_gradient(const Require& require, const Tensor& grad_output, const char* axes,
                    const Tensor& query) {
  check_rank(require, grad_output, "grad_output", axes);
  check_device(require, grad_output, "grad_output", query);
  check_dtype(require, grad_output, "grad_output", query);
  check_size(require, grad_output, "grad_output", 0, "batch size", query);
  check_size(require, grad_output, "grad_output", 2, "frames", query);
  check_height_and_width(require, grad_output, "grad_output", query);
}

void check_gradient(const Require& require, const Tensor& grad_output, const Tensor& query) {
  check_gradient(require, grad_output, "(N, C, T, H, W)", query);
  check_size(require, grad_output, "grad_output", 1, "channels", query);
}

void check_weight(const Require& require, MotionOffset& call, const Tensor& weight, const Tensor& query) {
  require(weight.dim() == 4, "weight must be 4-D (O, C, 3, 3), got ", ShapeOf{weight});
  check_device(require, weight, "weight", query);
  check_dtype(require, weight, "weight", query);
  require(
      weight.size(0) >= 1 && weight.size(1) == call.channels && weight.size(2) == 3 && weight.size(3) == 3,
      "weight must have the shape (O, C, 3, 3) with at least 1 output and the ", call.channels,
      " channels of query, got ", ShapeOf{weight});
  call.outputs = weight.size(0);
}

}  // namespace

InterFrameAttention check_arguments(const Tensor& query, const Tensor& memory, const Tensor& offset,
                                    int64_t kernel_size, int64_t dilation, int64_t groups,
                                    std::optional<double> scale, int64_t frame_shift, const std::string& edge,
                                    bool softmax, bool residual) {
  const Require require{"inter_frame_attention"};
  check_rank(require, query, "query", "(N, C, T, H, W)");
  check_rank(require, memory, "memory", "(N, C, M, H, W)");
  check_rank(require, offset, "offset", "(N, 2*kernel_size^2, T, H, W)");

  require(kernel_size >= 1 && kernel_size <= 9 && kernel_size % 2 == 1,
          "kernel_size must be odd and between 1 and 9, got ", kernel_size);
  require(dilation >= 1, "dilation must be at least 1, got ", dilation);
  require(dilation <= kMaxExtent, "dilation must be at most ", kMaxExtent, ", got ", dilation);
  require(groups >= 1, "groups must be at least 1, got ", groups);
  require(query.size(1) % groups == 0, "groups must divide the ", query.size(1), " channels of query, got ",
          groups);
  require(!scale || std::isfinite(*scale), "scale must be finite, got ", scale.value_or(0));
  check_edge(require, edge);

  check_device(require, memory, "memory", query);
  check_device(require, offset, "offset", query);

  require(query.size(3) <= kMaxExtent && query.size(4) <= kMaxExtent,
          "query must have a height and a width of at most ", kMaxExtent, ", got ", query.size(3), "x",
          query.size(4));

  InterFrameAttention call{};
  call.features = feature_kind(require, query);
  check_dtype(require, memory, "memory", query);
  const bool float_offset = offset.scalar_type() == ScalarType::Float;
  require(float_offset || offset.scalar_type() == query.scalar_type(),
          "offset must have the dtype of query or float32, got ", dtype_name(offset));
  call.offsets = float_offset ? ScalarKind::kFloat32 : call.features;

  check_memory(require, memory, query);
  check_size(require, offset, "offset", 0, "batch size", query);
  const int64_t offset_channels = 2 * kernel_size * kernel_size;
  require(offset.size(1) == offset_channels, "offset must have 2*kernel_size^2 = ", offset_channels,
          " channels, got ", offset.size(1));
  check_size(require, offset, "offset", 2, "frames", query);
  check_height_and_width(require, offset, "offset", query);

  fill_sizes(require, call, query, memory, frame_shift, edge);
  call.kernel_size = kernel_size;
  call.dilation = dilation;
  call.groups = groups;
  call.scale =
      scale.value_or(static_cast<double>(groups) / static_cast<double>(std::max<int64_t>(call.channels, 1)));
  call.softmax = softmax;
  call.residual = residual;
  return call;
}

void check_grad_output(const Tensor& grad_output, const Tensor& query) {
  check_gradient({"inter_frame_attention"}, grad_output, query);
}

MotionSaliency check_motion_saliency(const Tensor& query, const Tensor& memory, int64_t frame_shift,
                                     const std::string& edge, bool residual) {
  MotionSaliency call{};
  check_motion({"motion_saliency"}, call, query, memory, frame_shift, edge, residual);
  return call;
}

MotionSaliencyBackward check_motion_saliency_backward(const Tensor& grad_output, const Tensor& query,
                                                      const Tensor& memory, int64_t frame_shift,
                                                      const std::string& edge, bool residual) {
  const Require require{"motion_saliency"};
  MotionSaliencyBackward call{};
  check_motion(require, call, query, memory, frame_shift, edge, residual);
  check_gradient(require, grad_output, query);
  return call;
}

MotionOffset check_motion_offset(const Tensor& query, const Tensor& memory, const Tensor& weight,
                                 int64_t frame_shift, const std::string& edge, bool residual) {
  const Require require{"motion_offset"};
  MotionOffset call{};
  check_motion(require, call, query, memory, frame_shift, edge, residual);
  check_weight(require, call, weight, query);
  return call;
}

MotionOffsetBackward check_motion_offset_backward(const Tensor& grad_output, const Tensor& query,
                                                  const Tensor& memory, const Tensor* weight,
                                                  int64_t frame_shift, const std::string& edge,
                                                  bool residual) {
  const Require require{"motion_offset"};
  MotionOffsetBackward call{};
  check_motion(require, call, query, memory, frame_shift, edge, residual);
  check_gradient(require, grad_output, "(N, O, T, H, W)", query);
  if (weight != nullptr) {
    check_weight(require, call, *weight, query);
    require(grad_output.size(1) == call.outputs, "grad_output must have the outputs of weight (",
            call.outputs, "), got ", grad_output.size(1));
  } else {
    require(grad_output.size(1) >= 1, "grad_output must have at least 1 output, got 0");
    call.outputs = grad_output.size(1);
  }
  return call;
}

Tensor with_adjacent_channels(const Tensor& features) {
  if (features.size(1) <= 1 || features.stride(1) == 1) return features;
  return torch::stable::contiguous(features, MemoryFormat::ChannelsLast3d);
}

PixelStrides pixel_strides(const Tensor& features) {
  return {features.stride(0), features.stride(2), features.stride(3), features.stride(4)};
}

OffsetStrides offset_strides(const Tensor& offset) {
  return {offset.stride(0), offset.stride(1), offset.stride(2), offset.stride(3), offset.stride(4)};
}

Tensor empty_channels_last(const Tensor& like) { return empty_channels_last(like, like.size(1)); }

Tensor empty_channels_last(const Tensor& like, int64_t channels) {
  const int64_t sizes[] = {like.size(0), channels, like.size(2), like.size(3), like.size(4)};
  return torch::stable::empty({sizes, 5}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast3d);
}

}  // namespace sifa
