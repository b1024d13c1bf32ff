// The one function of libsifa_video.so.
#pragma once

#include <cstdint>
#include <string>

#include "sifa/video.h"

namespace sifa {

/// What `sifa::read_video` calls; the file exists.
using ReadVideo = void(const std::string& path, std::int64_t num_frames, std::int64_t frame_stride,
                       const std::string& sampling, Video& video);

inline constexpr char kReadVideoSymbol[] = "sifa_read_video";

}  // namespace sifa
