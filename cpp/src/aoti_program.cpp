// The program of an AOTInductor package: machine code for one device, made by `sifa compile`.
//
// LibTorch unpacks a package to a temporary folder and loads the library in it. g++ gives that library
// symbols that are unique in the process, so that its code stays mapped when the program is gone: some 300 KB
// of file pages per load.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "engines.h"

namespace sifa {
namespace {

class PackageProgram : public Program {
 public:
  // On a GPU without the events by which several callers would share the package: a CUDA graph refuses them.
  PackageProgram(const std::string& path, const at::Device& device)
      : loader_(path, "model", /*run_single_threaded=*/device.is_cuda(), /*num_runners=*/1, device.index()) {}

  at::Tensor run_clip(const at::Tensor& clips) override {
    std::vector<at::Tensor> outputs = loader_.run({clips});
    return outputs.at(0);
  }

  // A package knows no lists: the state's tensors stand one after the other.
  std::pair<at::Tensor, State> run_step(const at::Tensor& frames, const State& state,
                                        const at::Tensor& first) override {
    std::vector<at::Tensor> inputs{frames};
    inputs.insert(inputs.end(), state.begin(), state.end());
    inputs.push_back(first);
    std::vector<at::Tensor> outputs = loader_.run(inputs);
    return {outputs.at(0), {outputs.begin() + 1, outputs.end()}};
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

std::unique_ptr<Program> load_package(const std::string& path, const at::Device& device) {
  return std::make_unique<PackageProgram>(path, device);
}

}  // namespace sifa
