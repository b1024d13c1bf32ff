// Brings SIFA's operators into this process's LibTorch.
#pragma once

#include <string>

namespace sifa {

/// Loads the operator library unless the dispatcher has `sifa::inter_frame_attention` already: a second copy
/// would crash the process. Looks at $SIFA_OPS_LIBRARY if that is set, else for libsifa_ops.so beside the
/// library that this code is in. Throws Error(kOperatorLibrary).
void load_operators();

/// The same, and the library's CUDA half, libsifa_ops_cuda.so, which lies beside it.
void require_cuda_kernels();

/// Throws Error(kOperatorLibrary) if the loaded operator cannot serve a model that was exported with
/// `schema`; `path` names the model.
void check_operator_schema(const std::string& schema, const std::string& path);

}  // namespace sifa
