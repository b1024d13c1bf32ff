// The CPU kernels of sifa::motion_saliency, sifa::motion_offset and their backward as plain functions: a
// table of each per instruction set. Every function writes only what belongs to the pieces it is given, in an
// order that does not depend on the cut, so results are the same bit for bit for any number of threads.
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

// For a query that is not empty.
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

// The gradients of query and memory together, and that of the weight, are computed apart: training without
// one of them costs only the other. Neither query nor memory may be empty. Scratch and weights are aligned to
// kScratchAlignment.
struct MotionOffsetBackwardKernels {
  int64_t (*weight_bytes)(const MotionOffsetBackward& call);           // of the transformed weights
  int64_t (*feature_scratch_bytes)(const MotionOffsetBackward& call);  // of one thread

  // Writes the outputs [begin, end) of `weights`.
  void (*transform_weights)(const MotionOffsetBackward& call, int64_t begin, int64_t end, void* weights);

  // Tiles of 4x4 pixels of all frames of the memory.
  int64_t (*tiles)(const MotionOffsetBackward& call);

  // Writes the tiles [begin, end) of grad_memory, the tiles of grad_query that read them, and, with those of
  // the memory's first frame, what of grad_query reads nothing.
  void (*features)(const MotionOffsetBackward& call, const void* weights, int64_t begin, int64_t end,
                   void* scratch);

  // The gradient of the weight is a sum of parts, as many as the call's sizes say: their number, the bytes of
  // all of them, and of the scratch of one thread.
  int64_t (*parts)(const MotionOffsetBackward& call);
  int64_t (*part_bytes)(const MotionOffsetBackward& call);
  int64_t (*weight_scratch_bytes)(const MotionOffsetBackward& call);

  // Writes the parts [begin, end).
  void (*weight_parts)(const MotionOffsetBackward& call, int64_t begin, int64_t end, void* parts,
                       void* scratch);

  // Writes the outputs [begin, end) of grad_weight, once all parts are there.
  void (*weight)(const MotionOffsetBackward& call, const void* parts, int64_t begin, int64_t end);
};

// The tables for `capability`, and those of the instruction set that kernels() chooses: see kernels.h.
const MotionSaliencyKernels* find_motion_saliency_kernels(const char* capability);
const MotionOffsetKernels* find_motion_offset_kernels(const char* capability);
const MotionOffsetBackwardKernels* find_motion_offset_backward_kernels(const char* capability);
const MotionSaliencyKernels& motion_saliency_kernels();
const MotionOffsetKernels& motion_offset_kernels();
const MotionOffsetBackwardKernels& motion_offset_backward_kernels();

}  // namespace sifa::cpu
