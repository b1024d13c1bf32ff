// The engine for TorchScript files. Artifacts are frozen at export, so nothing is optimised at load.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/headeronly/version.h>

#include "engine.h"
#include "one_line.h"
#include "operators.h"
#include "sifa/error.h"

namespace sifa {
namespace {

// What went wrong, in one line. The interpreter says it behind a traceback, whose source is indented.
std::string reason_of(const std::string& message) {
  if (message.rfind("The following operation failed in the TorchScript interpreter", 0) == 0) {
    constexpr std::size_t kNone = std::string::npos;
    for (std::size_t end = message.find('\n', message.rfind("<--- HERE")); end != kNone;
         end = message.find('\n', end + 1)) {
      const std::string rest = message.substr(end + 1);
      if (!rest.empty() && rest.front() != ' ' && rest.front() != '\n') return one_line(rest);
    }
  }
  return one_line(message);
}

// Runs `function`; whatever LibTorch throws becomes an Error of `code`, one line behind `what`.
template <typename Function>
auto translated(ErrorCode code, const std::string& what, Function function) {
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const c10::Error& error) {
    throw Error(code, what + ": " + reason_of(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    throw Error(code, what + ": " + reason_of(error.what()));
  }
}

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

class TorchScriptEngine : public Engine {
 public:
  TorchScriptEngine(const std::string& path, const Metadata& metadata, const at::Device& device)
      : device_(device) {
    const std::string what = path + " is damaged or needs another LibTorch: exported by torch " +
                             metadata.torch_version + ", not loadable by " + TORCH_VERSION;
    translated(ErrorCode::kDamagedModel, what, [&] {
      module_ = torch::jit::load(path, device_);
      module_.eval();
    });
  }

  std::vector<float> run(const Frames& clips) override {
    return translated(ErrorCode::kOther, "the model failed", [&] {
      const c10::InferenceMode guard;
      // Only read: the graph's first step makes a tensor of its own.
      const at::Tensor frames =
          at::from_blob(const_cast<std::uint8_t*>(clips.data),
                        {clips.clips, clips.frames, clips.height, clips.width, 3}, at::kByte);
      const at::Tensor output =
          module_.forward({frames.to(device_)}).toTensor().to(at::kCPU, at::kFloat).contiguous();
      if (output.dim() != 2 || output.size(0) != clips.clips) {
        throw Error(ErrorCode::kOther, "the model failed: its output is not (clips, classes)");
      }
      const float* values = output.const_data_ptr<float>();
      return std::vector<float>(values, values + output.numel());
    });
  }

 private:
  at::Device device_;
  torch::jit::Module module_;
};

}  // namespace

std::unique_ptr<Engine> load_torchscript(const std::string& path, const Metadata& metadata,
                                         const std::string& device) {
  const at::Device parsed = parse_device(device);
  if (parsed.is_cuda()) require_cuda_kernels();
  return std::make_unique<TorchScriptEngine>(path, metadata, parsed);
}

void set_threads(int threads) { at::set_num_threads(threads); }

}  // namespace sifa
