// What the CUDA kernels of every operator share: the type they accumulate in, and packs of elements, 16 bytes
// that one instruction moves, or a single element where channels or addresses do not allow that; and how many
// blocks are launched.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../clip.h"

namespace sifa::cuda {

constexpr int kBlock = 128;  // threads, unless one team of inter_frame_attention.cuh needs more

// Blocks that work on `per_block` items each: at most as many as one axis may have; kernels step over the
// rest.
inline int64_t blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return blocks < 0x7fffffff ? blocks : 0x7fffffff;
}

// Sums and positions are float64 for float64 features, else float32 (design section 3).
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T data[V];
};

template <int V, typename T, typename Real>
__device__ __forceinline__ void load_pack(const T* address, Real* values) {
  if constexpr (V == 1) {
    values[0] = static_cast<Real>(__ldg(address));
  } else {
    static_assert(sizeof(Pack<T, V>) == sizeof(uint4), "a pack is what one instruction moves: 16 bytes");
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
    Pack<T, V> pack;
    memcpy(&pack, &bits, sizeof(pack));
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = static_cast<Real>(pack.data[i]);
  }
}

template <int V, typename T, typename Real>
__device__ __forceinline__ void store_pack(T* address, const Real* values) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.data[i] = static_cast<T>(values[i]);
  *reinterpret_cast<Pack<T, V>*>(address) = pack;
}

// Whether every pixel of a tensor of features starts at a multiple of 16 bytes, `pack` elements. `call` is
// the parameter struct of any operator.
template <typename Call>
inline bool allows_packs(const void* tensor, const PixelStrides& strides, const Call& call, int64_t frames,
                         int64_t pack) {
  return reinterpret_cast<uintptr_t>(tensor) % 16 == 0 && (call.batch == 1 || strides.batch % pack == 0) &&
         (frames == 1 || strides.frame % pack == 0) && (call.height == 1 || strides.row % pack == 0) &&
         (call.width == 1 || strides.column % pack == 0);
}

}  // namespace sifa::cuda
