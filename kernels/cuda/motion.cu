// Chooses, for each call, the kernel that fits its element type and alignment, and launches it.
#include <type_traits>

#include "launch.cuh"
#include "launch.h"
#include "motion.cuh"

namespace sifa::cuda {
namespace {

// Calls run(type, lanes of a pack) for the element type of the call.
template <typename Call, typename Run>
void for_packs(const Call& call, const Run& run) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    if (allows_packs(call, kPack<T>)) {
      run(type, std::integral_constant<int, kPack<T>>{});
    } else {
      run(type, std::integral_constant<int, 1>{});
    }
  });
}

int64_t blocks_of(const MotionSaliency& call, int64_t frames, int64_t pack) {
  return blocks_for(call.batch * frames * call.height * call.width * (call.channels / pack), kBlock);
}

}  // namespace

void motion_saliency(const MotionSaliency& call, cudaStream_t stream) {
  for_packs(call, [&](auto type, auto pack) {
    constexpr int V = decltype(pack)::value;
    saliency<decltype(type), V><<<blocks_of(call, call.frames, V), kBlock, 0, stream>>>(call);
    check_launch("motion_saliency", "saliency");
  });
}

void motion_saliency_backward_query(const MotionSaliencyBackward& call, cudaStream_t stream) {
  for_packs(call, [&](auto type, auto pack) {
    constexpr int V = decltype(pack)::value;
    saliency_backward_query<decltype(type), V><<<blocks_of(call, call.frames, V), kBlock, 0, stream>>>(call);
    check_launch("motion_saliency", "saliency_backward_query");
  });
}

void motion_saliency_backward_memory(const MotionSaliencyBackward& call, cudaStream_t stream) {
  for_packs(call, [&](auto type, auto pack) {
    constexpr int V = decltype(pack)::value;
    saliency_backward_memory<decltype(type), V>
        <<<blocks_of(call, call.memory_frames, V), kBlock, 0, stream>>>(call);
    check_launch("motion_saliency", "saliency_backward_memory");
  });
}

}  // namespace sifa::cuda
