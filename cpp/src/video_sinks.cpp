// Sinks that OpenCV writes: a video file by its ending, or a pipeline of GStreamer's.
//
//   FILE.mp4 .mkv .avi   annotated frames
//   gst://PIPELINE       behind an appsrc; gst://autovideosink is a window
//   rtp://HOST:PORT      H.264 as RTP
//   udp://HOST:PORT      H.264 in MPEG-TS
#include <fcntl.h>
#include <netdb.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "opencv.h"
#include "video.h"

namespace sifa {
namespace {

constexpr double kUsualRate = 25.0;  // frames per second, where the source does not say
constexpr double kKeyFrameSeconds = 1.0;
constexpr std::uintmax_t kFull = 65536;  // bytes that are left: FFmpeg writes 32768 at a time

bool starts_with(const std::string& text, const std::string& part) {
  return text.compare(0, part.size(), part) == 0;
}

bool is_set(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

// The properties of udpsink for "HOST:PORT"; it would itself take any, and send nothing. An IPv6 address may
// stand in brackets.
std::string udpsink_properties(const std::string& uri, const std::string& scheme) {
  const std::string address = uri.substr(scheme.size());
  const std::size_t colon = std::min(address.rfind(':'), address.size());
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const std::string port = address.substr(std::min(colon + 1, address.size()));
  const bool is_number =
      !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number || std::stoi(port) < 1 || std::stoi(port) > 65535 || host.empty() ||
      host.find_first_of(" !\"'") != std::string::npos) {
    throw Error(ErrorCode::kInvalidArgument,
                "sink " + one_line(uri) + " must be " + scheme + "HOST:PORT, with a port of 1 to 65535");
  }
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), port.c_str(), nullptr, &found);
  if (error != 0) {
    throw Error(ErrorCode::kInvalidArgument, "sink " + one_line(uri) +
                                                 " must name a host that can be reached, and of \"" + host +
                                                 "\" the system says: " + gai_strerror(error));
  }
  freeaddrinfo(found);
  return "host=" + host + " port=" + port;
}

// The pipeline for a URI, or nothing for a file.
std::string pipeline_of(const std::string& uri, double rate) {
  // It holds one frame: of small ones it would hold minutes, and go on sending them after the end.
  const std::string source = "appsrc max-bytes=1 ! videoconvert ! ";
  if (starts_with(uri, "gst://")) {
    const bool is_window = uri.find("autovideosink") != std::string::npos;
    if (is_window && !is_set("DISPLAY") && !is_set("WAYLAND_DISPLAY")) {
      throw Error(ErrorCode::kInvalidArgument,
                  "sink " + one_line(uri) +
                      " needs a display: set DISPLAY or WAYLAND_DISPLAY, or name a sink that draws without, "
                      "such as gst://kmssink");
    }
    return source + uri.substr(6);
  }
  for (const auto& [scheme, middle] :
       {std::pair{"rtp://", "rtph264pay config-interval=1"}, {"udp://", "mpegtsmux"}}) {
    if (!starts_with(uri, scheme)) continue;
    // Whoever joins later sees nothing until the next key frame; without I420 the colours would not be
    // subsampled, which few can decode.
    const int key_frame_distance = std::max(1, static_cast<int>(kKeyFrameSeconds * rate));
    return source + "video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=veryfast key-int-max=" +
           std::to_string(key_frame_distance) + " ! " + middle + " ! udpsink " +
           udpsink_properties(uri, scheme);
  }
  return "";
}

class VideoSink : public Sink {
 public:
  VideoSink(const std::string& uri, double rate)
      : uri_(uri), rate_(rate > 0.0 ? rate : kUsualRate), pipeline_(pipeline_of(uri, rate_)) {
    if (!pipeline_.empty()) return;
    const std::string extension = std::filesystem::path(uri).extension().string();
    if (extension != ".mp4" && extension != ".mkv" && extension != ".avi") {
      throw Error(ErrorCode::kInvalidArgument,
                  "sink " + one_line(uri) +
                      " must be a video file (.mp4, .mkv, .avi), gst://PIPELINE, "
                      "rtp://HOST:PORT, udp://HOST:PORT, or - for lines of JSON");
    }
    code_ = extension == ".avi" ? cv::VideoWriter::fourcc('M', 'J', 'P', 'G')
                                : cv::VideoWriter::fourcc('m', 'p', '4', 'v');
    check_file();
  }

  void write(const CapturedFrame& frame, const std::vector<std::string>& lines) override {
    opencv_translated(uri_, [&] {
      const cv::Mat rgb(static_cast<int>(frame.height), static_cast<int>(frame.width), CV_8UC3,
                        const_cast<std::uint8_t*>(frame.data.data()));
      cv::cvtColor(rgb, image_, cv::COLOR_RGB2BGR);
      if (!writer_.isOpened()) open(image_.size());
      // What is written has one size, even; a frame's may be odd, and a camera may come back with another.
      if (image_.size() != size_) cv::resize(image_, image_, size_);
      annotate(lines);
      writer_.write(image_);
    });
    check_room();
  }

