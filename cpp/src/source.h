// What a source is to the thread that reads it; its kinds are in uri.h, raw_source.cpp and video_sources.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "sifa/source.h"

namespace sifa {

/// An opened source.
class Source {
 public:
  virtual ~Source() = default;

  /// Fills in data, height and width; false at the end. Throws Error.
  virtual bool read(CapturedFrame& frame) = 0;

  virtual double frames_per_second() const { return 0.0; }

  /// Frames that a recording behind a URL states; 0 of all else.
  virtual std::int64_t length() const { return 0; }
};

/// Raw frames on standard input; `stop` ends them even while none come. Throws Error(kInvalidArgument).
std::unique_ptr<Source> open_standard_input(const SourceOptions& options, const std::atomic<bool>& stop);

}  // namespace sifa
