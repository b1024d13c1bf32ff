// libsifa_video.so: OpenCV's decoder, the only place that knows OpenCV.
//
// OpenCV's FFmpeg backend reads the first video stream of a file; that cannot be changed, so Python's reader
// follows it.
#include "video.h"

#include <algorithm>
#include <filesystem>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>
#include <opencv2/videoio/registry.hpp>

#include "one_line.h"
#include "sifa/error.h"
#include "sifa/sampling.h"

namespace sifa {
namespace {

[[noreturn]] void cannot_open(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::kVideoCannotBeOpened, "video cannot be opened: " + path + " " + why);
}

// FFmpeg wherever OpenCV has it: trying the other backends on a file that FFmpeg refuses only adds noise.
int backend() {
  const auto backends = cv::videoio_registry::getStreamBackends();
  return std::find(backends.begin(), backends.end(), cv::CAP_FFMPEG) != backends.end() ? cv::CAP_FFMPEG
                                                                                       : cv::CAP_ANY;
}

// Clockwise quarter turns that bring a frame upright.
int quarter_turns(const cv::VideoCapture& capture) {
  int degrees = static_cast<int>(capture.get(cv::CAP_PROP_ORIENTATION_META));
  // OpenCV 4.6.0 alone has the sign wrong (opencv/opencv#22088), and would turn portrait videos upside down.
  if (cv::getVersionMajor() == 4 && cv::getVersionMinor() == 6) degrees = -degrees;
  return ((degrees / 90) % 4 + 4) % 4;
}

void turn_upright(cv::Mat& frame, int quarter_turns) {
  if (quarter_turns == 1) cv::rotate(frame, frame, cv::ROTATE_90_CLOCKWISE);
  if (quarter_turns == 2) cv::rotate(frame, frame, cv::ROTATE_180);
  if (quarter_turns == 3) cv::rotate(frame, frame, cv::ROTATE_90_COUNTERCLOCKWISE);
}

// One pass over a file: counts its frames, and keeps those whose indices are wanted.
class Pass {
 public:
  explicit Pass(const std::string& path) : path_(path) {
    // An absolute path cannot be taken for a URL.
    if (!capture_.open(std::filesystem::absolute(path).string(), backend())) {
      cannot_open(path, "is not a video that OpenCV can decode");
    }
    capture_.set(cv::CAP_PROP_ORIENTATION_AUTO, 0);
    quarter_turns_ = quarter_turns(capture_);
  }

  // What the container says, which may be wrong, or 1 if it says nothing.
  std::int64_t stated_total() const {
    const double count = capture_.get(cv::CAP_PROP_FRAME_COUNT);
    return count >= 1.0 && count < 1e15 ? static_cast<std::int64_t>(count) : 1;
  }

  // Decodes to the end of the file, or only as far as `indices` (not decreasing) ask, and returns how many
  // frames there were. Frame i of `video` becomes the frame of index `indices[i]`.
  std::int64_t read(const std::vector<std::int64_t>& indices, bool to_the_end, Video& video) {
    video.frames.clear();
    std::size_t next = 0;
    std::int64_t count = 0;
    for (; (to_the_end || next < indices.size()) && capture_.grab(); ++count) {
      if (next == indices.size() || indices[next] != count) continue;
      cv::Mat frame;
      if (!capture_.retrieve(frame) || frame.empty())
        cannot_open(path_, "has a frame that cannot be decoded");
      turn_upright(frame, quarter_turns_);
      for (; next < indices.size() && indices[next] == count; ++next) append(frame, count, video);
    }
    return count;
  }

 private:
  void append(const cv::Mat& frame, std::int64_t index, Video& video) const {
    if (video.frames.empty()) {
      video.height = frame.rows;
      video.width = frame.cols;
    }
    if (frame.rows != video.height || frame.cols != video.width) {
      cannot_open(path_, "changes its size at frame " + std::to_string(index) + ", from " +
                             std::to_string(video.width) + " x " + std::to_string(video.height) + " to " +
                             std::to_string(frame.cols) + " x " + std::to_string(frame.rows));
    }
    const std::size_t offset = video.frames.size();
    video.frames.resize(offset + frame.total() * 3);
    cv::Mat rgb(frame.rows, frame.cols, CV_8UC3, video.frames.data() + offset);
    cv::cvtColor(frame, rgb, frame.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
  }

  std::string path_;
  cv::VideoCapture capture_;
  int quarter_turns_ = 0;
};

void read(const std::string& path, std::int64_t num_frames, std::int64_t frame_stride,
          const std::string& sampling, Video& video) {
  // The frames are picked as if the container's count were right, and counted on the way. Mostly it is, and
  // one pass does it.
  Pass pass(path);
  const std::int64_t stated = pass.stated_total();
  video.indices = frame_indices(stated, num_frames, frame_stride, sampling);
  video.total_frames = pass.read(video.indices, /*to_the_end=*/true, video);
  if (video.total_frames == 0) {
    throw Error(ErrorCode::kVideoHasNoFrames, "video has no frames that can be decoded: " + path);
  }
  if (video.total_frames != stated) {
    video.indices = frame_indices(video.total_frames, num_frames, frame_stride, sampling);
    const std::int64_t count = Pass(path).read(video.indices, /*to_the_end=*/false, video);
    if (count <= video.indices.back()) cannot_open(path, "gives fewer frames when it is read again");
  }
}

}  // namespace
}  // namespace sifa

extern "C" SIFA_API void sifa_read_video(const std::string& path, std::int64_t num_frames,
                                         std::int64_t frame_stride, const std::string& sampling,
                                         sifa::Video& video) {
  try {
    sifa::read(path, num_frames, frame_stride, sampling, video);
  } catch (const cv::Exception& error) {
    throw sifa::Error(sifa::ErrorCode::kVideoCannotBeOpened,
                      "video cannot be opened: " + path + ": " + sifa::one_line(error.err));
  }
}
