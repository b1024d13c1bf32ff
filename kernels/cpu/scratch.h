// Memory for the CPU kernels to work in, aligned as they ask for.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "kernels.h"

namespace sifa::cpu {

struct FreeScratch {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(kScratchAlignment)); }
};
using Scratch = std::unique_ptr<void, FreeScratch>;

inline Scratch allocate(int64_t bytes) {
  return Scratch(::operator new(static_cast<size_t>(bytes), std::align_val_t(kScratchAlignment)));
}

}  // namespace sifa::cpu
