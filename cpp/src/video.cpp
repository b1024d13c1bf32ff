// The clip of a video file, by OpenCV's decoder.
//
// OpenCV's FFmpeg backend reads the first video stream of a file; that cannot be changed, so Python's reader
// follows it.
#include "video.h"

#include "opencv.h"
#include "sifa/sampling.h"

namespace sifa {
namespace {

// One pass over a file: counts its frames, and keeps those whose indices are wanted.
class Pass {
 public:
  explicit Pass(const std::string& path) : path_(path) {
    refuse_text(path);
    if (!capture_.open(absolute(path), file_backend())) {
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
    to_rgb(frame, video.frames.data() + offset);
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
  sifa::opencv_translated(path, [&] { sifa::read(path, num_frames, frame_stride, sampling, video); });
}
