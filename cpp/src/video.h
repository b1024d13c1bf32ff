// The functions of libsifa_video.so, and how the runtime calls them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "sifa/doctor.h"
#include "sifa/video.h"
#include "sink.h"
#include "source.h"
#include "uri.h"

namespace sifa {

/// What libsifa_video.so exports. Each throws Error.
using ReadVideo = void(const std::string& path, std::int64_t num_frames, std::int64_t frame_stride,
                       const std::string& sampling, Video& video);
using OpenVideoSource = void(const SourceUri& uri, std::unique_ptr<Source>& source);
using DescribeVideo = void(Finding& finding);
using OpenVideoSink = void(const std::string& uri, double frames_per_second, std::unique_ptr<Sink>& sink);

inline constexpr char kReadVideoSymbol[] = "sifa_read_video";
inline constexpr char kOpenVideoSourceSymbol[] = "sifa_open_video_source";
inline constexpr char kDescribeVideoSymbol[] = "sifa_describe_video";
inline constexpr char kOpenVideoSinkSymbol[] = "sifa_open_video_sink";

/// Loads what the following are in, which they also do themselves. Throws Error(kVideoCannotBeOpened).
void load_video_library();

/// Opens a source of any kind but standard input. Throws Error: kFileNotFound, kVideoCannotBeOpened.
std::unique_ptr<Source> open_video_source(const SourceUri& uri);

/// Says which OpenCV there is and what it reads. Throws Error(kVideoCannotBeOpened).
void describe_video(Finding& finding);

}  // namespace sifa
