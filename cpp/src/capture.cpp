// The thread between a source and whoever reads it: the queue, what is dropped, and coming back.
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "one_line.h"
#include "sifa/error.h"
#include "sifa/source.h"
#include "source.h"
#include "uri.h"
#include "video.h"

namespace sifa {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Frames between the threads: enough to decode while the network runs, too few to fall behind.
constexpr std::size_t kQueueSize = 2;
constexpr milliseconds kFirstPause{250};
constexpr milliseconds kLongestPause{8000};
// OpenCV's GStreamer waits for ever for a pipeline that cannot start, or sends nothing more. A thread that is
// not back after these is left alone, with all that it uses.
constexpr milliseconds kOpenPatience{10000};
constexpr milliseconds kStopPatience{6000};  // longer than a silent network stream takes to be given up

}  // namespace

struct Capture::Impl {
  SourceUri uri;
  SourceOptions options;
  std::unique_ptr<Source> source;

  mutable std::mutex mutex;
  std::condition_variable changed;  // with `mutex`: any of the following
  std::deque<CapturedFrame> queue;
  std::vector<std::vector<std::uint8_t>> spare;  // buffers that were read, to be filled again
  bool is_open = false;
  bool has_ended = false;
  std::exception_ptr failure;
  std::int64_t captured = 0;
  std::int64_t dropped = 0;
  std::int64_t reconnections = 0;
  double frames_per_second = 0.0;
  std::int64_t length = 0;  // of a recording behind a URL, in frames; 0 of all else

  // The thread's own.
  std::int64_t given = 0;           // frames since the source was last opened
  std::int64_t ended_at = -1;       // `given` when it last ended
  steady_clock::time_point lost{};  // when it last ceased to give frames
  milliseconds next_pause{};        // before it is opened again

  std::atomic<bool> stop{false};
  std::thread thread;

  bool is_live() const { return uri.is_live() && length == 0; }

  std::unique_ptr<Source> open() const {
    if (uri.kind == SourceKind::kStandardInput) return open_standard_input(options, stop);
    return open_video_source(uri);
  }

  void run();
  void stop_thread(milliseconds patience);
  void open_first();
  void read_until_it_ends();
  bool is_lost();
  bool is_given_up() const;
  bool reopen();
  bool put(CapturedFrame frame);
  bool pause(milliseconds duration);
};

// Whether the capture goes on after waiting.
bool Capture::Impl::pause(milliseconds duration) {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait_for(lock, duration, [&] { return stop.load(); });
  return !stop;
}

// Queues a frame; false when the capture is to stop.
bool Capture::Impl::put(CapturedFrame frame) {
  std::unique_lock<std::mutex> lock(mutex);
  if (!is_live()) changed.wait(lock, [&] { return stop || queue.size() < kQueueSize; });
  if (stop) return false;
  frame.index = captured++;
  // Of a live stream in fragments (MP4), the first one states its own length.
  if (captured > 2 * length) length = 0;
  if (queue.size() == kQueueSize) {
    // What the dropped frame began, the next one begins.
    queue[1].begins = queue[1].begins || queue[0].begins;
    spare.push_back(std::move(queue[0].data));
    queue.pop_front();
    ++dropped;
  }
  queue.push_back(std::move(frame));
  changed.notify_all();
  return true;
}

void Capture::Impl::read_until_it_ends() {
  // A recording goes on where it was cut.
  const std::int64_t known = length > 0 ? captured : 0;
  for (given = 0; !stop;) {
    CapturedFrame frame;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!spare.empty()) {
        frame.data = std::move(spare.back());
        spare.pop_back();
      }
    }
    if (!source->read(frame)) return;
    if (given == 0 && captured > 0) {
      const std::lock_guard<std::mutex> lock(mutex);
      ++reconnections;
    }
    if (given++ < known) continue;
    frame.begins = given == 1;
    frame.time = steady_clock::now();
    if (!put(std::move(frame))) return;
  }
}

// Whether the source, which has ended, is worth opening again. A recording is when more than its last second
// is missing, unless it ended there before: what it states need not be true.
bool Capture::Impl::is_lost() {
  if (length == 0) return uri.comes_back();
  const bool is_complete = static_cast<double>(given) + frames_per_second >= static_cast<double>(length);
  return !is_complete && std::exchange(ended_at, given) != given;
}

bool Capture::Impl::is_given_up() const {
  return options.give_up_after.count() > 0 && steady_clock::now() - lost >= options.give_up_after;
}

