// The grammar of sifa/source.h.
#include "uri.h"

#include <algorithm>

#include "one_line.h"
#include "sifa/error.h"

namespace sifa {
namespace {

bool starts_with(const std::string& text, const std::string& part) {
  return text.compare(0, part.size(), part) == 0;
}

bool is_scheme(const std::string& text) {
  const auto is_allowed = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
  };
  return !text.empty() && text[0] >= 'a' && text[0] <= 'z' &&
         std::all_of(text.begin(), text.end(), is_allowed);
}

// OpenCV's GStreamer backend reads BGR from an appsink, which keeps one frame: older ones are of no use.
std::string to_opencv(const std::string& pipeline) {
  return pipeline + " ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1";
}

}  // namespace

SourceUri parse_source(const std::string& uri) {
  const auto refuse = [&](const std::string& why) {
    throw Error(
        ErrorCode::kInvalidArgument,
        "source \"" + one_line(uri) + "\" " + why +
            ": give a video file, a folder of images, /dev/video0, v4l2://, csi://, rtsp://, http://, "
            "https://, udp://, tcp://, gst:// or -");
  };
  if (uri.empty() || uri.find('\0') != std::string::npos) refuse("is not one");
  if (uri == "-") return {SourceKind::kStandardInput, ""};
  if (starts_with(uri, "/dev/video")) return {SourceKind::kCamera, uri};
  const std::size_t colon = uri.find("://");
  if (colon == std::string::npos || !is_scheme(uri.substr(0, colon))) return {SourceKind::kPath, uri};
  const std::string scheme = uri.substr(0, colon), rest = uri.substr(colon + 3);
  if (rest.empty()) refuse("has nothing behind its scheme");
  if (scheme == "file") return {SourceKind::kPath, rest};
  if (scheme == "v4l2") return {SourceKind::kCamera, rest};
  if (scheme == "gst") return {SourceKind::kPipeline, to_opencv(rest)};
  if (scheme == "csi") {
    const bool is_number = rest.size() < 4 && rest.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number) refuse("must name a sensor, such as csi://0");
    return {SourceKind::kJetsonCamera,
            to_opencv("nvarguscamerasrc sensor-id=" + rest +
                      " ! video/x-raw(memory:NVMM) ! nvvidconv ! video/x-raw,format=BGRx")};
  }
  for (const char* known : {"rtsp", "http", "https", "udp", "tcp"}) {
    if (scheme == known) return {SourceKind::kNetwork, uri};
  }
  refuse("has an unknown scheme");
  return {};
}

}  // namespace sifa
