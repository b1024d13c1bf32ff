// Reads the frames of a video file that a clip is made of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sifa/export.h"

namespace sifa {

/// The sampled frames of a video, decoded.
struct Video {
  std::vector<std::uint8_t> frames;  ///< RGB bytes (T, H, W, 3), contiguous, upright
  std::int64_t height = 0;           ///< H, pixels
  std::int64_t width = 0;            ///< W, pixels
  std::int64_t total_frames = 0;     ///< how many frames decoding the whole video gives
  /// which of them `frames` holds: `frame_indices(total_frames, T, stride, sampling)`
  std::vector<std::int64_t> indices;
};

/// Decodes the `num_frames` frames of the video file `path` that `frame_indices` names.
///
/// The frames are those of the file's first video stream, turned upright as its rotation metadata asks. They
/// are counted by decoding, because what a container says of its length is not always true, so the whole
/// video is decoded once (twice if the container was wrong) and only the clip is kept in memory. Needs
/// libsifa_video.so beside libsifa_runtime.so (a build with SIFA_VIDEO=ON) and OpenCV; both are loaded by the
/// first call.
///
/// Colours are converted as BT.601, because OpenCV does not heed a stream's tag: those of a video that is
/// tagged BT.709 differ from what Python's torchcodec gives by up to 20 of 255.
///
/// OpenCV and FFmpeg may write of a bad file to standard error; OPENCV_FFMPEG_LOGLEVEL=-8 and
/// OPENCV_LOG_LEVEL=SILENT in the environment keep them quiet, as `sifa-run` does.
///
/// Throws Error: kInvalidArgument, kFileNotFound, kVideoCannotBeOpened (also: no libsifa_video.so),
/// kVideoHasNoFrames.
SIFA_API Video read_video(const std::string& path, std::int64_t num_frames, std::int64_t frame_stride = 1,
                          const std::string& sampling = "center");

}  // namespace sifa
