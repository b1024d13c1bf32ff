// The CPU kernels of sifa::motion_saliency and sifa::motion_offset as plain functions: a table of each per
// instruction set. Every function writes only what belongs to the pieces it is given, in an order that does
// not depend on the cut, so results are the same bit for bit for any number of threads.
#pragma once

#include <cstdint>

#include "../motion.h"

namespace sifa::cpu {

struct MotionSaliencyKernels {
  // Writes the rows [begin, end) of `output`, counted through (n, t, y).
  void (*forward)(const MotionSaliency& call, int64_t begin, int64_t end);

  // Writes the pixels [begin, end), counted through (n, y, x), of all frames of grad_query and of
  // grad_memory, which is a sum over the query frames that read a frame of the memory.
  void (*backward)(const MotionSaliencyBackward& call, int64_t begin, int64_t end);
};

struct MotionOffsetKernels {
  // Bytes of the transformed weights, and of the scratch of one thread. Both are aligned to
  // kScratchAlignment.
  int64_t (*weight_bytes)(const MotionOffset& call);
  int64_t (*scratch_bytes)(const MotionOffset& call);

  // Writes the channels [begin, end) of `weights`.
  void (*transform_weights)(const MotionOffset& call, int64_t begin, int64_t end, void* weights);

  // The output is cut into strips of four rows, or pieces of them where rows are long: as many as this.
  int64_t (*strips)(const MotionOffset& call);

  // Writes the strips [begin, end) of `output`.
  void (*forward)(const MotionOffset& call, const void* weights, int64_t begin, int64_t end, void* scratch);
};

// The tables for `capability`, and those of the instruction set that kernels() chooses: see kernels.h.
const MotionSaliencyKernels* find_motion_saliency_kernels(const char* capability);
const MotionOffsetKernels* find_motion_offset_kernels(const char* capability);
const MotionSaliencyKernels& motion_saliency_kernels();
const MotionOffsetKernels& motion_offset_kernels();

}  // namespace sifa::cpu
