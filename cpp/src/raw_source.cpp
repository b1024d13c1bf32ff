// Raw frames on standard input: RGB bytes, frame after frame.
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "sifa/error.h"
#include "source.h"

namespace sifa {
namespace {

constexpr std::int64_t kMaxSide = 65536;
constexpr int kPatience = 100;  // milliseconds between two looks at `stop`

class StandardInput : public Source {
 public:
  StandardInput(const SourceOptions& options, const std::atomic<bool>& stop)
      : height_(options.height), width_(options.width), stop_(stop) {}

  bool read(CapturedFrame& frame) override {
    frame.height = height_;
    frame.width = width_;
    frame.data.resize(static_cast<std::size_t>(height_ * width_ * 3));
    for (std::size_t done = 0; done < frame.data.size();) {
      pollfd ready{STDIN_FILENO, POLLIN, 0};
      if (stop_) return false;
      if (poll(&ready, 1, kPatience) <= 0) continue;
      const ssize_t count = ::read(STDIN_FILENO, frame.data.data() + done, frame.data.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) {
        throw Error(ErrorCode::kVideoCannotBeOpened,
                    std::string("standard input cannot be read: ") + std::strerror(errno));
      }
      if (count == 0 && done == 0) return false;
      if (count == 0) {
        throw Error(ErrorCode::kVideoCannotBeOpened,
                    "standard input ends within a frame: " + std::to_string(done) + " of " +
                        std::to_string(frame.data.size()) + " bytes; is --size right?");
      }
      done += static_cast<std::size_t>(count);
    }
    return true;
  }

 private:
  std::int64_t height_;
  std::int64_t width_;
  const std::atomic<bool>& stop_;
};

}  // namespace

std::unique_ptr<Source> open_standard_input(const SourceOptions& options, const std::atomic<bool>& stop) {
  if (options.height < 1 || options.width < 1 || options.height > kMaxSide || options.width > kMaxSide) {
    throw Error(ErrorCode::kInvalidArgument,
                "raw frames on standard input need their size (--size WIDTHxHEIGHT), each 1 to 65536, got " +
                    std::to_string(options.width) + "x" + std::to_string(options.height));
  }
  return std::make_unique<StandardInput>(options, stop);
}

}  // namespace sifa
