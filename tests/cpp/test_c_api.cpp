// The C API against the C++ one: the same answers, and for whatever is wrong a code and one line. That other
// languages can call it is tested by cpp/examples/c and tests/python/test_cpp_library.py.
#include <algorithm>
#include <cstring>
#include <thread>

#include "runtime_data.h"
#include "sifa/classifier.h"
#include "sifa/sifa.h"
#include "sifa/stream.h"

namespace {

constexpr int kHeight = 40;
constexpr int kWidth = 48;
constexpr std::size_t kClasses = 3;
constexpr int kStep = 4;  // frames of a step of stream.pt

// A handle of each kind, destroyed with this object.
class Classifier {
 public:
  Classifier() { EXPECT_EQ(sifa_classifier_create(data("model.pt").c_str(), nullptr, 1, &handle_), SIFA_OK); }
  ~Classifier() { sifa_classifier_destroy(handle_); }
  operator sifa_classifier*() const { return handle_; }

 private:
  sifa_classifier* handle_ = nullptr;
};

class Streams {
 public:
  explicit Streams(std::size_t count) {
    EXPECT_EQ(sifa_streams_create(data("stream.pt").c_str(), count, "cpu", 1, 1, 0, &handle_), SIFA_OK);
  }
  ~Streams() { sifa_streams_destroy(handle_); }
  operator sifa_streams*() const { return handle_; }

  // Frames [begin, end) of `pattern` to one of them; whether a prediction is due after the last.
  bool push(std::size_t stream, int begin, int end) const {
    int is_due = -1;
    for (int i = begin; i < end; ++i) {
      const std::vector<std::uint8_t> frame = pattern(1, 1, kHeight, kWidth, i);
      EXPECT_EQ(sifa_streams_push(handle_, stream, frame.data(), kHeight, kWidth, &is_due), SIFA_OK);
    }
    return is_due == 1;
  }

