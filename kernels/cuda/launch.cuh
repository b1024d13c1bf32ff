// What every launch of a CUDA kernel needs: the type behind a ScalarKind, and the error.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>

#include "../clip.h"

namespace sifa::cuda {

template <typename Run>
void for_feature_type(ScalarKind kind, const Run& run) {
  switch (kind) {
    case ScalarKind::kFloat32:
      return run(float{});
    case ScalarKind::kFloat64:
      return run(double{});
    case ScalarKind::kFloat16:
      return run(__half{});
    case ScalarKind::kBFloat16:
      return run(__nv_bfloat16{});
  }
}

// Elements in 16 bytes.
template <typename T>
constexpr int kPack = 16 / sizeof(T);

inline void check_launch(const char* operator_name, const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  std::ostringstream message;
  message << operator_name << ": the CUDA kernel " << kernel
          << " could not be launched: " << cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    message << ". libsifa_ops_cuda.so holds no code for this GPU: build it with the GPU's compute capability "
            << "in the CMake option SIFA_CUDA_ARCHITECTURES";
  }
  throw std::runtime_error(message.str());
}

}  // namespace sifa::cuda
