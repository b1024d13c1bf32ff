// Frames from anywhere, by URI, and live ones without falling behind.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sifa/export.h"

namespace sifa {

/// A frame of a source.
struct CapturedFrame {
  std::vector<std::uint8_t> data;              ///< RGB bytes (height, width, 3), upright
  std::int64_t height = 0;                     ///< pixels
  std::int64_t width = 0;                      ///< pixels
  std::int64_t index = 0;                      ///< of all that were captured, counted from 0
  bool begins = false;                         ///< the first since the source was opened or came back
  std::chrono::steady_clock::time_point time;  ///< when it was captured
};

struct SourceOptions {
  /// Size of the frames of raw bytes, which do not say it, in pixels.
  std::int64_t height = 0;
  std::int64_t width = 0;
  /// How long to try to get a lost camera or network stream back; 0 is for ever.
  std::chrono::milliseconds give_up_after{0};
};

/// Reads a source in a thread of its own:
///
///   a path, file://PATH        a video file, or a folder of images in the order of their names
///   /dev/video0, v4l2://PATH   a camera
///   csi://0                    a camera of a Jetson, by its sensor
///   rtsp:// http:// https:// udp:// tcp://   a network stream
///   gst://PIPELINE             a pipeline of GStreamer's, up to but without its appsink
///   -                          raw RGB frames on standard input, of the size in the options
///
/// Of a file, a folder and standard input every frame is given. All others are live: the thread keeps the
/// newest frames and drops the oldest when nobody reads them, and a camera or network stream that is lost is
/// opened again, after pauses that grow. Only what states its length behind http:// and https:// is a
/// recording: every frame of it is given, one that is cut goes on where it was, and it ends; what gives more
/// than twice that length is live after all. All but standard input need libsifa_video.so (SIFA_VIDEO=ON).
///
/// FFmpeg takes 5 seconds and more to get to know a network stream that does not say its frame rate, and by
/// then it counts as lost. A program that reads such sets OPENCV_FFMPEG_CAPTURE_OPTIONS in its environment,
/// as sifa-run does: "rtsp_transport;tcp|analyzeduration;3000000" (microseconds).
class SIFA_API Capture {
 public:
  /// Opens the source. Throws Error: kInvalidArgument (an unknown scheme, a size that is missing),
  /// kFileNotFound, kVideoCannotBeOpened (also: it has not started after 10 seconds).
  explicit Capture(const std::string& uri, const SourceOptions& options = {});
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  enum class Status { kFrame, kNothingYet, kEnd };

  /// Waits for the next frame, up to `timeout`. Throws Error: kVideoCannotBeOpened (frames cannot be decoded,
  /// a live source did not come back in time), kVideoHasNoFrames (a live source opens, but gives no frame).
  Status read(CapturedFrame& frame, std::chrono::milliseconds timeout);

  bool is_live() const;
  double frames_per_second() const;    ///< as the source says; 0 if it does not
  std::int64_t captured() const;       ///< frames
  std::int64_t dropped() const;        ///< frames that nobody read in time
  std::int64_t reconnections() const;  ///< how often the source was lost and came back

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;  // with the thread
};

}  // namespace sifa