 private:
  sifa_streams* handle_ = nullptr;
};

// One line that says so.
void expect_error(sifa_status status, sifa_status expected, const std::string& message) {
  EXPECT_EQ(status, expected) << sifa_last_error();
  const std::string said = sifa_last_error();
  EXPECT_NE(said.find(message), std::string::npos) << said;
  EXPECT_EQ(said.find('\n'), std::string::npos) << said;
}

TEST(C, ClassifiesLikeTheClassifier) {
  const Classifier classifier;
  const sifa::Classifier expected(data("model.pt"));
  const std::int64_t frames = expected.metadata().num_frames;
  std::size_t count = 0;
  ASSERT_EQ(sifa_classifier_num_labels(classifier, &count), SIFA_OK);
  ASSERT_EQ(count, kClasses);
  for (std::size_t i = 0; i < count; ++i) {
    const char* label = nullptr;
    ASSERT_EQ(sifa_classifier_label(classifier, i, &label), SIFA_OK);
    EXPECT_EQ(label, expected.labels()[i]);
  }
  const char* json = nullptr;
  ASSERT_EQ(sifa_classifier_metadata(classifier, &json), SIFA_OK);
  EXPECT_EQ(json, expected.metadata().json);

  const std::vector<std::uint8_t> clips = pattern(2, static_cast<int>(frames), kHeight, kWidth);
  std::vector<float> answer(2 * kClasses);
  ASSERT_EQ(sifa_classifier_classify(classifier, clips.data(), 2, frames, kHeight, kWidth, answer.data(),
                                     answer.size()),
            SIFA_OK);
  expect_near(answer, expected.classify({clips.data(), 2, frames, kHeight, kWidth}), 1e-6);
}

TEST(C, RefusesWhatIsWrongWithAClip) {
  const Classifier classifier;
  const std::vector<std::uint8_t> clip = pattern(1, 4, kHeight, kWidth);
  std::vector<float> answer(kClasses, -1.0f);
  const auto classify = [&](const sifa_classifier* handle, const std::uint8_t* frames, std::int64_t clips,
                            std::int64_t num_frames, std::int64_t height, float* probabilities,
                            std::size_t capacity) {
    return sifa_classifier_classify(handle, frames, clips, num_frames, height, kWidth, probabilities,
                                    capacity);
  };
  float* const into = answer.data();
  const std::uint8_t* const frames = clip.data();
  expect_error(classify(classifier, frames, 1, 4, kHeight, into, 2), SIFA_INVALID_ARGUMENT,
               "probabilities must have room for 3 numbers, got a capacity of 2");
  expect_error(classify(classifier, frames, 1, 3, kHeight, into, 3), SIFA_INVALID_ARGUMENT, "got 3 frames");
  expect_error(classify(classifier, frames, 0, 4, kHeight, into, 3), SIFA_INVALID_ARGUMENT, "got 0 clips");
  expect_error(classify(classifier, frames, 1, 4, -1, into, 3), SIFA_INVALID_ARGUMENT,
               "got frames of -1 x 48");
  expect_error(classify(nullptr, frames, 1, 4, kHeight, into, 3), SIFA_INVALID_ARGUMENT,
               "classifier must not be NULL");
  expect_error(classify(classifier, nullptr, 1, 4, kHeight, into, 3), SIFA_INVALID_ARGUMENT,
               "frames must not be NULL");
  expect_error(classify(classifier, frames, 1, 4, kHeight, nullptr, 3), SIFA_INVALID_ARGUMENT,
               "probabilities must not be NULL");
  expect_error(sifa_classifier_classify_video(classifier, "/nothing.mp4", into, 2), SIFA_INVALID_ARGUMENT,
               "probabilities must have room for 3 numbers");
  EXPECT_EQ(answer, std::vector<float>(kClasses, -1.0f));  // an error is never a class
  const char* label = nullptr;
  expect_error(sifa_classifier_label(classifier, kClasses, &label), SIFA_INVALID_ARGUMENT,
               "there is no label 3: there are 3, counted from 0");
  std::size_t count = 0;
  expect_error(sifa_classifier_num_labels(nullptr, &count), SIFA_INVALID_ARGUMENT,
               "the handle must not be NULL");
  expect_error(sifa_classifier_metadata(classifier, nullptr), SIFA_INVALID_ARGUMENT, "json must not be NULL");
}

TEST(C, RefusesBadModels) {
  sifa_classifier* classifier = nullptr;
  sifa_streams* streams = nullptr;
  for (const auto& [name, status] : {std::pair{"nothing.pt", SIFA_FILE_NOT_FOUND},
                                     {"text.pt", SIFA_NOT_A_MODEL},
                                     {"no_code.pt", SIFA_DAMAGED_MODEL},
                                     {"kind.pt", SIFA_UNSUPPORTED_SCHEMA},
                                     {"reference.pt", SIFA_REFERENCE_MISMATCH}}) {
    const std::string path = data(name);
    expect_error(sifa_classifier_create(path.c_str(), nullptr, 0, &classifier), status, name);
    expect_error(sifa_streams_create(path.c_str(), 1, nullptr, 0, 0, 0, &streams), status, name);
  }
  const std::string model = data("model.pt");
  expect_error(sifa_classifier_create(model.c_str(), "tpu", 0, &classifier), SIFA_DEVICE_UNAVAILABLE, "tpu");
  expect_error(sifa_classifier_create(nullptr, nullptr, 0, &classifier), SIFA_INVALID_ARGUMENT,
               "path must not be NULL");
  expect_error(sifa_classifier_create(model.c_str(), nullptr, 0, nullptr), SIFA_INVALID_ARGUMENT,
               "classifier must not be NULL");
  expect_error(sifa_streams_create(model.c_str(), 0, nullptr, 0, 0, 0, &streams), SIFA_INVALID_ARGUMENT,
               "streams must be 1 to 65536, got 0");
  EXPECT_EQ(classifier, nullptr);
  EXPECT_EQ(streams, nullptr);
  sifa_classifier_destroy(nullptr);
  sifa_streams_destroy(nullptr);
}

TEST(C, StreamsLikeTheStream) {
  sifa::StreamOptions options;
  options.frame_stride = 1;
  sifa::Stream stream(data("stream.pt"), options);
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < 2 * kStep; ++i) {
    const std::vector<std::uint8_t> frame = pattern(1, 1, kHeight, kWidth, i);
    if (const auto prediction = stream.push({frame.data(), kHeight, kWidth})) {
      expected.push_back(prediction->probabilities);
    }
  }
  ASSERT_EQ(expected.size(), 2U);

  const Streams streams(2);
  std::vector<std::int64_t> newest(2);
  std::vector<float> answer(2 * kClasses, -1.0f);
  const auto run = [&] { return sifa_streams_run(streams, newest.data(), answer.data(), answer.size()); };
  const auto expect_second = [&](const std::vector<float>& row) {
    ASSERT_EQ(run(), SIFA_OK) << sifa_last_error();
    EXPECT_EQ(newest[0], -1);
    EXPECT_EQ(std::vector<float>(answer.begin(), answer.begin() + kClasses),
              std::vector<float>(kClasses, -1.0f));
    expect_near({answer.begin() + kClasses, answer.end()}, row, 1e-6);
  };
  EXPECT_TRUE(streams.push(1, 0, kStep));
  expect_second(expected[0]);
  EXPECT_EQ(newest[1], kStep - 1);

