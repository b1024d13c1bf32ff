// Chooses the CPU kernels: the best instruction set that both this build and this processor have.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sifa::cpu {

extern const Kernels default_kernels;
#if defined(SIFA_HAVE_X86_KERNELS)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

const Kernels* find_kernels(const char* capability) {
#if defined(SIFA_HAVE_X86_KERNELS)
  // What the flags in kernels/CMakeLists.txt let the compiler use. Every processor with AVX2 has F16C.
  if (std::strcmp(capability, "avx512") == 0) {
    const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("fma");
    return supported ? &avx512_kernels : nullptr;
  }
  if (std::strcmp(capability, "avx2") == 0) {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return supported ? &avx2_kernels : nullptr;
  }
#endif
  return std::strcmp(capability, "default") == 0 ? &default_kernels : nullptr;
}

namespace {

const Kernels& choose() {
  if (const char* wanted = std::getenv("SIFA_CPU_CAPABILITY")) {
    if (const Kernels* found = find_kernels(wanted)) return *found;
    throw std::runtime_error(
        "inter_frame_attention: SIFA_CPU_CAPABILITY must be default, avx2 or avx512, "
        "and supported by this processor and this build, got " +
        std::string(wanted));
  }
  for (const char* capability : {"avx512", "avx2"}) {
    if (const Kernels* found = find_kernels(capability)) return *found;
  }
  return default_kernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace sifa::cpu
