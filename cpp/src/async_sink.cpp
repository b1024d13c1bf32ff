// See async_sink.h.
#include "async_sink.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "one_line.h"
#include "sifa/error.h"

namespace sifa {
namespace {

constexpr std::size_t kQueueSize = 2;    // frames: while one is drawn, the next is read
constexpr int kPatiencesToComplete = 6;  // an encoder writes all that it has kept back

struct Annotated {
  CapturedFrame frame;
  std::vector<std::string> lines;
};

}  // namespace

struct AsyncSink::State {
  std::unique_ptr<Sink> sink;

  std::mutex mutex;
  std::condition_variable changed;  // with `mutex`: any of the following
  std::deque<Annotated> queue;
  std::vector<std::vector<std::uint8_t>> spare;  // buffers that were written, to be filled again
  bool is_closing = false;
  bool is_completing = false;  // after the last frame
  bool has_ended = false;
  std::exception_ptr failure;
  std::int64_t written = 0;
  std::int64_t dropped = 0;

  std::thread thread;

  void run();
  bool take(Annotated& next);
};

// Waits for the next frame; false when there will be none.
bool AsyncSink::State::take(Annotated& next) {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return is_closing || !queue.empty(); });
  is_completing = queue.empty();
  if (is_completing) {
    changed.notify_all();
    return false;
  }
  next = std::move(queue.front());
  queue.pop_front();
  changed.notify_all();
  return true;
}

void AsyncSink::State::run() {
  std::exception_ptr thrown;
  try {
    for (Annotated next; take(next);) {
      sink->write(next.frame, next.lines);
      const std::lock_guard<std::mutex> lock(mutex);
      ++written;
      if (spare.size() < kQueueSize) spare.push_back(std::move(next.frame.data));
      changed.notify_all();
    }
    sink->close();
  } catch (...) {
    thrown = std::current_exception();
  }
  sink.reset();  // by the thread that has used it
  const std::lock_guard<std::mutex> lock(mutex);
  failure = thrown;
  has_ended = true;
  changed.notify_all();
}

AsyncSink::AsyncSink(std::unique_ptr<Sink> sink, std::string name, std::chrono::milliseconds patience)
    : state_(new State), name_(std::move(name)), patience_(patience) {
  state_->sink = std::move(sink);
  state_->thread = std::thread([state = state_] { state->run(); });
}

AsyncSink::~AsyncSink() {
  try {
    close();
  } catch (...) {
  }
}

bool AsyncSink::write(CapturedFrame& frame, const std::vector<std::string>& lines, Full full,
                      std::chrono::milliseconds timeout) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  const auto has_room = [&] { return state_->has_ended || state_->queue.size() < kQueueSize; };
  if (full == Full::kWait && !state_->changed.wait_for(lock, timeout, has_room)) return false;
  if (state_->failure) std::rethrow_exception(state_->failure);
  if (state_->queue.size() == kQueueSize) {
    state_->spare.push_back(std::move(state_->queue.front().frame.data));
    state_->queue.pop_front();
    ++state_->dropped;
  }
  state_->queue.push_back({std::move(frame), lines});
  frame.data.clear();
  if (!state_->spare.empty()) {
    frame.data = std::move(state_->spare.back());
    state_->spare.pop_back();
  }
  state_->changed.notify_all();
  return true;
}

void AsyncSink::close() {
  if (!state_->thread.joinable()) return;
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->is_closing = true;
  state_->changed.notify_all();
  const auto waited = [&](std::chrono::milliseconds patience, auto condition) {
    return state_->changed.wait_for(lock, patience, [&] { return state_->has_ended || condition(); });
  };
  bool is_moving = true;
  while (is_moving && !state_->has_ended && !state_->is_completing) {
    const std::int64_t before = state_->written;
    is_moving = waited(patience_, [&] { return state_->is_completing || state_->written != before; });
  }
  is_moving = is_moving && waited(kPatiencesToComplete * patience_, [] { return false; });
  if (!is_moving) {
    state_->dropped += static_cast<std::int64_t>(state_->queue.size());
    state_->queue.clear();
    state_->thread.detach();
    throw Error(ErrorCode::kOther, "video cannot be written: " + one_line(name_) + " has taken nothing for " +
                                       std::to_string((state_->is_completing ? kPatiencesToComplete : 1) *
                                                      patience_.count() / 1000) +
                                       " seconds, and its end is missing: does anything read it?");
  }
  lock.unlock();
  state_->thread.join();
  if (state_->failure) std::rethrow_exception(state_->failure);
}

std::int64_t AsyncSink::written() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->written;
}

std::int64_t AsyncSink::dropped() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->dropped;
}

}  // namespace sifa