  // Saved, disturbed, restored.
  std::size_t size = 0;
  ASSERT_EQ(sifa_streams_save(streams, 1, nullptr, 0, &size), SIFA_OK);
  std::vector<std::uint8_t> saved(size);
  expect_error(sifa_streams_save(streams, 1, saved.data(), size - 1, &size), SIFA_INVALID_ARGUMENT,
               "bytes must have room for " + std::to_string(size));
  ASSERT_EQ(sifa_streams_save(streams, 1, saved.data(), size, &size), SIFA_OK);
  ASSERT_EQ(sifa_streams_reset(streams, 1), SIFA_OK);
  EXPECT_TRUE(streams.push(1, 0, kStep));
  ASSERT_EQ(sifa_streams_restore(streams, 1, saved.data(), size), SIFA_OK);
  EXPECT_TRUE(streams.push(1, kStep, 2 * kStep));
  expect_second(expected[1]);
  EXPECT_EQ(newest[1], 2 * kStep - 1);

  saved[size / 2] ^= 1;
  expect_error(sifa_streams_restore(streams, 1, saved.data(), size), SIFA_INVALID_ARGUMENT,
               "its checksum does not match");
  expect_error(sifa_streams_restore(streams, 1, saved.data(), 0), SIFA_INVALID_ARGUMENT,
               "these bytes are not a saved stream");
}

TEST(C, RefusesWhatIsWrongWithAStream) {
  const Streams streams(2);
  const std::vector<std::uint8_t> frame = pattern(1, 1, kHeight, kWidth);
  std::vector<std::int64_t> newest(2);
  std::vector<float> answer(2 * kClasses);
  int is_due = -1;
  std::size_t size = 0;
  expect_error(sifa_streams_push(streams, 2, frame.data(), kHeight, kWidth, &is_due), SIFA_INVALID_ARGUMENT,
               "there is no stream 2");
  expect_error(sifa_streams_push(streams, 0, frame.data(), 0, kWidth, &is_due), SIFA_INVALID_ARGUMENT,
               "got 0 x 48");
  expect_error(sifa_streams_push(streams, 0, nullptr, kHeight, kWidth, &is_due), SIFA_INVALID_ARGUMENT,
               "frame must not be NULL");
  EXPECT_EQ(is_due, -1);
  expect_error(sifa_streams_run(streams, newest.data(), answer.data(), 5), SIFA_INVALID_ARGUMENT,
               "probabilities must have room for 6 numbers, got a capacity of 5");
  expect_error(sifa_streams_run(streams, nullptr, answer.data(), 6), SIFA_INVALID_ARGUMENT,
               "newest must not be NULL");
  expect_error(sifa_streams_reset(streams, 2), SIFA_INVALID_ARGUMENT, "there is no stream 2");
  expect_error(sifa_streams_save(streams, 2, nullptr, 0, &size), SIFA_INVALID_ARGUMENT,
               "there is no stream 2");
  expect_error(sifa_streams_save(streams, 0, nullptr, 0, nullptr), SIFA_INVALID_ARGUMENT,
               "size must not be NULL");
  const char* label = nullptr;
  expect_error(sifa_streams_label(streams, kClasses, &label), SIFA_INVALID_ARGUMENT, "there is no label 3");
}

TEST(C, TheLastErrorIsItsThreads) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([path = "/nothing" + std::to_string(i) + ".pt"] {
      EXPECT_STREQ(sifa_last_error(), "");
      sifa_classifier* classifier = nullptr;
      for (int time = 0; time < 100; ++time) {
        expect_error(sifa_classifier_create(path.c_str(), nullptr, 0, &classifier), SIFA_FILE_NOT_FOUND,
                     "model file not found: " + path);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A line is cut, not overrun.
TEST(C, AnOverlongPathIsCut) {
  sifa_classifier* classifier = nullptr;
  const std::string path(5000, 'x');
  EXPECT_EQ(sifa_classifier_create(path.c_str(), nullptr, 0, &classifier), SIFA_FILE_NOT_FOUND);
  EXPECT_LT(std::strlen(sifa_last_error()), std::size_t{1024});
}

#if SIFA_TEST_VIDEO
TEST(C, ClassifiesAVideoLikeTheClassifier) {
  const Classifier classifier;
  std::vector<float> answer(kClasses);
  ASSERT_EQ(sifa_classifier_classify_video(classifier, data("clip.mkv").c_str(), answer.data(), kClasses),
            SIFA_OK);
  expect_near(answer, sifa::Classifier(data("model.pt")).classify(data("clip.mkv")).probabilities, 1e-6);
  expect_error(sifa_classifier_classify_video(classifier, data("text.mp4").c_str(), answer.data(), kClasses),
               SIFA_VIDEO_CANNOT_BE_OPENED, "text.mp4");
}
#endif

}  // namespace
