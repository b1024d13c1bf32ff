// Chooses, for each call, the kernel that fits its element type, alignment and window, and launches it.
#include <cuda_runtime.h>

#include <sstream>
#include <stdexcept>

#include "inter_frame_attention.cuh"
#include "launch.cuh"
#include "launch.h"

namespace sifa::cuda {
namespace {

void check_channels(const InterFrameAttention& call) {
  if (call.channels / call.groups <= kMaxChannels) return;
  std::ostringstream message;
  message << "inter_frame_attention: query must have at most " << kMaxChannels
          << " channels per group on CUDA, got " << call.channels / call.groups << ": raise groups";
  throw std::runtime_error(message.str());
}

// Calls run(std::integral_constant<int, Size>()) with the team's size if kernels are made for it, else 0.
template <typename T, int V, typename Run>
void for_team(int team, const Run& run) {
  if constexpr (V > 1 && !std::is_same_v<T, double>) {
    if (team == 8) return run(std::integral_constant<int, 8>());
    if (team == 16) return run(std::integral_constant<int, 16>());
    if (team == 32) return run(std::integral_constant<int, 32>());
  }
  run(std::integral_constant<int, 0>());
}

template <typename T, int V>
void launch_attend(const InterFrameAttention& call, cudaStream_t stream) {
  const int channels = attend_channels<T, V>(call);
  const Layout layout = layout_for<T, V, Tap<Accumulator<T>, V>>(call, channels);
  const Plan<T, V> plan(call);
  const auto launch = [&](auto kernel) {
    kernel<<<layout.blocks, layout.threads, layout.shared_bytes, stream>>>(call, plan, layout);
  };
  if (channels == kFewChannels) {
    constexpr int kSize = V > 1 ? 8 : 0;  // of a team for kSmallGroup channels
    if (layout.team == kSize) {
      launch(attend<T, V, kFewChannels, kSize>);
    } else {
      launch(attend<T, V, kFewChannels, 0>);
    }
  } else {
    for_team<T, V>(layout.team, [&](auto size) { launch(attend<T, V, kManyChannels<T, V>, size>); });
  }
  check_launch("inter_frame_attention", "attend");
}

// Where the parts of the backward's scratch start, and its size.
template <typename T, int V>
struct Scratch {
  int64_t heads, group_gradients, bytes;

  explicit Scratch(const InterFrameAttention& call) {
    const int64_t taps = call.batch * call.frames * call.height * call.width * call.groups *
                         call.kernel_size * call.kernel_size;
    heads = taps * sizeof(Contribution<Accumulator<T>, V>);
    group_gradients = heads + (num_cells(call) * sizeof(Index<V>) + 15) / 16 * 16;
    bytes = group_gradients + (call.groups > 1 ? taps * sizeof(OffsetGradient<Accumulator<T>>) : 0);
  }
};

template <typename T, int V>
struct Lists {
  Contribution<Accumulator<T>, V>* contributions;
  Index<V>* heads;
  OffsetGradient<Accumulator<T>>* group_gradients;

