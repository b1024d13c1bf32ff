// What the operators' parameter structs say about clips of features: element types, strides, and which frame
// of the memory a query frame reads. Shared by the CPU and the CUDA kernels; knows nothing of torch.
#pragma once

#include <cstdint>

// Inlined without exception: kernels are compiled for several instruction sets, and an out-of-line copy that
// the linker picks from the wrong one would crash an older processor.
#if defined(__CUDACC__)
#define SIFA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SIFA_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace sifa {

enum class ScalarKind : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Distances in elements between neighbours along batch, frame, row and column. The distance between channels
// is 1.
struct PixelStrides {
  int64_t batch, frame, row, column;
};

// The strides of a dense channels-last tensor (N, frames, height, width, channels).
SIFA_HOST_DEVICE PixelStrides dense_strides(int64_t channels, int64_t frames, int64_t height, int64_t width) {
  return {frames * height * width * channels, height * width * channels, width * channels, channels};
}

// The memory frame that query frame t reads, or -1 if it has none (design section 3, n(t)). `call` is the
// parameter struct of any operator.
template <typename Call>
SIFA_HOST_DEVICE int64_t neighbour_frame(const Call& call, int64_t t) {
  const int64_t frame = t + call.frame_shift;
  if (frame >= 0 && frame < call.memory_frames) return frame;
  if (!call.clamp || call.memory_frames == 0) return -1;
  return frame < 0 ? 0 : call.memory_frames - 1;
}

}  // namespace sifa
