// The thread that reads sources, on sources of the test's own: order, drops, coming back, stopping. Without
// LibTorch and OpenCV, so that it is also built and run under ThreadSanitizer.
#include <unistd.h>

#include <atomic>
#include <functional>
#include <future>
#include <random>
#include <thread>

#include "../../cpp/src/uri.h"
#include "../../cpp/src/video.h"
#include "runtime_data.h"
#include "sifa/source.h"

namespace {

using sifa::Capture;
using sifa::CapturedFrame;
using sifa::Error;
using sifa::ErrorCode;
using sifa::SourceKind;
using sifa::SourceOptions;
using Status = Capture::Status;

constexpr std::chrono::seconds kPatience{60};  // for anything

// What "opening" a source gives, set by each test.
std::function<std::unique_ptr<sifa::Source>()> opened;

// The thread that last loaded the video library.
std::thread::id loaded_by;

// Gives `count` frames of one pixel, and then what `end` does: returns false, throws, waits.
class Frames : public sifa::Source {
 public:
  explicit Frames(
      int count, std::function<bool()> end = [] { return false; }, std::int64_t length = 0)
      : count_(count), end_(std::move(end)), length_(length) {}

  bool read(CapturedFrame& frame) override {
    if (given_ == count_) return end_();
    frame.data.assign(3, static_cast<std::uint8_t>(given_++));
    frame.height = frame.width = 1;
    return true;
  }

  double frames_per_second() const override { return 12.5; }

  std::int64_t length() const override { return length_; }

 private:
  int count_;
  std::function<bool()> end_;
  std::int64_t length_;
  int given_ = 0;
};

// What read() says next, other than "nothing yet".
Status next(Capture& capture, CapturedFrame& frame) {
  const Status status = capture.read(frame, kPatience);
  EXPECT_NE(status, Status::kNothingYet);
  return status;
}

void wait_until(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  ASSERT_TRUE(condition());
}

TEST(Capture, GivesEveryFrameOfAFileInOrder) {
  opened = [] { return std::make_unique<Frames>(100); };
  Capture capture("clip.mp4");
  EXPECT_FALSE(capture.is_live());
  EXPECT_EQ(capture.frames_per_second(), 12.5);
  CapturedFrame frame;
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(next(capture, frame), Status::kFrame);
    EXPECT_EQ(frame.index, i);
    EXPECT_EQ(frame.data, std::vector<std::uint8_t>(3, static_cast<std::uint8_t>(i)));
    EXPECT_EQ(frame.begins, i == 0);
  }
  EXPECT_EQ(next(capture, frame), Status::kEnd);
  EXPECT_EQ(next(capture, frame), Status::kEnd);
  EXPECT_EQ(capture.captured(), 100);
  EXPECT_EQ(capture.dropped(), 0);
}

TEST(Capture, KeepsTheNewestFramesOfALiveSource) {
  opened = [] { return std::make_unique<Frames>(50); };
  Capture capture("gst://anything");
  EXPECT_TRUE(capture.is_live());
  wait_until([&] { return capture.captured() == 50; });
  EXPECT_EQ(capture.dropped(), 48);
  CapturedFrame frame;
  ASSERT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(frame.index, 48);
  EXPECT_EQ(frame.data[0], 48);
  EXPECT_TRUE(frame.begins);  // which it inherits from those dropped
  ASSERT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(frame.index, 49);
  EXPECT_FALSE(frame.begins);
  EXPECT_EQ(next(capture, frame), Status::kEnd);  // a pipeline that ends was made to
}

TEST(Capture, HasPatienceWithTheSourceAfterWhatReadsItIsLoaded) {
  loaded_by = {};
  opened = [] { return std::make_unique<Frames>(1); };
  Capture capture("clip.mp4");
  EXPECT_EQ(loaded_by, std::this_thread::get_id());
}

TEST(Capture, SaysThatNothingHasCome) {
  std::promise<void> release;
  opened = [&] { return std::make_unique<Frames>(1, [&] { return release.get_future().wait(), false; }); };
  Capture capture("udp://127.0.0.1:1");
  CapturedFrame frame;
  ASSERT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(capture.read(frame, std::chrono::milliseconds(1)), Status::kNothingYet);
  opened = [] { return std::make_unique<Frames>(1); };
  release.set_value();
  EXPECT_EQ(next(capture, frame), Status::kFrame);
}