  Lists(const InterFrameAttention& call, void* scratch) {
    const Scratch<T, V> layout(call);
    char* const start = static_cast<char*>(scratch);
    contributions = reinterpret_cast<Contribution<Accumulator<T>, V>*>(start);
    heads = reinterpret_cast<Index<V>*>(start + layout.heads);
    group_gradients = reinterpret_cast<OffsetGradient<Accumulator<T>>*>(start + layout.group_gradients);
  }
};

template <typename T, int V>
void launch_differentiate(const InterFrameAttentionBackward& call, void* scratch, cudaStream_t stream) {
  using Real = Accumulator<T>;
  const Lists<T, V> lists(call, scratch);
  cudaMemsetAsync(lists.heads, 0xff, num_cells(call) * sizeof(Index<V>), stream);
  check_launch("inter_frame_attention", "memset");
  const Layout layout = layout_for<T, V, TapSlopes<Real, V>>(call, kManyChannels<T, V>);
  for_team<T, V>(layout.team, [&](auto size) {
    differentiate<T, V, size><<<layout.blocks, layout.threads, layout.shared_bytes, stream>>>(
        call, Plan<T, V>(call, call.grad_output_strides), layout, lists.contributions, lists.heads,
        lists.group_gradients);
  });
  check_launch("inter_frame_attention", "differentiate");
  if (call.groups == 1) return;
  const int64_t taps =
      call.batch * call.frames * call.height * call.width * call.kernel_size * call.kernel_size;
  if (call.offsets == ScalarKind::kFloat32) {
    sum_groups<Real, float><<<blocks_for(taps, kBlock), kBlock, 0, stream>>>(call, lists.group_gradients);
  } else {
    sum_groups<Real, T><<<blocks_for(taps, kBlock), kBlock, 0, stream>>>(call, lists.group_gradients);
  }
  check_launch("inter_frame_attention", "sum_groups");
}

template <typename T, int V>
void launch_gather(const InterFrameAttentionBackward& call, void* scratch, cudaStream_t stream) {
  const Lists<T, V> lists(call, scratch);
  const GatherLayout<T, V> layout(call);
  const Walk<Index<V>> walk(call.batch, call.memory_frames, call.height, call.width, call.groups);
  gather<T, V><<<layout.blocks, layout.threads, layout.shared_bytes, stream>>>(
      call, Plan<T, V>(call, call.grad_output_strides), walk, Divisor<Index<V>>(layout.slabs_per_unit),
      layout.slabs, layout.team, lists.contributions, lists.heads);
  check_launch("inter_frame_attention", "gather");
}

template <typename T, int V>
void launch_gather_in_order(const InterFrameAttentionBackward& call, void* scratch, void* sums,
                            cudaStream_t stream) {
  const Lists<T, V> lists(call, scratch);
  const int64_t threads = call.batch * call.memory_frames * call.height * call.channels;
  gather_in_order<T, V><<<blocks_for(threads, kBlock), kBlock, 0, stream>>>(
      call, Plan<T, V>(call, call.grad_output_strides), lists.contributions,
      static_cast<Accumulator<T>*>(sums));
  check_launch("inter_frame_attention", "gather_in_order");
}

// Calls run(T(), V) with the element type and the packs that fit.
template <typename Call, typename Run>
void for_packs(const Call& call, const Run& run) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    if (allows_packs(call, kPack<T>)) {
      run(type, std::integral_constant<int, kPack<T>>());
    } else {
      run(type, std::integral_constant<int, 1>());
    }
  });
}

}  // namespace

void forward(const InterFrameAttention& call, cudaStream_t stream) {
  check_channels(call);
  for_packs(call, [&](auto type, auto pack) { launch_attend<decltype(type), pack>(call, stream); });
}

int64_t backward_scratch_bytes(const InterFrameAttentionBackward& call) {
  int64_t bytes = 0;
  for_packs(call, [&](auto type, auto pack) { bytes = Scratch<decltype(type), pack>(call).bytes; });
  return bytes;
}

void backward_query(const InterFrameAttentionBackward& call, void* scratch, cudaStream_t stream) {
  check_channels(call);
  for_packs(call,
            [&](auto type, auto pack) { launch_differentiate<decltype(type), pack>(call, scratch, stream); });
}

void backward_memory(const InterFrameAttentionBackward& call, void* scratch, cudaStream_t stream) {
  for_packs(call, [&](auto type, auto pack) { launch_gather<decltype(type), pack>(call, scratch, stream); });
}

void backward_memory_in_order(const InterFrameAttentionBackward& call, void* scratch, void* sums,
                              cudaStream_t stream) {
  for_packs(call, [&](auto type, auto pack) {
    launch_gather_in_order<decltype(type), pack>(call, scratch, sums, stream);
  });
}

}  // namespace sifa::cuda
