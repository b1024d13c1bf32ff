// Where annotated frames go.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sifa/export.h"
#include "sifa/source.h"

namespace sifa {

/// An opened video file or stream.
class Sink {
 public:
  virtual ~Sink() = default;

  /// Draws `lines` onto the frame, from its top, and writes it. Throws Error.
  virtual void write(const CapturedFrame& frame, const std::vector<std::string>& lines) = 0;

  /// Completes the file. Throws Error if it was not written.
  virtual void close() = 0;
};

/// Opens a sink (see video_sinks.cpp). Throws Error: kInvalidArgument, kOther (a file that cannot be
/// written), kVideoCannotBeOpened (no libsifa_video.so).
SIFA_API std::unique_ptr<Sink> open_video_sink(const std::string& uri, double frames_per_second);

}  // namespace sifa
