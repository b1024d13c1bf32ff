// Brings SIFA's operators into this process's LibTorch.
#pragma once

#include <string>

namespace sifa {

/// Loads the operator library unless the dispatcher has `sifa::inter_frame_attention` already (a second copy
/// would crash the process), and its CUDA half if LibTorch sees a GPU. Looks at $SIFA_OPS_LIBRARY if that is
/// set, else for libsifa_ops.so beside the library that this code is in. Throws Error(kOperatorLibrary).
void load_operators();

/// Throws Error(kOperatorLibrary) if the loaded operators run on the CPU only.
void require_cuda_kernels();

/// Throws Error(kOperatorLibrary) if the loaded operator cannot serve a model that was exported with
/// `schema`; `path` names the model.
void check_operator_schema(const std::string& schema, const std::string& path);

}  // namespace sifa
