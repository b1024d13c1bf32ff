// The two engines, for `load_engine`.
#pragma once

#include "engine.h"

namespace sifa {

/// The engine for TorchScript files. Throws what LibTorch throws.
std::unique_ptr<Engine> load_torchscript(const std::string& path, const at::Device& device);

/// The engine for AOTInductor packages. Throws what LibTorch throws.
std::unique_ptr<Engine> load_package(const std::string& path, const at::Device& device);

}  // namespace sifa