// Tries to get a lost source back; false when the capture is to stop. One that opens but gives no frame, as a
// camera may, is as lost as before; one that never gave any is refused.
bool Capture::Impl::reopen() {
  source.reset();
  if (given > 0) {
    lost = steady_clock::now();
    next_pause = kFirstPause;
  } else if (captured == 0 || is_given_up()) {
    throw Error(ErrorCode::kVideoHasNoFrames,
                "video has no frames: " + one_line(uri.what) +
                    " opens, but gives none: does anything send to it, or has another program taken it?");
  }
  while (pause(std::exchange(next_pause, std::min(2 * next_pause, kLongestPause)))) {
    try {
      source = open();
      return true;
    } catch (const Error&) {
      if (is_given_up()) throw;
    }
  }
  return false;
}

void Capture::Impl::stop_thread(milliseconds patience) {
  std::unique_lock<std::mutex> lock(mutex);
  stop = true;
  changed.notify_all();
  const bool is_back = changed.wait_for(lock, patience, [&] { return has_ended; });
  lock.unlock();
  if (is_back) {
    thread.join();
  } else {
    thread.detach();
  }
}

void Capture::Impl::open_first() {
  source = open();
  const std::lock_guard<std::mutex> lock(mutex);
  frames_per_second = source->frames_per_second();
  length = source->length();
  is_open = true;
  changed.notify_all();
}

void Capture::Impl::run() {
  try {
    open_first();
    for (bool is_there = true; is_there; is_there = !stop && reopen()) {
      try {
        read_until_it_ends();
        if (!is_lost()) break;
      } catch (const Error&) {
        if (captured == 0 || !is_lost()) throw;  // what never gave a frame is not lost: it says why
      }
    }
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex);
    failure = std::current_exception();
  }
  source.reset();  // by the thread that opened it
  const std::lock_guard<std::mutex> lock(mutex);
  has_ended = true;
  changed.notify_all();
}

Capture::Capture(const std::string& uri, const SourceOptions& options) : impl_(new Impl) {
  if (options.give_up_after.count() < 0) {
    throw Error(ErrorCode::kInvalidArgument, "give_up_after must be at least 0, got " +
                                                 std::to_string(options.give_up_after.count()) + " ms");
  }
  impl_->uri = parse_source(uri);
  impl_->options = options;
  // From a slow disk it takes longer than the patience with a source.
  if (impl_->uri.kind != SourceKind::kStandardInput) load_video_library();
  impl_->thread = std::thread([impl = impl_] { impl->run(); });
  std::unique_lock<std::mutex> lock(impl_->mutex);
  const bool is_back =
      impl_->changed.wait_for(lock, kOpenPatience, [&] { return impl_->is_open || impl_->has_ended; });
  const bool is_open = impl_->is_open;
  const std::exception_ptr failure = impl_->failure;
  lock.unlock();
  if (is_open) return;
  impl_->stop_thread(is_back ? kStopPatience : milliseconds{0});
  if (is_back) std::rethrow_exception(failure);
  throw Error(ErrorCode::kVideoCannotBeOpened,
              "video cannot be opened: " + one_line(uri) + " has not started after " +
                  std::to_string(kOpenPatience.count() / 1000) + " seconds: does anything send to it?");
}

Capture::~Capture() { impl_->stop_thread(kStopPatience); }

Capture::Status Capture::read(CapturedFrame& frame, milliseconds timeout) {
  std::unique_lock<std::mutex> lock(impl_->mutex);
  impl_->changed.wait_for(lock, timeout, [&] { return !impl_->queue.empty() || impl_->has_ended; });
  if (impl_->queue.empty()) {
    if (impl_->failure) std::rethrow_exception(impl_->failure);
    return impl_->has_ended ? Status::kEnd : Status::kNothingYet;
  }
  if (impl_->spare.size() < kQueueSize) impl_->spare.push_back(std::move(frame.data));
  frame = std::move(impl_->queue.front());
  impl_->queue.pop_front();
  impl_->changed.notify_all();
  return Status::kFrame;
}

bool Capture::is_live() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->is_live();
}

double Capture::frames_per_second() const { return impl_->frames_per_second; }

std::int64_t Capture::captured() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->captured;
}

std::int64_t Capture::dropped() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->dropped;
}

std::int64_t Capture::reconnections() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->reconnections;
}

}  // namespace sifa
