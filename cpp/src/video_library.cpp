// Loads libsifa_video.so when the first video is read: OpenCV comes with dozens of libraries, FFmpeg and
// GStreamer among them, which a process that only classifies frames (a Python with decoders of its own, say)
// need not have.
#include <dlfcn.h>

#include <filesystem>

#include "library.h"
#include "one_line.h"
#include "sifa/error.h"
#include "sifa/video.h"
#include "video.h"

namespace sifa {
namespace {

void* load() {
  const std::string path = library_folder() + "/libsifa_video.so";
  if (!file_exists(path)) {
    throw Error(ErrorCode::kVideoCannotBeOpened,
                "this build of SIFA cannot read video files (SIFA_VIDEO=OFF): there is no " + path +
                    "; decode the video yourself and classify its frames");
  }
  std::string reason;
  void* handle = open_library(path, reason);
  if (handle == nullptr) {
    throw Error(ErrorCode::kVideoCannotBeOpened,
                "SIFA's video library cannot be loaded: " + one_line(reason));
  }
  return handle;
}

template <typename Function>
Function* find(const char* symbol) {
  static void* const library = load();  // tried again at the next call if it throws
  void* function = dlsym(library, symbol);
  if (function == nullptr) {
    throw Error(ErrorCode::kVideoCannotBeOpened,
                std::string("SIFA's video library is another version's: it has no ") + symbol);
  }
  return reinterpret_cast<Function*>(function);
}

// `what` is its name in the error.
void require_file(const std::string& path, const std::string& what) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) return;
  if (error == std::errc::permission_denied) {
    throw Error(ErrorCode::kVideoCannotBeOpened,
                "video cannot be opened: " + path + " is in a folder that this user may not look into");
  }
  throw Error(ErrorCode::kFileNotFound, what + " not found: " + path);
}

}  // namespace

Video read_video(const std::string& path, std::int64_t num_frames, std::int64_t frame_stride,
                 const std::string& sampling) {
  ReadVideo* const read = find<ReadVideo>(kReadVideoSymbol);
  require_file(path, "video file");
  std::error_code none;  // what cannot be looked at is refused where it is opened
  if (std::filesystem::is_fifo(path, none)) {
    // It can be read once, and opening it waits for whoever writes.
    throw Error(ErrorCode::kVideoCannotBeOpened,
                "video cannot be opened: " + path +
                    " is a pipe, and a clip may be sampled only from a file: follow it with --stream");
  }
  Video video;
  read(path, num_frames, frame_stride, sampling, video);
  return video;
}

void load_video_library() { find<OpenVideoSource>(kOpenVideoSourceSymbol); }

std::unique_ptr<Source> open_video_source(const SourceUri& uri) {
  OpenVideoSource* const open = find<OpenVideoSource>(kOpenVideoSourceSymbol);
  if (uri.kind == SourceKind::kPath) require_file(uri.what, "video file or folder");
  std::unique_ptr<Source> source;
  open(uri, source);
  return source;
}

void describe_video(Finding& finding) { find<DescribeVideo>(kDescribeVideoSymbol)(finding); }

std::unique_ptr<Sink> open_video_sink(const std::string& uri, double frames_per_second) {
  std::unique_ptr<Sink> sink;
  find<OpenVideoSink>(kOpenVideoSinkSymbol)(uri, frames_per_second, sink);
  return sink;
}

}  // namespace sifa
