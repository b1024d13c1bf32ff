// One function per finding.
#include "sifa/doctor.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <sys/utsname.h>
#include <torch/headeronly/version.h>

#include <fstream>

#include "engines.h"
#include "library.h"
#include "operators.h"
#include "torch_errors.h"
#include "video.h"

namespace sifa {
namespace {

// Fills in what a finding says; what is thrown becomes its problem.
template <typename Function>
Finding finding(const std::string& name, const std::string& fix, Function look) {
  Finding result{name, "", "", ""};
  try {
    translated(ErrorCode::kOther, name, [&] { look(result); });
  } catch (const Error& error) {
    result.problem = error.what();
    result.fix = fix;
  }
  return result;
}

void look_at_machine(Finding& result) {
  utsname system{};
  uname(&system);
  result.value = std::string(system.machine) + ", " + at::get_cpu_capability() + ", " +
                 std::to_string(at::get_num_threads()) + " threads";
}

// The operator on the smallest input: a library for other processors or GPUs than these fails here.
void run_operator(const at::Device& device) {
  const c10::OperatorHandle handle =
      c10::Dispatcher::singleton().findSchemaOrThrow("sifa::inter_frame_attention", "");
  const at::TensorOptions options(device);
  const at::Tensor features = at::ones({1, 8, 2, 4, 4}, options);
  torch::jit::Stack stack{features, features, at::zeros({1, 18, 2, 4, 4}, options)};
  const auto& arguments = handle.schema().arguments();
  for (std::size_t i = stack.size(); i < arguments.size(); ++i)
    stack.push_back(*arguments[i].default_value());
  handle.callBoxed(stack);
  if (!stack.at(0).toTensor().isfinite().all().item<bool>()) {
    throw Error(ErrorCode::kOperatorLibrary, "the operator gives numbers that are not finite");
  }
}

void look_at_operators(Finding& result) {
  load_operators();
  run_operator(at::kCPU);
  result.value = "loaded, run on cpu";
}

void look_at_gpu(Finding& result) {
  const int count = at::detail::getCUDAHooks().deviceCount();
  result.value = std::to_string(count) + (count == 1 ? " device" : " devices");
  for (int i = 0; i < count; ++i) result.value += (i == 0 ? " (" : "; ") + describe_gpu(i);
  if (count > 0) {
    result.value += ")";
    require_cuda_kernels();
    for (int i = 0; i < count; ++i) run_operator(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(i)));
    result.value += ", operators run on each";
  }
  result.value += std::string("; kernels built for: ") + SIFA_CUDA_BUILT_FOR;
}

// Of a Jetson only: NVIDIA's tools keep the power mode there.
void look_at_power(Finding& result) {
  std::ifstream status("/var/lib/nvpmodel/status");
  std::string line;
  std::getline(status, line);
  result.value = line.empty() ? "unknown" : line;
}

}  // namespace

std::vector<Finding> examine() {
  std::vector<Finding> findings;
  findings.push_back({"sifa", std::string(SIFA_VERSION) + ", runtime for torch " + TORCH_VERSION, "", ""});
  findings.push_back(finding("machine", "", look_at_machine));
  findings.push_back(
      finding("operators", "build or install SIFA again, for this machine: make build", look_at_operators));
  findings.push_back(finding("cuda",
                             "build SIFA for this GPU, with nvcc on the PATH: CMAKE_ARGS=\"-DSIFA_CUDA=ON "
                             "-DSIFA_CUDA_ARCHITECTURES=<87 for Jetson Orin>\" make build",
                             look_at_gpu));
  findings.push_back(
      finding("video",
              "apt-get install libopencv-videoio-dev libopencv-imgcodecs-dev libopencv-imgproc-dev, "
              "and build with SIFA_VIDEO=ON",
              [](Finding& result) { describe_video(result); }));
  if (file_exists("/etc/nv_tegra_release")) findings.push_back(finding("power mode", "", look_at_power));
  return findings;
}

}  // namespace sifa
