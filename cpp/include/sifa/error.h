// The one exception type of the runtime, and what can go wrong.
#pragma once

#include <stdexcept>
#include <string>

#include "sifa/export.h"

namespace sifa {

/// What went wrong. The values are the exit codes of `sifa-run` and the `code` of Python's
/// `sifa.runtime.Error`.
enum class ErrorCode : int {
  kOther = 1,                ///< anything that no other code names
  kInvalidArgument = 2,      ///< the caller's arguments: wrong shape, no frames, unknown option
  kFileNotFound = 3,         ///< there is no such file
  kNotAModel = 4,            ///< the file is not a SIFA model, or its metadata is incomplete
  kDamagedModel = 5,         ///< a SIFA model, but truncated, changed, or not loadable by this LibTorch
  kUnsupportedSchema = 6,    ///< a SIFA model of a schema version or kind that this library does not know
  kOperatorLibrary = 7,      ///< the operator library is not found, or is not the one the model was made for
  kVideoCannotBeOpened = 8,  ///< not a video, an unknown codec, or a build without video
  kVideoHasNoFrames = 9,     ///< a video from which not one frame can be decoded
  kDeviceUnavailable = 10,   ///< unknown device, or one that this machine or this LibTorch does not have
  kReferenceMismatch = 11,   ///< the model answers differently here than where it was exported
  kOutOfMemory = 12,  ///< the GPU has not the memory for the model or the frames; the next call may work
};

/// Thrown by every function of the runtime. `what()` is one line that names the thing, what was given and the
/// way out.
class SIFA_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace sifa
