// Loads libsifa_video.so when the first video is read: OpenCV comes with dozens of libraries, FFmpeg and
// GStreamer among them, which a process that only classifies frames (a Python with decoders of its own, say)
// need not have.
#include <dlfcn.h>

#include "library.h"
#include "one_line.h"
#include "sifa/error.h"
#include "sifa/video.h"
#include "video.h"

namespace sifa {
namespace {

ReadVideo* load() {
  const std::string path = library_folder() + "/libsifa_video.so";
  if (!file_exists(path)) {
    throw Error(ErrorCode::kVideoCannotBeOpened,
                "this build of SIFA cannot read video files (SIFA_VIDEO=OFF): there is no " + path +
                    "; decode the video yourself and classify its frames");
  }
  std::string reason;
  void* handle = open_library(path, reason);
  void* function = handle == nullptr ? nullptr : dlsym(handle, kReadVideoSymbol);
  if (function == nullptr) {
    throw Error(ErrorCode::kVideoCannotBeOpened,
                "SIFA's video library cannot be loaded: " + one_line(handle == nullptr ? reason : path));
  }
  return reinterpret_cast<ReadVideo*>(function);
}

}  // namespace

Video read_video(const std::string& path, std::int64_t num_frames, std::int64_t frame_stride,
                 const std::string& sampling) {
  static ReadVideo* const read = load();  // tried again at the next call if it throws
  if (!file_exists(path)) {
    throw Error(ErrorCode::kFileNotFound, "video file not found: " + path);
  }
  Video video;
  read(path, num_frames, frame_stride, sampling, video);
  return video;
}

}  // namespace sifa
