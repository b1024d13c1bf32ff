// The program of an AOTInductor package: machine code for one device, made by `sifa compile`.
//
// LibTorch unpacks a package to a temporary folder and loads the library in it. g++ gives that library
// symbols that are unique in the process, so that its code stays mapped when the program is gone: some 300 KB
// of file pages per load.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "engines.h"
#include "one_line.h"
#include "sifa/error.h"

namespace sifa {
namespace {

// What the code of a package takes for granted of its inputs, which it does not look at: with others it would
// read beyond them. `sifa compile` leaves it in the package (`sifa.artifact.metadata.inputs_of`).
std::string inputs_of(const Metadata& metadata) {
  std::string text = metadata.kind + " of " + std::to_string(metadata.num_frames) + " frames in steps of " +
                     std::to_string(metadata.temporal_stride);
  for (const StateTensor& tensor : metadata.state) {
    text += ", " + tensor.dtype;
    for (const std::int64_t side : tensor.shape) text += " " + std::to_string(side);
  }
  return text;
}

class PackageProgram : public Program {
 public:
  // On a GPU without the events by which several callers would share the package: a CUDA graph refuses them.
  PackageProgram(const std::string& path, const at::Device& device)
      : loader_(path, "model", /*run_single_threaded=*/device.is_cuda(), /*num_runners=*/1, device.index()) {}

  void check_inputs(const Metadata& metadata, const std::string& path) {
    const std::string compiled_for = loader_.get_metadata()["sifa_inputs"], stated = inputs_of(metadata);
    if (compiled_for == stated) return;
    throw Error(ErrorCode::kDamagedModel,
                path + " cannot be used: it was compiled for " +
                    (compiled_for.empty() ? "inputs that it does not name" : one_line(compiled_for)) +
                    ", and its metadata states " + stated +
                    "; compile the exported program again, with `sifa compile`");
  }

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

std::unique_ptr<Program> load_package(const std::string& path, const Metadata& metadata,
                                      const at::Device& device) {
  auto program = std::make_unique<PackageProgram>(path, device);
  program->check_inputs(metadata, path);
  return program;
}

}  // namespace sifa