  void close() override {
    writer_.release();
    if (!pipeline_.empty() || size_.empty()) return;
    std::error_code error;
    const auto bytes = std::filesystem::file_size(uri_, error);
    if (error || bytes == 0) cannot_write("nothing was written: is the disk full?");
    check_room();
  }

 private:
  [[noreturn]] void cannot_write(const std::string& why) const {
    throw Error(ErrorCode::kOther, "video cannot be written: " + one_line(uri_) + ": " + why);
  }

  // OpenCV does not say that bytes could not be written.
  void check_room() const {
    if (!pipeline_.empty()) return;
    std::error_code error;
    const std::filesystem::space_info space = std::filesystem::space(uri_, error);
    const std::uintmax_t left = geteuid() == 0 ? space.free : space.available;
    if (!error && left < kFull) {
      cannot_write("the disk is full, and the end of the video may be missing: make room, or name another");
    }
    const std::uintmax_t size = std::filesystem::file_size(uri_, error);
    rlimit limit{RLIM_INFINITY, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &limit);
    if (!error && limit.rlim_cur != RLIM_INFINITY && size + kFull > limit.rlim_cur) {
      cannot_write("files of this process may have " + std::to_string(limit.rlim_cur) +
                   " bytes (ulimit -f), and the end of the video may be missing");
    }
  }

  // Refused before the first frame, and with the reason, which OpenCV does not give.
  void check_file() const {
    std::error_code error;
    if (std::filesystem::is_directory(uri_, error)) cannot_write("it is a folder: name a file in it");
    const std::filesystem::path absolute = std::filesystem::absolute(uri_, error);
    if (error) cannot_write("the working folder is gone: " + error.message());
    const std::string folder = absolute.parent_path().string();
    const bool has_folder = std::filesystem::is_directory(folder, error);
    if (error == std::errc::permission_denied) cannot_write("this user may not look into " + folder);
    if (!has_folder) cannot_write("there is no folder " + folder);
    const bool is_there = std::filesystem::exists(uri_, error);
    const std::string written = is_there ? uri_ : folder;
    if (faccessat(AT_FDCWD, written.c_str(), is_there ? W_OK : W_OK | X_OK, AT_EACCESS) != 0) {
      cannot_write("this user may not write to " + written + ": " + std::strerror(errno));
    }
  }

  void open(cv::Size size) {
    // Colours at half the resolution, as encoders want them, need even sides.
    size_ = {std::max(2, size.width / 2 * 2), std::max(2, size.height / 2 * 2)};
    const bool is_open = pipeline_.empty() ? writer_.open(absolute(uri_), cv::CAP_FFMPEG, code_, rate_, size_)
                                           : writer_.open(pipeline_, cv::CAP_GSTREAMER, 0, rate_, size_);
    if (!is_open) {
      cannot_write(pipeline_.empty() ? "OpenCV's FFmpeg cannot begin it"
                                     : "this OpenCV's GStreamer cannot run " + pipeline_ + missing());
    }
  }

  // Of the elements that are not the user's own.
  std::string missing() const {
    const std::string missing = starts_with(uri_, "gst://") ? "" : missing_elements();
    return missing.empty() ? "" : "; " + missing;
  }

  void annotate(const std::vector<std::string>& lines) {
    const double scale = std::max(0.4, image_.rows / 480.0);
    const int step = static_cast<int>(28 * scale);
    int baseline = step;
    for (const std::string& line : lines) {
      const cv::Point at(static_cast<int>(8 * scale), baseline);
      // Light on dark reads on every picture.
      const int width = std::max(1, static_cast<int>(scale));
      cv::putText(image_, line, at, cv::FONT_HERSHEY_SIMPLEX, 0.8 * scale, cv::Scalar::all(0), width + 3,
                  cv::LINE_AA);
      cv::putText(image_, line, at, cv::FONT_HERSHEY_SIMPLEX, 0.8 * scale, cv::Scalar::all(255), width,
                  cv::LINE_AA);
      baseline += step;
    }
  }

  std::string uri_;
  double rate_;
  std::string pipeline_;
  int code_ = 0;
  cv::Size size_;
  cv::VideoWriter writer_;
  cv::Mat image_;
};

}  // namespace
}  // namespace sifa

extern "C" SIFA_API void sifa_open_video_sink(const std::string& uri, double frames_per_second,
                                              std::unique_ptr<sifa::Sink>& sink) {
  sink = std::make_unique<sifa::VideoSink>(uri, frames_per_second);
}
