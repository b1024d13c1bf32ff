// What is the same for both engines: the device, the tensors around the graph, the choice by format.
#include "engine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <sys/utsname.h>
#include <torch/headeronly/version.h>

#include "engines.h"
#include "one_line.h"
#include "operators.h"
#include "sifa/error.h"
#include "torch_errors.h"

namespace sifa {

at::Device parse_device(const std::string& text) {
  const std::string expected = "device must be cpu, cuda or cuda:<index>, got \"" + one_line(text) + "\"";
  const at::Device device =
      translated(ErrorCode::kDeviceUnavailable, expected, [&] { return at::Device(text); });
  // LibTorch keeps an index in 8 bits: to it cuda:256 is cuda:0.
  if (device.str() != text) throw Error(ErrorCode::kDeviceUnavailable, expected);
  if (device.is_cpu() && !device.has_index()) return device;
  if (!device.is_cuda()) throw Error(ErrorCode::kDeviceUnavailable, expected);
  const int count = at::detail::getCUDAHooks().deviceCount();
  if (count == 0) {
    throw Error(ErrorCode::kDeviceUnavailable,
                "device " + text + " is not available: this LibTorch sees no GPU; use cpu");
  }
  if (device.index() >= count) {
    throw Error(ErrorCode::kDeviceUnavailable,
                "device " + text + " is not available: LibTorch sees " + std::to_string(count) +
                    (count == 1 ? " GPU, cuda:0" : " GPUs, cuda:0 to cuda:" + std::to_string(count - 1)));
  }
  return device;
}

at::ScalarType type_of(const std::string& dtype) {
  if (dtype == "float16") return at::kHalf;
  if (dtype == "bfloat16") return at::kBFloat16;
  return dtype == "int64" ? at::kLong : at::kFloat;
}

namespace {

// Machine code that another processor was given would end the process at its first unknown instruction.
void check_machine(const CompiledFor& compiled_for, const at::Device& device, const std::string& path) {
  utsname system{};
  uname(&system);
  const CompiledFor here{device.is_cuda() ? "cuda" : "cpu", system.machine, at::get_cpu_capability()};
  const auto check = [&](const char* what, const std::string& there, const std::string& own) {
    if (there == own) return;
    throw Error(ErrorCode::kUnsupportedSchema,
                path + " was compiled for " + what + " " + one_line(there) + ", not for " + own +
                    ": compile the exported program here, with `sifa compile`");
  };
  check("device", compiled_for.device, here.device);
  check("machine", compiled_for.machine, here.machine);
  check("cpu", compiled_for.cpu, here.cpu);
}

std::vector<float> rows(const at::Tensor& output, std::int64_t count) {
  const at::Tensor values = output.to(at::kCPU, at::kFloat).contiguous();
  if (values.dim() != 2 || values.size(0) != count) {
    throw Error(ErrorCode::kOther, "the model failed: its output is not (clips, classes)");
  }
  const float* begin = values.const_data_ptr<float>();
  return std::vector<float>(begin, begin + values.numel());
}

}  // namespace

at::Tensor Engine::on_device(const Frames& frames) const {
  // Only read: the graph's first step makes a tensor of its own.
  return at::from_blob(const_cast<std::uint8_t*>(frames.data),
                       {frames.clips, frames.frames, frames.height, frames.width, 3}, at::kByte)
      .to(device_);
}

std::vector<float> Engine::classify(const Frames& clips) {
  return translated(ErrorCode::kOther, "the model failed", [&] {
    const c10::InferenceMode guard;
    return rows(run_clip(on_device(clips)), clips.clips);
  });
}

std::vector<float> Engine::step(const Frames& frames, std::vector<at::Tensor>& state,
                                const std::vector<bool>& first) {
  return translated(ErrorCode::kOther, "the model failed", [&] {
    const c10::InferenceMode guard;
    at::Tensor begins = at::empty({frames.clips}, at::kBool);
    for (std::int64_t i = 0; i < frames.clips; ++i) {
      begins.mutable_data_ptr<bool>()[i] = first[static_cast<std::size_t>(i)];
    }
    auto [output, after] = run_step(on_device(frames), state, begins.to(device_));
    std::vector<float> probabilities = rows(output, frames.clips);
    bool is_alike = after.size() == state.size();
    for (std::size_t i = 0; is_alike && i < state.size(); ++i) {
      is_alike = after[i].sizes() == state[i].sizes() && after[i].scalar_type() == state[i].scalar_type();
    }
    if (!is_alike) {
      throw Error(ErrorCode::kOther, "the model failed: the state it gave is not one of the stated shapes");
    }
    state = std::move(after);
    return probabilities;
  });
}

std::vector<at::Tensor> Engine::new_state(const Metadata& metadata, std::int64_t streams) const {
  const c10::InferenceMode guard;
  std::vector<at::Tensor> state;
  for (const StateTensor& like : metadata.state) {
    std::vector<std::int64_t> shape{streams};
    shape.insert(shape.end(), like.shape.begin(), like.shape.end());
    state.push_back(at::zeros(shape, at::TensorOptions(device_).dtype(type_of(like.dtype))));
  }
  return state;
}

std::unique_ptr<Engine> load_engine(const std::string& path, const Metadata& metadata,
                                    const std::string& device) {
  const at::Device parsed = parse_device(device);
  if (parsed.is_cuda()) require_cuda_kernels();
  if (metadata.format == "exported") {
    throw Error(ErrorCode::kUnsupportedSchema,
                path + " is a portable program: finish it on this machine, with `sifa compile`");
  }
  const bool is_package = metadata.format == "aoti";
  if (is_package) check_machine(metadata.compiled_for, parsed, path);
  const std::string what = path + " is damaged or needs another LibTorch: exported by torch " +
                           metadata.torch_version + ", not loadable by " + TORCH_VERSION;
  return translated(ErrorCode::kDamagedModel, what,
                    [&] { return (is_package ? load_package : load_torchscript)(path, parsed); });
}

void set_threads(int threads) { at::set_num_threads(threads); }

}  // namespace sifa
