// The rule "center", without overflow for any 64-bit arguments.
#include "sifa/sampling.h"

#include <string>
#include <utility>

#include "sifa/error.h"

namespace sifa {

std::vector<std::int64_t> frame_indices(std::int64_t total, std::int64_t num_frames,
                                        std::int64_t frame_stride) {
  for (const auto& [name, value] : {std::pair{"total", total}, std::pair{"num_frames", num_frames},
                                    std::pair{"frame_stride", frame_stride}}) {
    if (value < 1) {
      throw Error(ErrorCode::kInvalidArgument, std::string("frame_indices: ") + name +
                                                   " must be at least 1, got " + std::to_string(value));
    }
  }
  std::vector<std::int64_t> indices;
  // span <= total, written so that span itself cannot overflow
  if (num_frames - 1 <= (total - 1) / frame_stride) {
    const std::int64_t span = (num_frames - 1) * frame_stride + 1;
    const std::int64_t start = (total - span) / 2;
    for (std::int64_t i = 0; i < num_frames; ++i) indices.push_back(start + i * frame_stride);
  } else {
    // i * total / num_frames, with total split so that no product overflows
    const std::int64_t quotient = total / num_frames;
    const std::int64_t remainder = total % num_frames;
    for (std::int64_t i = 0; i < num_frames; ++i) {
      indices.push_back(i * quotient + i * remainder / num_frames);
    }
  }
  return indices;
}

}  // namespace sifa