// It ends, does not answer once, is back, fails in the middle, and does not answer any more.
TEST(Capture, ComesBack) {
  std::atomic<int> openings{0};
  const auto lost = [] { return throw Error(ErrorCode::kVideoCannotBeOpened, "the server is gone"), false; };
  opened = [&]() -> std::unique_ptr<sifa::Source> {
    const int opening = openings++;
    if (opening == 0) return std::make_unique<Frames>(1);
    if (opening == 2) return std::make_unique<Frames>(1, lost);
    throw Error(ErrorCode::kVideoCannotBeOpened, "there is no server");
  };
  Capture capture("rtsp://127.0.0.1/x");
  CapturedFrame frame;
  for (const int index : {0, 1}) {
    ASSERT_EQ(next(capture, frame), Status::kFrame);
    EXPECT_EQ(frame.index, index);
    EXPECT_TRUE(frame.begins);
  }
  EXPECT_EQ(capture.reconnections(), 1);
  wait_until([&] { return openings >= 4; });
}

// Opens recordings that end after each of `counts` of the `length` frames that they state; then there is
// none.
void open_recordings(std::vector<int> counts, std::int64_t length) {
  opened = [counts = std::move(counts), length,
            next = std::size_t{0}]() mutable -> std::unique_ptr<sifa::Source> {
    if (next == counts.size()) throw Error(ErrorCode::kVideoCannotBeOpened, "there is no server");
    return std::make_unique<Frames>(counts[next++], [] { return false; }, length);
  };
}

// What is left of a recording, frame by frame without a gap; the number of frames.
int read_recording(Capture& capture) {
  CapturedFrame frame;
  int count = 0;
  for (; next(capture, frame) == Status::kFrame; ++count) {
    EXPECT_EQ(frame.index, count);
    EXPECT_EQ(frame.data[0], count);
    EXPECT_EQ(frame.begins, count == 0);
  }
  EXPECT_EQ(capture.dropped(), 0);
  return count;
}

TEST(Capture, ReadsARecordingBehindAUrlToItsEnd) {
  for (const int length : {100, 112}) {  // whose last second need not be there
    open_recordings({100}, length);
    Capture capture("http://127.0.0.1/x.mp4");
    EXPECT_FALSE(capture.is_live());
    EXPECT_EQ(read_recording(capture), 100);
    EXPECT_EQ(capture.reconnections(), 0);
  }
}

TEST(Capture, GoesOnWithARecordingWhereItWasCut) {
  open_recordings({50, 20, 100}, 100);
  Capture capture("http://127.0.0.1/x.mp4");
  EXPECT_EQ(read_recording(capture), 100);
  EXPECT_EQ(capture.reconnections(), 2);
}

TEST(Capture, TakesARecordingThatEndsTwiceAtAFrameForEnded) {
  open_recordings({50, 50, 100}, 100);
  Capture capture("http://127.0.0.1/x.mp4");
  EXPECT_EQ(read_recording(capture), 50);
  EXPECT_EQ(capture.reconnections(), 1);
}

TEST(Capture, GivesUpACutRecording) {
  open_recordings({50}, 100);
  SourceOptions options;
  options.give_up_after = std::chrono::milliseconds(1);
  Capture capture("http://127.0.0.1/x.mp4", options);
  CapturedFrame frame;
  for (int i = 0; i < 50; ++i) ASSERT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(code_of([&] { next(capture, frame); }), ErrorCode::kVideoCannotBeOpened);
}

// Live MP4 comes in fragments, of which the first states its own length.
TEST(Capture, TakesWhatGivesMoreThanItStatesForLive) {
  open_recordings({200, 1}, 25);
  Capture capture("http://127.0.0.1/x.mp4");
  EXPECT_FALSE(capture.is_live());
  CapturedFrame frame;
  for (int i = 0; i < 51; ++i) ASSERT_EQ(next(capture, frame), Status::kFrame);
  wait_until([&] { return capture.captured() == 201; });
  EXPECT_TRUE(capture.is_live());
  EXPECT_GT(capture.dropped(), 140);
  EXPECT_EQ(capture.reconnections(), 1);
}

TEST(Capture, GivesUp) {
  bool is_there = true;
  opened = [&]() -> std::unique_ptr<sifa::Source> {
    if (!std::exchange(is_there, false)) throw Error(ErrorCode::kVideoCannotBeOpened, "there is no server");
    return std::make_unique<Frames>(1);
  };
  SourceOptions options;
  options.give_up_after = std::chrono::milliseconds(1);
  Capture capture("rtsp://127.0.0.1/x", options);
  CapturedFrame frame;
  EXPECT_EQ(next(capture, frame), Status::kFrame);
  std::string message;
  EXPECT_EQ(code_of([&] { next(capture, frame); }, &message), ErrorCode::kVideoCannotBeOpened);
  EXPECT_EQ(message, "there is no server");
}

