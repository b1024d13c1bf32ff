// The programs for the two formats and the engine for GPUs, for `load_engine`.
#pragma once

#include "engine.h"

namespace sifa {

/// The program of a TorchScript file. Throws what LibTorch throws.
std::unique_ptr<Program> load_torchscript(const std::string& path, const at::Device& device);

/// The program of an AOTInductor package. Throws what LibTorch throws, and Error(kDamagedModel) if it was not
/// compiled for the inputs that the metadata states.
std::unique_ptr<Program> load_package(const std::string& path, const Metadata& metadata,
                                      const at::Device& device);

/// The engine for a GPU. Throws Error(kDeviceUnavailable) from a runtime that was built without CUDA.
std::unique_ptr<Engine> make_cuda_engine(std::unique_ptr<Program> program, const at::Device& device,
                                         bool with_graphs);

/// The name and the compute capability of a GPU that LibTorch sees.
std::string describe_gpu(int index);

}  // namespace sifa
