// Chooses, for each call, the kernel that fits its element type, alignment and window, and launches it.
#include <cuda_runtime.h>

#include <sstream>
#include <stdexcept>

#include "inter_frame_attention.cuh"
#include "launch.cuh"
#include "launch.h"

namespace sifa::cuda {
namespace {

int64_t pixels(const InterFrameAttention& call) {
  return call.batch * call.frames * call.height * call.width;
}

// How the kernels that work in teams are laid out: attend and differentiate.
struct Teams {
  int size, threads;
  unsigned int blocks;

  explicit Teams(const InterFrameAttention& call) : size(team_for(call)), threads(block_for(size)) {
    if (size > kMaxTeam) {
      std::ostringstream message;
      message << "inter_frame_attention: query must have at most " << kMaxTeam * kChannelsPerLane
              << " channels per group on CUDA, got " << call.channels / call.groups << ": raise groups";
      throw std::runtime_error(message.str());
    }
    blocks = grid_for(pixels(call) * call.groups, threads / size);
  }
};

template <typename T, int V, int K>
void launch_attend(const InterFrameAttention& call, cudaStream_t stream) {
  const Teams teams(call);
  const size_t shared = shared_bytes<Accumulator<T>>(teams.threads, teams.size);
  attend<T, V, K><<<teams.blocks, teams.threads, shared, stream>>>(call, teams.size);
  check_launch("inter_frame_attention", "attend");
}

template <typename T, int V>
void launch_differentiate(const InterFrameAttentionBackward& call, void* tap_gradients, cudaStream_t stream) {
  using Real = Accumulator<T>;
  const Teams teams(call);
  const size_t shared = shared_bytes<Real>(teams.threads, teams.size);
  differentiate<T, V><<<teams.blocks, teams.threads, shared, stream>>>(
      call, static_cast<TapGradient<Real>*>(tap_gradients), teams.size);
  check_launch("inter_frame_attention", "differentiate");
}

template <typename Real, typename Offset>
void launch_sum_groups(const InterFrameAttentionBackward& call, const void* tap_gradients,
                       cudaStream_t stream) {
  const int64_t taps = pixels(call) * call.kernel_size * call.kernel_size;
  sum_groups<Real, Offset><<<grid_for(taps, kBlock), kBlock, 0, stream>>>(
      call, static_cast<const TapGradient<Real>*>(tap_gradients));
  check_launch("inter_frame_attention", "sum_groups");
}

template <typename T, int V>
void launch_scatter(const InterFrameAttentionBackward& call, const void* tap_gradients, void* sums,
                    cudaStream_t stream) {
  using Real = Accumulator<T>;
  scatter<T, V><<<grid_for(pixels(call) * (call.channels / V), kBlock), kBlock, 0, stream>>>(
      call, static_cast<const TapGradient<Real>*>(tap_gradients), static_cast<Real*>(sums));
  check_launch("inter_frame_attention", "scatter");
}

template <typename T>
void launch_scatter_in_order(const InterFrameAttentionBackward& call, const void* tap_gradients, void* sums,
                             cudaStream_t stream) {
  using Real = Accumulator<T>;
  const int64_t threads = call.batch * call.memory_frames * call.height * call.channels;
  scatter_in_order<T><<<grid_for(threads, kBlock), kBlock, 0, stream>>>(
      call, static_cast<const TapGradient<Real>*>(tap_gradients), static_cast<Real*>(sums));
  check_launch("inter_frame_attention", "scatter_in_order");
}

}  // namespace

void forward(const InterFrameAttention& call, cudaStream_t stream) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    if (!allows_packs(call, kPack<T>)) {
      launch_attend<T, 1, 0>(call, stream);
    } else if (call.kernel_size == 3) {
      launch_attend<T, kPack<T>, 3>(call, stream);
    } else {
      launch_attend<T, kPack<T>, 0>(call, stream);
    }
  });
}

int64_t tap_gradient_bytes(const InterFrameAttention& call) {
  const int64_t each =
      call.features == ScalarKind::kFloat64 ? sizeof(TapGradient<double>) : sizeof(TapGradient<float>);
  return pixels(call) * call.groups * call.kernel_size * call.kernel_size * each;
}

void backward_query(const InterFrameAttentionBackward& call, void* tap_gradients, cudaStream_t stream) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    if (allows_packs(call, kPack<T>)) {
      launch_differentiate<T, kPack<T>>(call, tap_gradients, stream);
    } else {
      launch_differentiate<T, 1>(call, tap_gradients, stream);
    }
    if (call.offsets == ScalarKind::kFloat32) {
      launch_sum_groups<Accumulator<T>, float>(call, tap_gradients, stream);
    } else {
      launch_sum_groups<Accumulator<T>, T>(call, tap_gradients, stream);
    }
  });
}

void backward_memory(const InterFrameAttentionBackward& call, const void* tap_gradients, void* sums,
                     bool deterministic, cudaStream_t stream) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    if (deterministic) {
      launch_scatter_in_order<T>(call, tap_gradients, sums, stream);
    } else if (allows_packs(call, kPack<T>)) {
      launch_scatter<T, kPack<T>>(call, tap_gradients, sums, stream);
    } else {
      launch_scatter<T, 1>(call, tap_gradients, sums, stream);
    }
  });
}

}  // namespace sifa::cuda