// As a camera may, of which only reading says whether it gives anything.
TEST(Capture, RefusesWhatOpensButGivesNoFrame) {
  opened = [] { return std::make_unique<Frames>(0); };
  Capture capture("/dev/video7");
  CapturedFrame frame;
  std::string message;
  EXPECT_EQ(code_of([&] { next(capture, frame); }, &message), ErrorCode::kVideoHasNoFrames);
  EXPECT_EQ(
      message,
      "video has no frames: /dev/video7 opens, but gives none: does anything send to it, or has another "
      "program taken it?");
}

TEST(Capture, PassesOnWhatIsWrongWithTheFirstFrame) {
  opened = [] {
    return std::make_unique<Frames>(
        0, [] { return throw Error(ErrorCode::kVideoCannotBeOpened, "it is broken"), false; });
  };
  Capture capture("rtsp://127.0.0.1/x");
  CapturedFrame frame;
  std::string message;
  EXPECT_EQ(code_of([&] { next(capture, frame); }, &message), ErrorCode::kVideoCannotBeOpened);
  EXPECT_EQ(message, "it is broken");
}

TEST(Capture, GivesUpWhatOpensAgainButGivesNoFrame) {
  std::atomic<int> openings{0};
  opened = [&] { return std::make_unique<Frames>(openings++ == 0 ? 1 : 0); };
  SourceOptions options;
  options.give_up_after = std::chrono::milliseconds(600);  // it is opened after 0, 250 and 750
  Capture capture("rtsp://127.0.0.1/x", options);
  CapturedFrame frame;
  EXPECT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(code_of([&] { next(capture, frame); }), ErrorCode::kVideoHasNoFrames);
  EXPECT_LE(openings, 3);
  EXPECT_EQ(capture.reconnections(), 0);
}

TEST(Capture, PassesOnWhatIsWrongWithAFile) {
  opened = [] {
    return std::make_unique<Frames>(
        2, [] { return throw Error(ErrorCode::kVideoCannotBeOpened, "it is broken"), false; });
  };
  Capture capture("clip.mp4");
  CapturedFrame frame;
  EXPECT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(code_of([&] { next(capture, frame); }), ErrorCode::kVideoCannotBeOpened);
  opened = []() -> std::unique_ptr<sifa::Source> { throw Error(ErrorCode::kFileNotFound, "not there"); };
  EXPECT_EQ(code_of([] { Capture("clip.mp4"); }), ErrorCode::kFileNotFound);
  EXPECT_EQ(code_of([] { Capture("/dev/video0"); }),
            ErrorCode::kFileNotFound);  // never there: nothing to wait for
  SourceOptions options;
  options.give_up_after = std::chrono::milliseconds(-1);
  EXPECT_EQ(code_of([&] { Capture("clip.mp4", options); }), ErrorCode::kInvalidArgument);
}

// A thread that does not stop is left alone after six seconds.
void expect_to_stop(std::unique_ptr<Capture> capture) {
  const auto begin = std::chrono::steady_clock::now();
  capture.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
}

TEST(Capture, StopsWhileTheQueueIsFull) {
  opened = [] { return std::make_unique<Frames>(1000000); };
  auto capture = std::make_unique<Capture>("clip.mp4");
  wait_until([&] { return capture->captured() >= 2; });
  expect_to_stop(std::move(capture));
}

TEST(Capture, StopsWhileItWaitsForALostSource) {
  std::atomic<int> openings{0};
  opened = [&]() -> std::unique_ptr<sifa::Source> {
    if (openings++ == 0) return std::make_unique<Frames>(1);
    throw Error(ErrorCode::kVideoCannotBeOpened, "there is no server");
  };
  auto capture = std::make_unique<Capture>("tcp://127.0.0.1:1");
  wait_until([&] { return openings >= 2; });
  expect_to_stop(std::move(capture));
}

// A reader of GStreamer's may never return. It is left alone, and what it uses outlives the Capture.
TEST(Capture, DoesNotWaitForAReaderThatHangs) {
  enum { kReading, kHanging, kBack };
  std::promise<void> release;
  auto reader = std::make_shared<std::atomic<int>>(kReading);
  opened = [future = release.get_future().share(), reader] {
    return std::make_unique<Frames>(1, [=] {
      *reader = kHanging;
      future.wait();
      *reader = kBack;
      return false;
    });
  };
  {
    Capture capture("gst://anything");
    wait_until([&] { return *reader == kHanging; });
  }
  EXPECT_EQ(*reader, kHanging);
  release.set_value();
  wait_until([&] { return *reader == kBack; });
}

