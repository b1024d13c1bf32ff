// The CUDA kernels of sifa::motion_saliency and its backward, over the parameter structs of ../motion.h. Like
// inter_frame_attention.cuh it knows nothing of torch, and tests/cpp/test_cuda_motion.cpp runs it on a
// processor.
//
// A thread takes one pack of V channels of one pixel; neighbouring threads read neighbouring packs. Nothing
// is written twice, so the backward needs no atomics: a thread of the memory's gradient visits the query
// frames that read its frame.
#pragma once

#include <cstdint>

#include "../motion.h"
#include "pack.cuh"

namespace sifa::cuda {

template <typename Real>
__device__ __forceinline__ Real sigmoid(Real x) {
  return Real(1) / (Real(1) + exp(-x));
}

// One pack of a clip with `frames` frames; index counts through (n, t, y, x, pack).
struct PackPlace {
  int64_t n, t, y, x, channel;
};

template <int V>
__device__ __forceinline__ PackPlace place_at(const MotionSaliency& call, int64_t frames, int64_t index) {
  const int64_t packs = call.channels / V;
  PackPlace place;
  const int64_t pixel = index / packs;
  place.channel = (index - pixel * packs) * V;
  const int64_t row = pixel / call.width;
  place.x = pixel - row * call.width;
  const int64_t frame = row / call.height;
  place.y = row - frame * call.height;
  place.n = frame / frames;
  place.t = frame - place.n * frames;
  return place;
}

template <typename T>
__device__ __forceinline__ const T* address(const void* tensor, const PixelStrides& strides,
                                            const PackPlace& place, int64_t t) {
  return static_cast<const T*>(tensor) + place.n * strides.batch + t * strides.frame + place.y * strides.row +
         place.x * strides.column + place.channel;
}

template <typename T, int V>
__global__ void __launch_bounds__(kBlock) saliency(const MotionSaliency call) {
  using Real = Accumulator<T>;
  const int64_t count = call.batch * call.frames * call.height * call.width * (call.channels / V);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const PackPlace place = place_at<V>(call, call.frames, i);
    const int64_t m = neighbour_frame(call, place.t);
    Real values[V] = {};
    if (m >= 0) {
      Real f[V], n[V];
      load_pack<V>(address<T>(call.query, call.query_strides, place, place.t), f);
      load_pack<V>(address<T>(call.memory, call.memory_strides, place, m), n);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const Real product = sigmoid(n[k] - f[k]) * n[k];
        values[k] = call.residual ? product + n[k] : product;
      }
    }
    store_pack<V>(static_cast<T*>(call.output) + i * V, values);
  }
}

// With s = sigmoid(n - f), the derivatives of m = s n (+ n) are
//   dm/df = -s (1 - s) n        dm/dn = s (1 - s) n + s (+ 1)
template <typename T, int V>
__global__ void __launch_bounds__(kBlock) saliency_backward_query(const MotionSaliencyBackward call) {
  using Real = Accumulator<T>;
  const int64_t count = call.batch * call.frames * call.height * call.width * (call.channels / V);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const PackPlace place = place_at<V>(call, call.frames, i);
    const int64_t m = neighbour_frame(call, place.t);
    Real values[V] = {};
    if (m >= 0) {
      Real f[V], n[V], g[V];
      load_pack<V>(address<T>(call.query, call.query_strides, place, place.t), f);
      load_pack<V>(address<T>(call.memory, call.memory_strides, place, m), n);
      load_pack<V>(address<T>(call.grad_output, call.grad_output_strides, place, place.t), g);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const Real s = sigmoid(n[k] - f[k]);
        values[k] = -(g[k] * (s * (Real(1) - s) * n[k]));
      }
    }
    store_pack<V>(static_cast<T*>(call.grad_query) + i * V, values);
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kBlock) saliency_backward_memory(const MotionSaliencyBackward call) {
  using Real = Accumulator<T>;
  const Real direct = call.residual ? Real(1) : Real(0);
  const int64_t count = call.batch * call.memory_frames * call.height * call.width * (call.channels / V);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const PackPlace place = place_at<V>(call, call.memory_frames, i);
    const FrameRange readers = readers_of(call, place.t);
    Real n[V], sums[V] = {};
    load_pack<V>(address<T>(call.memory, call.memory_strides, place, place.t), n);
    for (int64_t t = readers.begin; t < readers.end; ++t) {
      Real f[V], g[V];
      load_pack<V>(address<T>(call.query, call.query_strides, place, t), f);
      load_pack<V>(address<T>(call.grad_output, call.grad_output_strides, place, t), g);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const Real s = sigmoid(n[k] - f[k]);
        sums[k] += g[k] * (s * (Real(1) - s) * n[k] + s + direct);
      }
    }
    store_pack<V>(static_cast<T*>(call.grad_memory) + i * V, sums);
  }
}

// Whether packs of `pack` elements fit the channels and the addresses.
inline bool allows_packs(const MotionSaliency& call, int64_t pack) {
  return call.channels % pack == 0 && allows_packs(call.query, call.query_strides, call, call.frames, pack) &&
         allows_packs(call.memory, call.memory_strides, call, call.memory_frames, pack);
}

inline bool allows_packs(const MotionSaliencyBackward& call, int64_t pack) {
  return allows_packs(static_cast<const MotionSaliency&>(call), pack) &&
         allows_packs(call.grad_output, call.grad_output_strides, call, call.frames, pack);
}

}  // namespace sifa::cuda
