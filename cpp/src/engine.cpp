// What is the same for all engines, the one for the CPU, and the choice by format and device.
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

// Runs the program on the caller's frames where they are.
class CpuEngine : public Engine {
 public:
  explicit CpuEngine(std::unique_ptr<Program> program) : Engine(std::move(program), at::kCPU) {}

 private:
  std::vector<float> run(const Frames& frames, std::vector<State>& states,
                         const std::vector<bool>& first) override {
    // Only read: the graph's first step makes a tensor of its own.
    const at::Tensor input =
        at::from_blob(const_cast<std::uint8_t*>(frames.data),
                      {frames.clips, frames.frames, frames.height, frames.width, 3}, at::kByte);
    if (states.empty()) return rows(program().run_clip(input), frames.clips);

    at::Tensor begins = at::empty({frames.clips}, at::kBool);
    for (std::int64_t i = 0; i < frames.clips; ++i) {
      begins.mutable_data_ptr<bool>()[i] = first[static_cast<std::size_t>(i)];
    }
    const State before = joined(states);
    const auto [output, next] = program().run_step(input, before, begins);
    std::vector<float> probabilities = rows(output, frames.clips);
    check_next(next, before);
    states = taken_apart(next, states.size());
    return probabilities;
  }

  static std::vector<float> rows(const at::Tensor& output, std::int64_t count) {
    check_output(output, count);
    const at::Tensor values = output.to(at::kFloat).contiguous();
    const float* begin = values.const_data_ptr<float>();
    return std::vector<float>(begin, begin + values.numel());
  }

  // One state with a row per stream.
  static State joined(const std::vector<State>& states) {
    if (states.size() == 1) return states.front();
    State whole;
    for (std::size_t part = 0; part < states.front().size(); ++part) {
      std::vector<at::Tensor> parts;
      for (const State& state : states) parts.push_back(state[part]);
      whole.push_back(at::cat(parts));
    }
    return whole;
  }

  static std::vector<State> taken_apart(const State& whole, std::size_t count) {
    if (count == 1) return {whole};
    std::vector<State> states(count);
    for (std::size_t row = 0; row < count; ++row) {
      // Copies: a row of a batch would keep the whole batch in memory.
      for (const at::Tensor& tensor : whole)
        states[row].push_back(tensor.narrow(0, static_cast<std::int64_t>(row), 1).clone());
    }
    return states;
  }
};

}  // namespace

void check_output(const at::Tensor& output, std::int64_t count) {
  if (output.dim() == 2 && output.size(0) == count) return;
  throw Error(ErrorCode::kOther, "the model failed: its output is not (clips, classes)");
}

void check_next(const State& next, const State& before) {
  bool is_alike = next.size() == before.size();
  for (std::size_t i = 0; is_alike && i < before.size(); ++i) {
    is_alike = next[i].sizes() == before[i].sizes() && next[i].scalar_type() == before[i].scalar_type();
  }
  if (is_alike) return;
  throw Error(ErrorCode::kOther, "the model failed: the state it gave is not one of the stated shapes");
}

std::vector<float> Engine::classify(const Frames& clips) {
  return translated(ErrorCode::kOther, "the model failed", [&] {
    const c10::InferenceMode guard;
    std::vector<State> none;
    return run(clips, none, {});
  });
}

std::vector<float> Engine::step(const Frames& frames, std::vector<State>& states,
                                const std::vector<bool>& first) {
  return translated(ErrorCode::kOther, "the model failed", [&] {
    const c10::InferenceMode guard;
    return run(frames, states, first);
  });
}

State Engine::new_state(const Metadata& metadata) const {
  return translated(ErrorCode::kOther, "the state of a stream cannot be made", [&] {
    const c10::InferenceMode guard;
    State state;
    for (const StateTensor& like : metadata.state) {
      std::vector<std::int64_t> shape{1};
      shape.insert(shape.end(), like.shape.begin(), like.shape.end());
      // Zeros of the CPU's: a copy has arrived when it returns, which a GPU's own would not have.
      state.push_back(at::zeros(shape, type_of(like.dtype)).to(device_));
    }
    return state;
  });
}

std::unique_ptr<Engine> load_engine(const std::string& path, const Metadata& metadata,
                                    const ClassifierOptions& options) {
  const at::Device parsed = parse_device(options.device);
  if (parsed.is_cuda()) require_cuda_kernels();
  if (metadata.format == "exported") {
    throw Error(ErrorCode::kUnsupportedSchema,
                path + " is a portable program: finish it on this machine, with `sifa compile`");
  }
  const bool is_package = metadata.format == "aoti";
  if (is_package) check_machine(metadata.compiled_for, parsed, path);
  const std::string what = path + " is damaged or needs another LibTorch: exported by torch " +
                           metadata.torch_version + ", not loadable by " + TORCH_VERSION;
  std::unique_ptr<Program> program = translated(ErrorCode::kDamagedModel, what, [&] {
    return is_package ? load_package(path, metadata, parsed) : load_torchscript(path, parsed);
  });
  if (parsed.is_cuda()) return make_cuda_engine(std::move(program), parsed, options.cuda_graphs);
  return std::make_unique<CpuEngine>(std::move(program));
}

void set_threads(int threads) { at::set_num_threads(threads); }

}  // namespace sifa