// Standard input as a pipe that the test writes into.
class StandardInput : public testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    saved_ = dup(STDIN_FILENO);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    end_ = ends[1];
    options_.height = 2;
    options_.width = 1;
  }
  void TearDown() override {
    finish();
    dup2(saved_, STDIN_FILENO);
    close(saved_);
  }
  void put(const std::string& bytes) const {
    ASSERT_EQ(write(end_, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  void finish() {
    if (end_ >= 0) close(end_);
    end_ = -1;
  }

  SourceOptions options_;

 private:
  int saved_ = -1;
  int end_ = -1;
};

TEST_F(StandardInput, IsReadFrameByFrame) {
  Capture capture("-", options_);
  CapturedFrame frame;
  put("abc");
  put("defghi");
  ASSERT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(std::string(frame.data.begin(), frame.data.end()), "abcdef");
  EXPECT_EQ(frame.height, 2);
  EXPECT_EQ(frame.width, 1);
  put("jkl");
  ASSERT_EQ(next(capture, frame), Status::kFrame);
  EXPECT_EQ(std::string(frame.data.begin(), frame.data.end()), "ghijkl");
  finish();
  EXPECT_EQ(next(capture, frame), Status::kEnd);
}

TEST_F(StandardInput, ThatEndsWithinAFrameIsRefused) {
  Capture capture("-", options_);
  CapturedFrame frame;
  put("abcd");
  finish();
  std::string message;
  EXPECT_EQ(code_of([&] { next(capture, frame); }, &message), ErrorCode::kVideoCannotBeOpened);
  EXPECT_EQ(message, "standard input ends within a frame: 4 of 6 bytes; is --size right?");
}

TEST_F(StandardInput, StopsThoughNothingComes) {
  loaded_by = {};
  auto capture = std::make_unique<Capture>("-", options_);
  EXPECT_EQ(loaded_by, std::thread::id());  // OpenCV does not read it
  expect_to_stop(std::move(capture));
}

TEST(Uri, OfSources) {
  const std::string behind = " ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1";
  for (const auto& [uri, kind, what] : std::vector<std::tuple<std::string, SourceKind, std::string>>{
           {"clip.mp4", SourceKind::kPath, "clip.mp4"},
           {"/a/b c", SourceKind::kPath, "/a/b c"},
           {"file:///a/b", SourceKind::kPath, "/a/b"},
           {"./odd://name", SourceKind::kPath, "./odd://name"},
           {"-", SourceKind::kStandardInput, ""},
           {"/dev/video0", SourceKind::kCamera, "/dev/video0"},
           {"v4l2:///dev/v4l/by-id/x", SourceKind::kCamera, "/dev/v4l/by-id/x"},
           {"rtsp://user:word@host:8554/x", SourceKind::kNetwork, "rtsp://user:word@host:8554/x"},
           {"udp://@:5000", SourceKind::kNetwork, "udp://@:5000"},
           {"gst://videotestsrc", SourceKind::kPipeline, "videotestsrc" + behind},
           {"csi://1", SourceKind::kJetsonCamera,
            "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM) ! nvvidconv ! video/x-raw,format=BGRx" +
                behind}}) {
    const sifa::SourceUri parsed = sifa::parse_source(uri);
    EXPECT_EQ(parsed.kind, kind) << uri;
    EXPECT_EQ(parsed.what, what);
    EXPECT_EQ(parsed.is_live(), kind != SourceKind::kPath && kind != SourceKind::kStandardInput) << uri;
    EXPECT_EQ(parsed.comes_back(), parsed.is_live() && kind != SourceKind::kPipeline) << uri;
  }
  for (const std::string& uri :
       {std::string(), std::string("ftp://x"), std::string("rtsp://"), std::string("csi://front"),
        std::string("csi://0 ! fakesink"), std::string("csi://12345"), std::string("a\0b", 3)}) {
    std::string message;
    EXPECT_EQ(code_of([&] { sifa::parse_source(uri); }, &message), ErrorCode::kInvalidArgument) << uri;
    EXPECT_NE(message.find("give a video file, a folder of images"), std::string::npos) << message;
  }
}

// Whatever it is given, it answers or refuses, in one line.
TEST(Uri, OfRandomBytes) {
  const std::string pieces[] = {"://", "gst", "csi", "rtsp", "/dev/video", "-", "\n", "!", "0", "\xff", " "};
  std::mt19937 random(0);
  for (int trial = 0; trial < 100000; ++trial) {
    std::string uri;
    for (int i = static_cast<int>(random() % 6); i-- > 0;) {
      uri += random() % 3 == 0 ? std::string(1, static_cast<char>(random())) : pieces[random() % 11];
    }
    const auto code = code_if_thrown([&] { sifa::parse_source(uri); });
    EXPECT_EQ(code.value_or(ErrorCode::kInvalidArgument), ErrorCode::kInvalidArgument) << uri;
  }
}

}  // namespace

namespace sifa {

void load_video_library() { loaded_by = std::this_thread::get_id(); }

std::unique_ptr<Source> open_video_source(const SourceUri&) { return opened(); }

}  // namespace sifa
