// The program of a TorchScript file.
//
// They are frozen, and their norms folded into convolutions, at export. Nothing more is done at load:
// `optimize_for_inference` moves convolutions to layouts of oneDNN's, from which SIFA's operators have to
// bring the features back, and takes longer.
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include "engines.h"

namespace sifa {
namespace {

class TorchScriptProgram : public Program {
 public:
  TorchScriptProgram(const std::string& path, const at::Device& device)
      : module_(torch::jit::load(path, device)) {
    module_.eval();
  }

  at::Tensor run_clip(const at::Tensor& clips) override { return module_.forward({clips}).toTensor(); }

  std::pair<at::Tensor, State> run_step(const at::Tensor& frames, const State& state,
                                        const at::Tensor& first) override {
    const c10::IValue output = module_.forward({frames, c10::List<at::Tensor>(state), first});
    const auto tuple = output.toTuple();
    return {tuple->elements().at(0).toTensor(), tuple->elements().at(1).toTensorVector()};
  }

 private:
  torch::jit::Module module_;
};

}  // namespace

std::unique_ptr<Program> load_torchscript(const std::string& path, const at::Device& device) {
  return std::make_unique<TorchScriptProgram>(path, device);
}

}  // namespace sifa
