// The CPU kernels as plain functions: one table of them per instruction set, and the choice among the tables.
#pragma once

#include <cstdint>

#include "../inter_frame_attention.h"

namespace sifa::cpu {

// A call is cut into tiles of kTileSize x kTileSize pixels, which at the lower and the right edge of a frame
// are smaller, counted by (n, t, row of tiles, column of tiles). Every function below writes only what
// belongs to its own tiles or rows, in an order that does not depend on the cut, so results are the same bit
// for bit for any number of threads. `scratch` is aligned to kScratchAlignment, private to the caller, and as
// large as the function says.
struct Kernels {
  const char* capability;  // "default", "avx2" or "avx512"

  // Writes the tiles [begin, end) of `output`. Scratch: scratch_bytes(call).
  void (*forward)(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch);

  // Writes the tiles [begin, end) of grad_query, grad_offset and `tap_gradients`, which backward_memory
  // reads. Scratch: scratch_bytes(call).
  void (*backward_query)(const InterFrameAttentionBackward& call, int64_t begin, int64_t end,
                         void* tap_gradients, void* scratch);

  // Writes the rows [begin, end) of frame m of batch element n of grad_memory: gathers what every tap of
  // every query frame that attends to frame m adds to them. No other caller writes these rows, so there are
  // no atomics. Scratch: memory_scratch_bytes(call, end - begin).
  void (*backward_memory)(const InterFrameAttentionBackward& call, int64_t n, int64_t m, int64_t begin,
                          int64_t end, const void* tap_gradients, void* scratch);
};

// The taps of a tile are located together, a pixel in each lane of a vector; and what a tile reads of the
// memory, about 10 x 10 pixels, stays in the nearest caches, where whole rows of a ResNet's stages do not
// fit.
constexpr int kTileSize = 4;

SIFA_HOST_DEVICE int64_t tiles_per_frame(const InterFrameAttention& call) {
  return ((call.height + kTileSize - 1) / kTileSize) * ((call.width + kTileSize - 1) / kTileSize);
}

SIFA_HOST_DEVICE int64_t tiles(const InterFrameAttention& call) {
  return call.batch * call.frames * tiles_per_frame(call);
}

constexpr int64_t kScratchAlignment = 64;

// float32 accumulates everything but float64.
SIFA_HOST_DEVICE int64_t accumulator_bytes(const InterFrameAttention& call) {
  return call.features == ScalarKind::kFloat64 ? 8 : 4;
}

// The channels of a group, rounded up so that every sample of the scratch starts on its own cache line.
SIFA_HOST_DEVICE int64_t sample_stride(const InterFrameAttention& call) {
  return (call.channels / call.groups + 15) / 16 * 16;
}

// As many zeros as there are channels, for corners outside the frame.
SIFA_HOST_DEVICE int64_t zeros_bytes(const InterFrameAttention& call) {
  return (call.channels * accumulator_bytes(call) + kScratchAlignment - 1) / kScratchAlignment *
         kScratchAlignment;
}

// Zeros, then the samples of one group of one pixel, which stay in the nearest caches between weighting and
// summing: 4.5 KB for 128 channels and 3x3 taps.
SIFA_HOST_DEVICE int64_t scratch_bytes(const InterFrameAttention& call) {
  return zeros_bytes(call) +
         call.kernel_size * call.kernel_size * sample_stride(call) * accumulator_bytes(call);
}

// Half and bfloat16 rows of grad_memory are summed in float32 first; float32 and float64 rows in place.
SIFA_HOST_DEVICE int64_t memory_scratch_bytes(const InterFrameAttention& call, int64_t rows) {
  const bool in_place = call.features == ScalarKind::kFloat32 || call.features == ScalarKind::kFloat64;
  return in_place ? 0 : rows * call.width * call.channels * accumulator_bytes(call);
}

// What backward_memory reads of a pixel: (weight, logit gradient) of every tap and group, in that order.
SIFA_HOST_DEVICE int64_t tap_gradients_per_pixel(const InterFrameAttention& call) {
  return call.kernel_size * call.kernel_size * call.groups * 2;
}
SIFA_HOST_DEVICE int64_t tap_gradient_bytes(const InterFrameAttention& call) {
  return call.batch * call.frames * call.height * call.width * tap_gradients_per_pixel(call) *
         accumulator_bytes(call);
}

// The table for `capability` ("default", "avx2", "avx512"); nullptr if this build or this processor lacks it.
const Kernels* find_kernels(const char* capability);

// The best table of this processor, chosen at the first call. The environment variable SIFA_CPU_CAPABILITY
// names another one; a name that find_kernels does not know throws std::runtime_error.
const Kernels& kernels();

}  // namespace sifa::cpu
