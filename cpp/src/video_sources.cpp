// Sources that OpenCV reads: video files, folders of images, cameras, network streams, GStreamer's pipelines.
#include <fcntl.h>
#include <linux/videodev2.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <opencv2/imgcodecs.hpp>
#include <set>

#include "opencv.h"
#include "video.h"

namespace sifa {
namespace {

namespace fs = std::filesystem;

// How long a network stream may be silent before it counts as lost.
constexpr int kNetworkPatience = 5000;  // milliseconds

void fill(CapturedFrame& frame, const cv::Mat& image) {
  frame.height = image.rows;
  frame.width = image.cols;
  frame.data.resize(image.total() * 3);
  to_rgb(image, frame.data.data());
}

std::string why_no_camera(const std::string& path) {
  const int device = open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (device < 0 && errno == ENOENT) return "is not there: ls /dev/video* lists the cameras of this machine";
  if (device < 0 && errno == EACCES) {
    return "may not be opened by this user: add the user to the device's group (ls -l " + path + ")";
  }
  if (device < 0) return std::string("does not let itself be opened: ") + std::strerror(errno);
  v4l2_capability capability{};
  const bool is_camera = ioctl(device, VIDIOC_QUERYCAP, &capability) == 0;
  close(device);
  return is_camera ? "gives no video: another program may be using it, or the camera gives its video by "
                     "another device (v4l2-ctl --list-devices)"
                   : "is no camera: ls /dev/video* lists those of this machine";
}

class VideoSource : public Source {
 public:
  explicit VideoSource(const SourceUri& uri)
      : name_(uri.what),
        // Of what comes as it is played (rtsp, udp, tcp) a stated length does not say when it ends.
        may_be_recording_(uri.kind == SourceKind::kNetwork && uri.what.compare(0, 4, "http") == 0) {
    if (uri.kind == SourceKind::kPath) refuse_text(uri.what);
    const auto [what, backend] = opened_with(uri);
    const std::vector<int> parameters =
        uri.kind == SourceKind::kNetwork ? std::vector<int>{cv::CAP_PROP_OPEN_TIMEOUT_MSEC, kNetworkPatience,
                                                            cv::CAP_PROP_READ_TIMEOUT_MSEC, kNetworkPatience}
                                         : std::vector<int>{};
    if (!capture_.open(what, backend, parameters)) cannot_open(name_, reason(uri));
    if (uri.kind == SourceKind::kPath || uri.kind == SourceKind::kNetwork) {
      capture_.set(cv::CAP_PROP_ORIENTATION_AUTO, 0);
      quarter_turns_ = quarter_turns(capture_);
    }
  }

  bool read(CapturedFrame& frame) override {
    return opencv_translated(name_, [&] {
      if (!capture_.grab()) return false;
      if (!capture_.retrieve(image_) || image_.empty()) {
        cannot_open(name_, "has a frame that cannot be decoded");
      }
      turn_upright(image_, quarter_turns_);
      fill(frame, image_);
      return true;
    });
  }

  double frames_per_second() const override {
    const double rate = capture_.get(cv::CAP_PROP_FPS);
    return rate > 0.0 && rate < 1000.0 ? rate : 0.0;
  }

  std::int64_t length() const override {
    const double count = may_be_recording_ ? capture_.get(cv::CAP_PROP_FRAME_COUNT) : 0.0;
    return count >= 1.0 && count < 1e9 ? static_cast<std::int64_t>(count) : 0;
  }

 private:
  static std::pair<std::string, int> opened_with(const SourceUri& uri) {
    switch (uri.kind) {
      case SourceKind::kCamera:
        return {uri.what, cv::CAP_V4L2};
      case SourceKind::kJetsonCamera:
      case SourceKind::kPipeline:
        return {uri.what, cv::CAP_GSTREAMER};
      case SourceKind::kNetwork:
        return {uri.what, file_backend()};
      default:
        return {absolute(uri.what), file_backend()};
    }
  }

  static std::string reason(const SourceUri& uri) {
    switch (uri.kind) {
      case SourceKind::kCamera:
        return why_no_camera(uri.what);
      case SourceKind::kJetsonCamera:
      case SourceKind::kPipeline:
        return "is no pipeline that this OpenCV's GStreamer can run";
      case SourceKind::kNetwork:
        return "does not answer with a stream that OpenCV can decode: is it the right address? "
               "OPENCV_FFMPEG_LOGLEVEL=24 in the environment shows what FFmpeg says";
      default:
        return "is not a video that OpenCV can decode";
    }
  }

