// What every file of CPU kernels needs to define its table of functions: the table's name, which differs from
// instruction set to instruction set, and the step from ScalarKind to a type. Like vector.h it is included
// once per instruction set.
#pragma once

#include "../clip.h"
#include "vector.h"

#define SIFA_JOIN_(a, b) a##b
#define SIFA_JOIN(a, b) SIFA_JOIN_(a, b)
#define SIFA_STRING_(name) #name
#define SIFA_STRING(name) SIFA_STRING_(name)

namespace sifa::cpu {
namespace {

template <typename Run>
SIFA_INLINE auto for_feature_type(ScalarKind kind, const Run& run) {
  switch (kind) {
    case ScalarKind::kFloat64:
      return run(double{});
    case ScalarKind::kFloat16:
      return run(Half{});
    case ScalarKind::kBFloat16:
      return run(BFloat16{});
    default:
      return run(float{});
  }
}

}  // namespace
}  // namespace sifa::cpu
