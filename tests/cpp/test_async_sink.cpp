// The thread that writes to a sink, on sinks of the test's own: order, drops, failures, one that hangs. Like
// test_capture.cpp without LibTorch and OpenCV, and also built under ThreadSanitizer.
#include <atomic>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "../../cpp/src/async_sink.h"
#include "runtime_data.h"

namespace {

using sifa::AsyncSink;
using sifa::CapturedFrame;
using sifa::Error;
using sifa::ErrorCode;
using Full = AsyncSink::Full;

constexpr std::chrono::seconds kPatience{60};  // for anything

// What a sink was given, and what it does then; it outlives the sink.
struct Record {
  std::function<void(int)> on_write = [](int) {};  // with the frame's value
  std::function<void()> on_close = [] {};
  std::mutex mutex;
  std::vector<int> values;
  std::vector<std::string> lines;
  std::atomic<bool> is_closed{false};
  std::atomic<bool> is_gone{false};
};

class Frames : public sifa::Sink {
 public:
  explicit Frames(std::shared_ptr<Record> record) : record_(std::move(record)) {}
  ~Frames() override { record_->is_gone = true; }

  void write(const CapturedFrame& frame, const std::vector<std::string>& lines) override {
    record_->on_write(frame.data.at(0));
    const std::lock_guard<std::mutex> lock(record_->mutex);
    record_->values.push_back(frame.data[0]);
    record_->lines.push_back(lines.at(0));
  }

  void close() override {
    record_->on_close();
    record_->is_closed = true;
  }

 private:
  std::shared_ptr<Record> record_;
};

CapturedFrame frame_of(int value) {
  CapturedFrame frame;
  frame.data.assign(3, static_cast<std::uint8_t>(value));
  frame.height = frame.width = 1;
  return frame;
}

bool write(AsyncSink& sink, int value, Full full = Full::kWait,
           std::chrono::milliseconds timeout = kPatience) {
  CapturedFrame frame = frame_of(value);
  return sink.write(frame, {std::to_string(value)}, full, timeout);
}

TEST(AsyncSink, WritesEveryFrameInOrder) {
  const auto record = std::make_shared<Record>();
  AsyncSink sink(std::make_unique<Frames>(record), "out.mp4");
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(write(sink, i));
  sink.close();
  EXPECT_TRUE(record->is_closed && record->is_gone);
  ASSERT_EQ(record->values.size(), 100U);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(record->values[i], i);
    EXPECT_EQ(record->lines[i], std::to_string(i));
  }
  EXPECT_EQ(sink.written(), 100);
  EXPECT_EQ(sink.dropped(), 0);
  sink.close();  // which it is
}

TEST(AsyncSink, ClosesWhatNobodyClosed) {
  const auto record = std::make_shared<Record>();
  {
    AsyncSink sink(std::make_unique<Frames>(record), "out.mp4");
    ASSERT_TRUE(write(sink, 1));
  }
  EXPECT_TRUE(record->is_closed);
  EXPECT_EQ(record->values.size(), 1U);
}

// The first frame is with the sink, which does not return: two wait, and the others do or do not.
TEST(AsyncSink, DropsTheOldestOrWaits) {
  for (const Full full : {Full::kDrop, Full::kWait}) {
    std::promise<void> begun, release;
    const auto record = std::make_shared<Record>();
    record->on_write = [&](int value) {
      if (value != 0) return;
      begun.set_value();
      release.get_future().wait();
    };
    AsyncSink sink(std::make_unique<Frames>(record), "out");
    ASSERT_TRUE(write(sink, 0));
    begun.get_future().wait();
    for (int i = 1; i < 3; ++i) ASSERT_TRUE(write(sink, i));
    for (int i = 3; i < 10; ++i)
      ASSERT_EQ(write(sink, i, full, std::chrono::milliseconds(1)), full == Full::kDrop);
    release.set_value();
    sink.close();
    EXPECT_EQ(record->values,
              full == Full::kDrop ? (std::vector<int>{0, 8, 9}) : (std::vector<int>{0, 1, 2}));
    EXPECT_EQ(sink.written(), 3);
    EXPECT_EQ(sink.dropped(), full == Full::kDrop ? 7 : 0);
  }
}

TEST(AsyncSink, GivesBuffersBack) {
  const auto record = std::make_shared<Record>();
  AsyncSink sink(std::make_unique<Frames>(record), "out");
  ASSERT_TRUE(write(sink, 0));
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (sink.written() == 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  CapturedFrame frame = frame_of(1);
  ASSERT_TRUE(sink.write(frame, {""}, Full::kWait, kPatience));
  EXPECT_EQ(frame.data.size(), 3U);
}

TEST(AsyncSink, PassesOnWhatTheSinkThrows) {
  const auto record = std::make_shared<Record>();
  record->on_write = [](int) { throw Error(ErrorCode::kOther, "the disk is full"); };
  AsyncSink sink(std::make_unique<Frames>(record), "out.mp4");
  std::string message;
  EXPECT_EQ(code_of(
                [&] {
                  for (int i = 0;; ++i) write(sink, i % 256);
                },
                &message),
            ErrorCode::kOther);
  EXPECT_EQ(message, "the disk is full");
  EXPECT_EQ(code_of([&] { sink.close(); }), ErrorCode::kOther);
  EXPECT_FALSE(record->is_closed);  // a sink that failed is only destroyed
  EXPECT_TRUE(record->is_gone);
  EXPECT_EQ(sink.written(), 0);
}

TEST(AsyncSink, PassesOnWhatClosingThrows) {
  const auto record = std::make_shared<Record>();
  record->on_close = [] { throw Error(ErrorCode::kOther, "the disk is full"); };
  AsyncSink sink(std::make_unique<Frames>(record), "out.mp4");
  ASSERT_TRUE(write(sink, 1));
  EXPECT_EQ(code_of([&] { sink.close(); }), ErrorCode::kOther);
  EXPECT_EQ(sink.written(), 1);
}

// A pipeline whose peer does not read may never return. It is left alone, and what it uses outlives the
// AsyncSink.
TEST(AsyncSink, DoesNotWaitForASinkThatHangs) {
  std::promise<void> release;
  const auto record = std::make_shared<Record>();
  record->on_write = [future = release.get_future().share()](int) { future.wait(); };
  {
    AsyncSink sink(std::make_unique<Frames>(record), "gst://anything", std::chrono::milliseconds(20));
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(write(sink, i, Full::kDrop));
    std::string message;
    EXPECT_EQ(code_of([&] { sink.close(); }, &message), ErrorCode::kOther);
    EXPECT_NE(message.find("gst://anything has taken nothing for "), std::string::npos) << message;
    EXPECT_EQ(sink.written() + sink.dropped(), 4);  // but for the one that it hangs with
  }
  EXPECT_FALSE(record->is_gone);
  release.set_value();
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!record->is_gone && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_TRUE(record->is_gone);
}

// As long as it takes something it is waited for, however slow it is.
TEST(AsyncSink, WaitsForASinkThatIsSlow) {
  const auto record = std::make_shared<Record>();
  record->on_write = [](int) { std::this_thread::sleep_for(std::chrono::milliseconds(700)); };
  AsyncSink sink(std::make_unique<Frames>(record), "out.mp4", std::chrono::milliseconds(2000));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(write(sink, i));
  record->on_close = [] { std::this_thread::sleep_for(std::chrono::milliseconds(3000)); };
  sink.close();
  EXPECT_EQ(sink.written(), 3);
  EXPECT_TRUE(record->is_closed);
}

}  // namespace
