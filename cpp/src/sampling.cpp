// The rules "center" and "segments", without overflow for any 64-bit arguments.
#include "sifa/sampling.h"

#include <string>
#include <utility>

#include "sifa/error.h"

namespace sifa {
namespace {

// factor * total / parts, with total split so that no product overflows; factor <= parts
std::int64_t share(std::int64_t factor, std::int64_t total, std::int64_t parts) {
  return factor * (total / parts) + factor * (total % parts) / parts;
}

}  // namespace

std::vector<std::int64_t> frame_indices(std::int64_t total, std::int64_t num_frames,
                                        std::int64_t frame_stride, const std::string& sampling) {
  for (const auto& [name, value] : {std::pair{"total", total}, std::pair{"num_frames", num_frames},
                                    std::pair{"frame_stride", frame_stride}}) {
    if (value < 1) {
      throw Error(ErrorCode::kInvalidArgument, std::string("frame_indices: ") + name +
                                                   " must be at least 1, got " + std::to_string(value));
    }
  }
  if (sampling != "center" && sampling != "segments") {
    throw Error(ErrorCode::kInvalidArgument,
                "frame_indices: sampling must be center or segments, got \"" + sampling + "\"");
  }
  std::vector<std::int64_t> indices;
  if (sampling == "segments") {
    for (std::int64_t i = 0; i < num_frames; ++i) indices.push_back(share(2 * i + 1, total, 2 * num_frames));
    return indices;
  }
  // span <= total, written so that span itself cannot overflow
  if (num_frames - 1 <= (total - 1) / frame_stride) {
    const std::int64_t span = (num_frames - 1) * frame_stride + 1;
    const std::int64_t start = (total - span) / 2;
    for (std::int64_t i = 0; i < num_frames; ++i) indices.push_back(start + i * frame_stride);
  } else {
    for (std::int64_t i = 0; i < num_frames; ++i) indices.push_back(share(i, total, num_frames));
  }
  return indices;
}

}  // namespace sifa
