// Which frames of a video a clip is made of: the same rules as Python's `sifa.data.sampling`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sifa/export.h"

namespace sifa {

/// Indices of the `num_frames` frames to read from a video of `total` decoded frames.
///
/// Rule "center", with span = (num_frames - 1) * frame_stride + 1: a video of at least `span` frames gives
/// every `frame_stride`-th frame of the window in its middle (of two equally central ones, the earlier). A
/// shorter video is spread evenly over the clip, index i * total / num_frames rounded down, and repeats
/// frames when it has fewer than `num_frames`.
///
/// Rule "segments": the frame in the middle of each of `num_frames` segments of equal length, index
/// (2 i + 1) * total / (2 num_frames) rounded down, whatever `frame_stride` is.
///
/// Returns `num_frames` indices in [0, total), not decreasing. Throws Error(kInvalidArgument) for a number
/// below 1 or another rule.
SIFA_API std::vector<std::int64_t> frame_indices(std::int64_t total, std::int64_t num_frames,
                                                 std::int64_t frame_stride = 1,
                                                 const std::string& sampling = "center");

}  // namespace sifa