  std::string name_;
  bool may_be_recording_;
  cv::VideoCapture capture_;
  cv::Mat image_;
  int quarter_turns_ = 0;
};

class ImageFolder : public Source {
 public:
  explicit ImageFolder(const std::string& folder) {
    const std::set<std::string> known{".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"};
    std::error_code error;
    fs::directory_iterator entries(folder, error);
    for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
      std::string extension = entries->path().extension().string();
      std::transform(extension.begin(), extension.end(), extension.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      std::error_code none;  // a link that leads nowhere is no image
      if (known.count(extension) > 0 && entries->is_regular_file(none)) {
        paths_.push_back(entries->path().string());
      }
    }
    if (error) cannot_open(folder, "is a folder that cannot be read: " + error.message());
    if (paths_.empty()) {
      throw Error(ErrorCode::kVideoHasNoFrames,
                  "folder has no images (png, jpg, bmp, ppm, tif, webp): " + folder);
    }
    std::sort(paths_.begin(), paths_.end());
  }

  bool read(CapturedFrame& frame) override {
    if (next_ == paths_.size()) return false;
    const std::string& path = paths_[next_++];
    return opencv_translated(path, [&] {
      const cv::Mat image = cv::imread(path, cv::IMREAD_COLOR);
      if (image.empty()) cannot_open(path, "is not an image that OpenCV can decode");
      fill(frame, image);
      return true;
    });
  }

 private:
  std::vector<std::string> paths_;
  std::size_t next_ = 0;
};

}  // namespace
}  // namespace sifa

extern "C" SIFA_API void sifa_open_video_source(const sifa::SourceUri& uri,
                                                std::unique_ptr<sifa::Source>& source) {
  std::error_code none;  // what cannot be looked at is refused where it is opened
  if (uri.kind == sifa::SourceKind::kPath && std::filesystem::is_directory(uri.what, none)) {
    source = std::make_unique<sifa::ImageFolder>(uri.what);
  } else {
    sifa::opencv_translated(uri.what, [&] { source = std::make_unique<sifa::VideoSource>(uri); });
  }
}

namespace sifa {

// By building a pipeline with each, which is all that OpenCV's GStreamer can be asked.
std::string missing_elements() {
  // Each stands behind one that was found, or is refused for want of it.
  constexpr std::array<std::array<const char*, 3>, 4> kElements{
      {{"videoconvert", "videoconvert", "base"},
       {"x264enc", "videoconvert ! x264enc", "ugly"},
       {"rtph264pay", "videoconvert ! x264enc ! rtph264pay", "good"},
       {"mpegtsmux", "videoconvert ! x264enc ! mpegtsmux", "bad"}}};
  for (const auto& [element, chain, package] : kElements) {
    const std::string pipeline =
        std::string("videotestsrc num-buffers=1 ! tee name=t t. ! queue ! appsink t. ! queue ! ") + chain +
        " ! fakesink";
    if (cv::VideoCapture(pipeline, cv::CAP_GSTREAMER).isOpened()) continue;
    return std::string("GStreamer has no ") + element + ": apt-get install gstreamer1.0-plugins-" + package;
  }
  return "";
}

}  // namespace sifa

extern "C" SIFA_API void sifa_describe_video(sifa::Finding& finding) {
  sifa::opencv_translated("OpenCV", [&] {
    std::string names;
    for (const cv::VideoCaptureAPIs backend : cv::videoio_registry::getBackends()) {
      names += (names.empty() ? "" : ", ") + cv::videoio_registry::getBackendName(backend);
    }
    finding.value = std::string("OpenCV ") + CV_VERSION + " with " + names;
    const std::string missing = sifa::missing_elements();
    finding.value += missing.empty() ? "; sends H.264 as RTP and MPEG-TS" : "; cannot send video: " + missing;
    for (const auto& [name, what] : {std::pair{"FFMPEG", "video files and network streams"},
                                     {"GSTREAMER", "pipelines, and on a Jetson its cameras"},
                                     {"V4L2", "cameras"}}) {
      if (names.find(name) != std::string::npos || !finding.problem.empty()) continue;
      finding.problem = std::string("this OpenCV has no ") + name + ", which reads " + what;
      finding.fix =
          "install an OpenCV that has it (Debian's and JetPack's do): apt-get install libopencv-videoio-dev";
    }
  });
}
