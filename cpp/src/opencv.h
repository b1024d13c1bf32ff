// What the files of libsifa_video.so share: OpenCV's frames as ours, its exceptions as ours.
#pragma once

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>
#include <opencv2/videoio/registry.hpp>
#include <string>

#include "one_line.h"
#include "sifa/error.h"

namespace sifa {

[[noreturn]] inline void cannot_open(const std::string& what, const std::string& why) {
  throw Error(ErrorCode::kVideoCannotBeOpened, "video cannot be opened: " + what + " " + why);
}

/// FFmpeg wherever OpenCV has it: trying the other backends on a file that FFmpeg refuses only adds noise.
inline int file_backend() {
  const auto backends = cv::videoio_registry::getStreamBackends();
  return std::find(backends.begin(), backends.end(), cv::CAP_FFMPEG) != backends.end() ? cv::CAP_FFMPEG
                                                                                       : cv::CAP_ANY;
}

/// What GStreamer lacks to send video as RTP and MPEG-TS, and the command that installs it; "" if nothing.
std::string missing_elements();

/// The absolute path, which cannot be taken for a URL.
inline std::string absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path result = std::filesystem::absolute(path, error);
  if (error) cannot_open(path, "is looked for in a working folder that is gone: " + error.message());
  return result.string();
}

/// Refuses files of which FFmpeg makes videos of what a terminal would show: a list of videos is not one.
inline void refuse_text(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const char* text : {".ans", ".art", ".asc", ".diz", ".ice", ".nfo", ".txt", ".vt"}) {
    if (extension == text) cannot_open(path, "is a text by its name, which FFmpeg would draw; name a video");
  }
}

/// Clockwise quarter turns that bring a frame upright.
inline int quarter_turns(const cv::VideoCapture& capture) {
  int degrees = static_cast<int>(capture.get(cv::CAP_PROP_ORIENTATION_META));
  // OpenCV 4.6.0 alone has the sign wrong (opencv/opencv#22088), and would turn portrait videos upside down.
  if (cv::getVersionMajor() == 4 && cv::getVersionMinor() == 6) degrees = -degrees;
  return ((degrees / 90) % 4 + 4) % 4;
}

inline void turn_upright(cv::Mat& frame, int quarter_turns) {
  if (quarter_turns == 1) cv::rotate(frame, frame, cv::ROTATE_90_CLOCKWISE);
  if (quarter_turns == 2) cv::rotate(frame, frame, cv::ROTATE_180);
  if (quarter_turns == 3) cv::rotate(frame, frame, cv::ROTATE_90_COUNTERCLOCKWISE);
}

/// Writes OpenCV's BGR or grey frame as RGB bytes.
inline void to_rgb(const cv::Mat& frame, std::uint8_t* data) {
  cv::Mat rgb(frame.rows, frame.cols, CV_8UC3, data);
  cv::cvtColor(frame, rgb, frame.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
}

/// Runs `function`; OpenCV's exceptions become Error(kVideoCannotBeOpened).
template <typename Function>
auto opencv_translated(const std::string& what, Function function) {
  try {
    return function();
  } catch (const cv::Exception& error) {
    cannot_open(what, ": " + one_line(error.err));
  }
}

}  // namespace sifa
