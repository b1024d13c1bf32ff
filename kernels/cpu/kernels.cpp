// Chooses the CPU kernels: the best instruction set that both this build and this processor have, the same
// for every operator.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "motion_kernels.h"

namespace sifa::cpu {

extern const Kernels default_kernels;
extern const MotionSaliencyKernels default_motion_saliency_kernels;
extern const MotionOffsetKernels default_motion_offset_kernels;
extern const MotionOffsetBackwardKernels default_motion_offset_backward_kernels;
#if defined(SIFA_HAVE_X86_KERNELS)
extern const Kernels avx2_kernels, avx512_kernels;
extern const MotionSaliencyKernels avx2_motion_saliency_kernels, avx512_motion_saliency_kernels;
extern const MotionOffsetKernels avx2_motion_offset_kernels, avx512_motion_offset_kernels;
extern const MotionOffsetBackwardKernels avx2_motion_offset_backward_kernels,
    avx512_motion_offset_backward_kernels;
#endif

namespace {

// The tables of one instruction set.
struct Tables {
  const Kernels* attention;
  const MotionSaliencyKernels* saliency;
  const MotionOffsetKernels* offset;
  const MotionOffsetBackwardKernels* offset_backward;
};

// Nulls if this build or this processor lacks it.
Tables find(const char* capability) {
#if defined(SIFA_HAVE_X86_KERNELS)
  // What the flags in kernels/CMakeLists.txt let the compiler use. Every processor with AVX2 has F16C.
  if (std::strcmp(capability, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return {&avx512_kernels, &avx512_motion_saliency_kernels, &avx512_motion_offset_kernels,
            &avx512_motion_offset_backward_kernels};
  }
  if (std::strcmp(capability, "avx2") == 0 && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return {&avx2_kernels, &avx2_motion_saliency_kernels, &avx2_motion_offset_kernels,
            &avx2_motion_offset_backward_kernels};
  }
#endif
  if (std::strcmp(capability, "default") == 0) {
    return {&default_kernels, &default_motion_saliency_kernels, &default_motion_offset_kernels,
            &default_motion_offset_backward_kernels};
  }
  return {nullptr, nullptr, nullptr, nullptr};
}

Tables choose() {
  if (const char* wanted = std::getenv("SIFA_CPU_CAPABILITY")) {
    const Tables found = find(wanted);
    if (found.attention != nullptr) return found;
    throw std::runtime_error(
        "sifa: SIFA_CPU_CAPABILITY must be default, avx2 or avx512, "
        "and supported by this processor and this build, got " +
        std::string(wanted));
  }
  for (const char* capability : {"avx512", "avx2"}) {
    const Tables found = find(capability);
    if (found.attention != nullptr) return found;
  }
  return find("default");
}

const Tables& chosen() {
  static const Tables tables = choose();
  return tables;
}

}  // namespace

const Kernels* find_kernels(const char* capability) { return find(capability).attention; }
const MotionSaliencyKernels* find_motion_saliency_kernels(const char* capability) {
  return find(capability).saliency;
}
const MotionOffsetKernels* find_motion_offset_kernels(const char* capability) {
  return find(capability).offset;
}
const MotionOffsetBackwardKernels* find_motion_offset_backward_kernels(const char* capability) {
  return find(capability).offset_backward;
}

const Kernels& kernels() { return *chosen().attention; }
const MotionSaliencyKernels& motion_saliency_kernels() { return *chosen().saliency; }
const MotionOffsetKernels& motion_offset_kernels() { return *chosen().offset; }
const MotionOffsetBackwardKernels& motion_offset_backward_kernels() { return *chosen().offset_backward; }

}  // namespace sifa::cpu
