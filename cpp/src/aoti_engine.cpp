// The engine for AOTInductor packages: machine code for one device, made by `sifa compile`.
//
// LibTorch unpacks a package to a temporary folder and loads the library in it. g++ gives that library
// symbols that are unique in the process, so that its code stays mapped when the engine is gone: some 300 KB
// of file pages per load.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "engines.h"

namespace sifa {
namespace {

class PackageEngine : public Engine {
 public:
  PackageEngine(const std::string& path, const at::Device& device)
      : Engine(device),
        loader_(path, "model", /*run_single_threaded=*/false, /*num_runners=*/1, device.index()) {}

 private:
  at::Tensor run_clip(const at::Tensor& clips) override {
    std::vector<at::Tensor> outputs = loader_.run({clips});
    return outputs.at(0);
  }

  // A package knows no lists: the state's tensors stand one after the other.
  std::pair<at::Tensor, std::vector<at::Tensor>> run_step(const at::Tensor& frames,
                                                          const std::vector<at::Tensor>& state,
                                                          const at::Tensor& first) override {
    std::vector<at::Tensor> inputs{frames};
    inputs.insert(inputs.end(), state.begin(), state.end());
    inputs.push_back(first);
    std::vector<at::Tensor> outputs = loader_.run(inputs);
    return {outputs.at(0), {outputs.begin() + 1, outputs.end()}};
  }

  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

std::unique_ptr<Engine> load_package(const std::string& path, const at::Device& device) {
  return std::make_unique<PackageEngine>(path, device);
}

}  // namespace sifa
