// Streams in C++, in both engines: every step equals the clip model, for any length of history.
#include <atomic>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime_data.h"
#include "sifa/hysteresis.h"
#include "sifa/stream.h"

namespace {

using sifa::Classifier;
using sifa::ErrorCode;
using sifa::Stream;
using sifa::StreamBatch;
using sifa::StreamOptions;
using sifa::StreamPrediction;

constexpr int kHeight = 40;
constexpr int kWidth = 48;
constexpr int kPeriod = 256;            // of `pattern`, in frames
constexpr int kStride = 4;              // frames of a step of stream.pt and window.pt
constexpr std::size_t kMagicSize = 14;  // bytes before the checksum of a saved stream

// Frame `index` of an endless video: `stream_frames` of make_runtime_data.py.
sifa::Frame frame(std::int64_t index) {
  static const std::vector<std::uint8_t> all = pattern(1, kPeriod, kHeight, kWidth);
  return {all.data() + index % kPeriod * kHeight * kWidth * 3, kHeight, kWidth};
}

StreamOptions every_frame(std::int64_t hop = 0) {
  StreamOptions options;
  options.frame_stride = 1;
  options.hop = hop;
  return options;
}

// The predictions that frames [begin, end) of the video lead to.
std::vector<StreamPrediction> feed(Stream& stream, std::int64_t begin, std::int64_t end) {
  std::vector<StreamPrediction> predictions;
  for (std::int64_t i = begin; i < end; ++i) {
    if (auto prediction = stream.push(frame(i))) predictions.push_back(std::move(*prediction));
  }
  return predictions;
}

class Engines : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Streams, Engines, testing::Values("stream.pt", "stream.pt2"));

TEST_P(Engines, EveryStepEqualsTheClipModelOnThePrefix) {
  Stream stream(data(GetParam()), every_frame());
  const auto expected = nlohmann::json::parse(contents(data("stream.json")))["prefixes"];
  const std::vector<StreamPrediction> predictions =
      feed(stream, 0, static_cast<std::int64_t>(expected.size()) * kStride);
  ASSERT_EQ(predictions.size(), expected.size());
  for (std::size_t step = 0; step < expected.size(); ++step) {
    expect_near(predictions[step].probabilities, expected[step].get<std::vector<float>>(), 1e-5);
    EXPECT_EQ(predictions[step].frame, static_cast<std::int64_t>(step + 1) * kStride - 1);
  }
}

TEST_P(Engines, LateStepsOfALongRunAreExactAndMemoryDoesNotGrow) {
  constexpr std::int64_t kSteps = 10000;
  const auto late = nlohmann::json::parse(contents(data("stream.json")))["late"];
  Stream stream(data(GetParam()), every_frame());
  Growth growth(kSteps);
  std::size_t compared = 0;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    const std::vector<StreamPrediction> predictions = feed(stream, step * kStride, (step + 1) * kStride);
    ASSERT_EQ(predictions.size(), 1u);
    const auto expected = late.find(std::to_string(step));
    if (expected != late.end()) {
      expect_near(predictions[0].probabilities, expected->get<std::vector<float>>(), 1e-5);
      ++compared;
    }
    growth.look(step);
  }
  EXPECT_EQ(compared, 4u);
  EXPECT_LT(growth.bytes(), std::int64_t{2} << 20);  // less than half a kilobyte per step
}

// Whoever pushes a frame gets the prediction that it makes due.
TEST(Concurrency, OneStreamIsSerialised) {
  constexpr int kThreads = 4, kFrames = 6 * kStride;
  Stream stream(data("stream.pt"), every_frame());
  std::atomic<int> predictions{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] { predictions += static_cast<int>(feed(stream, 0, kFrames).size()); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(predictions, kThreads * kFrames / kStride);
}

TEST(Concurrency, EveryStreamOfABatchHasItsOwnThread) {
  constexpr std::size_t kThreads = 4;
  StreamBatch batch(data("stream.pt"), kThreads, every_frame());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&batch, i] {
      for (int t = 0; t < kStride; ++t) batch.push(i, frame(static_cast<std::int64_t>(i) + t));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto predictions = batch.run();
  for (std::size_t i = 0; i < kThreads; ++i) {
    const auto begin = static_cast<std::int64_t>(i);
    Stream alone(data("stream.pt"), every_frame());
    ASSERT_TRUE(predictions[i].has_value());
    expect_near(predictions[i]->probabilities, feed(alone, begin, begin + kStride)[0].probabilities, 1e-5);
  }
}

// A window slides over a clip's model, by any multiple of its step; what it is made of is kept, or not.
TEST(Window, EqualsTheClipModelOnTheSameFrames) {
  constexpr std::int64_t kFrames = 32;
  for (const auto& [file, clip] : {std::pair{"model.pt", "model.pt"},
                                   {"model.pt2", "model.pt2"},
                                   {"window.pt", "clip.pt"},
                                   {"window.pt2", "clip.pt"}}) {
    const Classifier classifier(data(clip));
    const std::int64_t length = classifier.metadata().num_frames;
    const std::int64_t step = classifier.metadata().temporal_stride;
    for (const std::int64_t hop : {step, 2 * step, length}) {
      Stream stream(data(file), every_frame(hop));
      const std::vector<StreamPrediction> predictions = feed(stream, 0, kFrames);
      ASSERT_EQ(static_cast<std::int64_t>(predictions.size()), (kFrames - length) / hop + 1);
      EXPECT_GT(std::abs(predictions[0].probabilities[0] - predictions[1].probabilities[0]), 1e-4);
      for (std::size_t i = 0; i < predictions.size(); ++i) {
        const std::int64_t begin = static_cast<std::int64_t>(i) * hop;
        EXPECT_EQ(predictions[i].frame, begin + length - 1);
        expect_near(predictions[i].probabilities,
                    classifier.classify({frame(begin).data, 1, length, kHeight, kWidth}), 1e-5);
      }
    }
  }
}

// Of the frames pushed, the model's own distance apart: the first, the third, ...
TEST(Window, KeepsEveryFrameStrideThFrame) {
  const Classifier classifier(data("model.pt"));
  ASSERT_EQ(classifier.metadata().frame_stride, 2);
  Stream stream(data("model.pt"));
  const std::vector<StreamPrediction> predictions = feed(stream, 0, 9);
  ASSERT_EQ(predictions.size(), 2u);  // at frames 6 and 8
  EXPECT_EQ(predictions[1].frame, 8);
  std::vector<std::uint8_t> clip;
  for (const int i : {2, 4, 6, 8}) {
    clip.insert(clip.end(), frame(i).data, frame(i).data + kHeight * kWidth * 3);
  }
  expect_near(predictions[1].probabilities, classifier.classify({clip.data(), 1, 4, kHeight, kWidth}), 1e-5);
}

// Streams of three lengths and two sizes, with resets of their own, through one engine.
TEST_P(Engines, OfABatchAreAsIfAlone) {
  constexpr int kFrames = 10 * kStride;
  struct Plan {
    int offset;                 // of its video
    int height;                 // of its frames
    std::vector<int> restarts;  // frames at which it is reset
  };
  const std::vector<Plan> plans{
      {0, kHeight, {}}, {7, kHeight, {12, 20}}, {90, kHeight / 2, {}}, {50, kHeight, {13}}};
  const auto frame_of = [](const Plan& plan, int i) {
    sifa::Frame own = frame(plan.offset + i);
    own.height = plan.height;
    return own;
  };
  StreamBatch batch(data(GetParam()), plans.size(), every_frame());
  ASSERT_EQ(batch.size(), plans.size());
  std::vector<std::vector<StreamPrediction>> together(plans.size()), alone(plans.size());
  for (int i = 0; i < kFrames; ++i) {
    std::vector<bool> due;
    for (std::size_t s = 0; s < plans.size(); ++s) {
      for (const int restart : plans[s].restarts) {
        if (restart == i) batch.reset(s);
      }
      due.push_back(batch.push(s, frame_of(plans[s], i)));
    }
    const auto predictions = batch.run();
    ASSERT_EQ(predictions.size(), plans.size());
    for (std::size_t s = 0; s < plans.size(); ++s) {
      EXPECT_EQ(predictions[s].has_value(), due[s]);
      if (predictions[s]) together[s].push_back(*predictions[s]);
    }
  }
  for (std::size_t s = 0; s < plans.size(); ++s) {
    Stream stream(data(GetParam()), every_frame());
    for (int i = 0; i < kFrames; ++i) {
      for (const int restart : plans[s].restarts) {
        if (restart == i) stream.reset();
      }
      if (auto prediction = stream.push(frame_of(plans[s], i))) alone[s].push_back(*prediction);
    }
    ASSERT_EQ(together[s].size(), alone[s].size());
    EXPECT_GE(alone[s].size(), 9u);
    for (std::size_t i = 0; i < alone[s].size(); ++i) {
      EXPECT_EQ(together[s][i].frame, alone[s][i].frame);
      expect_near(together[s][i].probabilities, alone[s][i].probabilities, 1e-5);
    }
  }
}

// In the middle of a step too, into a stream of another instance that has seen something else.
TEST_P(Engines, GoOnWhereTheyWereSaved) {
  Stream stream(data(GetParam()), every_frame());
  feed(stream, 0, 5 * kStride + 2);
  const std::vector<std::uint8_t> saved = stream.save();
  const std::vector<StreamPrediction> expected = feed(stream, 5 * kStride + 2, 9 * kStride);
  StreamBatch other(data(GetParam()), 2, every_frame());
  for (int i = 0; i < kStride; ++i) other.push(1, frame(100 + i));
  other.run();
  other.restore(1, saved);
  std::vector<StreamPrediction> predictions;
  for (int i = 5 * kStride + 2; i < 9 * kStride; ++i) {
    if (other.push(1, frame(i))) predictions.push_back(other.run()[1].value());
  }
  ASSERT_EQ(predictions.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(predictions[i].probabilities, expected[i].probabilities);
    EXPECT_EQ(predictions[i].frame, expected[i].frame);
  }
}

TEST(Window, GoesOnWhereItWasSaved) {
  Stream stream(data("model.pt"), every_frame());
  feed(stream, 0, 6);
  Stream other(data("model.pt"), every_frame());
  other.restore(stream.save());
  EXPECT_EQ(feed(other, 6, 7)[0].probabilities, feed(stream, 6, 7)[0].probabilities);
}

// Before its first window too.
TEST(Window, GoesOnWhereItWasSavedWithItsFeatures) {
  for (const int saved_at : {6, 14}) {
    Stream stream(data("window.pt"), every_frame());
    feed(stream, 0, saved_at);
    Stream other(data("window.pt"), every_frame());
    feed(other, 100, 112);
    other.restore(stream.save());
    const std::vector<StreamPrediction> expected = feed(stream, saved_at, 20);
    const std::vector<StreamPrediction> predictions = feed(other, saved_at, 20);
    ASSERT_EQ(predictions.size(), expected.size());
    ASSERT_GE(expected.size(), 2u);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(predictions[i].probabilities, expected[i].probabilities);
      EXPECT_EQ(predictions[i].frame, expected[i].frame);
    }
  }
}

// One stream begins anew while the others go on: it waits for a window, they for a step.
TEST(Window, OfABatchIsAsIfAlone) {
  constexpr int kFrames = 32, kRestart = 17;
  StreamBatch batch(data("window.pt"), 3, every_frame());
  std::vector<std::vector<StreamPrediction>> together(batch.size());
  for (int i = 0; i < kFrames; ++i) {
    if (i == kRestart) batch.reset(1);
    for (std::size_t s = 0; s < batch.size(); ++s) batch.push(s, frame(i + 20 * static_cast<int>(s)));
    const auto predictions = batch.run();
    for (std::size_t s = 0; s < batch.size(); ++s) {
      if (predictions[s]) together[s].push_back(*predictions[s]);
    }
  }
  for (int s = 0; s < 3; ++s) {
    Stream stream(data("window.pt"), every_frame());
    std::vector<StreamPrediction> alone = feed(stream, 20 * s, 20 * s + (s == 1 ? kRestart : kFrames));
    if (s == 1) {
      stream.reset();
      for (StreamPrediction& prediction : feed(stream, 20 * s + kRestart, 20 * s + kFrames))
        alone.push_back(std::move(prediction));
    }
    const std::vector<StreamPrediction>& row = together[static_cast<std::size_t>(s)];
    ASSERT_EQ(row.size(), alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i) {
      EXPECT_EQ(row[i].frame, alone[i].frame);
      expect_near(row[i].probabilities, alone[i].probabilities, 1e-5);
    }
  }
}

// Of bytes behind the magic and the checksum itself (IEEE 802.3).
void correct_checksum(std::vector<std::uint8_t>& saved) {
  std::uint32_t checksum = ~0u;
  for (std::size_t i = kMagicSize + 4; i < saved.size(); ++i) {
    checksum ^= saved[i];
    for (int bit = 0; bit < 8; ++bit) checksum = checksum >> 1 ^ (checksum & 1 ? 0xedb88320u : 0u);
  }
  checksum = ~checksum;
  std::memcpy(&saved[kMagicSize], &checksum, sizeof checksum);
}

// Whoever can write the bytes can write their checksum.
TEST(Saved, IsRefusedIfItsCountsCannotBe) {
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  struct Forgery {
    std::size_t number;  // of pushed, count, height, width
    std::int64_t value;
  };
  for (const char* file : {"stream.pt", "window.pt", "model.pt"}) {
    Stream stream(data(file), every_frame());
    feed(stream, 0, 14);
    const std::vector<std::uint8_t> saved = stream.save();
    std::vector<std::uint8_t> unchanged = saved;
    correct_checksum(unchanged);
    ASSERT_EQ(unchanged, saved);
    stream.restore(unchanged);
    for (const auto& [number, value] :
         {Forgery{0, -1}, {0, 1}, {0, kHuge}, {1, -1}, {1, 100}, {2, 0}, {3, 0}, {3, kHuge}}) {
      std::vector<std::uint8_t> forged = saved;
      std::memcpy(&forged[kMagicSize + 8 + 8 * number], &value, sizeof value);
      correct_checksum(forged);
      std::string message;
      EXPECT_EQ(code_of([&] { stream.restore(forged); }, &message), ErrorCode::kInvalidArgument);
      EXPECT_NE(message.find("counts contradict"), std::string::npos) << file << number << message;
    }
    EXPECT_EQ(stream.save(), saved);
  }
}

TEST(Saved, IsRefusedUnlessItIsWhole) {
  Stream stream(data("stream.pt"), every_frame());
  feed(stream, 0, kStride + 1);
  const std::vector<std::uint8_t> saved = stream.save();
  const auto expect_refused = [&](const std::vector<std::uint8_t>& bytes, const std::string& part) {
    std::string message;
    EXPECT_EQ(code_of([&] { stream.restore(bytes); }, &message), ErrorCode::kInvalidArgument);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect_refused({}, "not a saved stream");
  expect_refused(std::vector<std::uint8_t>(100, 7), "not a saved stream");
  for (std::size_t size = 0; size < saved.size(); size += 97)
    expect_refused({saved.begin(), saved.begin() + static_cast<std::ptrdiff_t>(size)}, "saved stream");
  std::vector<std::uint8_t> changed = saved;
  changed[saved.size() / 2] ^= 1;
  expect_refused(changed, "checksum does not match");
  changed = saved;
  changed.push_back(0);
  expect_refused(changed, "checksum does not match");
  StreamOptions sparse;
  sparse.frame_stride = 3;
  expect_refused(Stream(data("stream.pt"), sparse).save(), "saved with another model file, or with another");
  expect_refused(Stream(data("stream.pt2"), every_frame()).save(), "saved with another model file");
  // None of this has touched the stream.
  EXPECT_EQ(stream.save(), saved);
  StreamBatch due(data("stream.pt"), 1, every_frame());
  for (int i = 0; i < kStride; ++i) due.push(0, frame(i));
  std::string message;
  EXPECT_EQ(code_of([&] { due.save(0); }, &message), ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("has a prediction due: run it before"), std::string::npos) << message;
}

TEST(Streams, RefuseOptions) {
  const auto message_of = [](const char* file, std::size_t streams, std::int64_t stride, std::int64_t hop) {
    StreamOptions options;
    options.frame_stride = stride;
    options.hop = hop;
    std::string message;
    EXPECT_EQ(code_of([&] { StreamBatch(data(file), streams, options); }, &message),
              ErrorCode::kInvalidArgument);
    return message;
  };
  EXPECT_EQ(message_of("stream.pt", 0, 0, 0), "streams must be 1 to 65536, got 0");
  EXPECT_EQ(message_of("stream.pt", 1, -1, 0),
            "frame_stride must be at least 1, or 0 for the model's own, got -1");
  EXPECT_EQ(message_of("stream.pt", 1, 0, 8), "hop must be 4, the frames of one step of this model, got 8");
  EXPECT_EQ(message_of("window.pt", 1, 0, 16),
            "hop must be a multiple of 4 up to 12 with this model, got 16");
  EXPECT_EQ(message_of("model.pt", 1, 0, 5), "hop must be a multiple of 1 up to 4 with this model, got 5");
  EXPECT_EQ(message_of("model.pt", 1, 0, -1), "hop must be a multiple of 1 up to 4 with this model, got -1");
  EXPECT_EQ(code_of([] { Stream(data("nothing.pt")); }), ErrorCode::kFileNotFound);
}

TEST(Streams, RefuseFrames) {
  StreamBatch batch(data("stream.pt"), 2, every_frame());
  const auto message_of = [&](std::size_t stream, const sifa::Frame& given) {
    std::string message;
    EXPECT_EQ(code_of([&] { batch.push(stream, given); }, &message), ErrorCode::kInvalidArgument);
    return message;
  };
  EXPECT_EQ(message_of(2, frame(0)), "there is no stream 2: there are 2, counted from 0");
  EXPECT_EQ(message_of(0, {nullptr, 4, 4}), "a frame must be bytes (height, width, 3): there is no data");
  EXPECT_EQ(message_of(0, {frame(0).data, 0, 4}),
            "a frame must be bytes (height, width, 3): got 0 x 4, a side must be 1 to 65536 pixels");
  EXPECT_EQ(message_of(0, {frame(0).data, 1, 65537}),
            "a frame must be bytes (height, width, 3): got 1 x 65537, a side must be 1 to 65536 pixels");
  EXPECT_FALSE(batch.push(0, frame(0)));
  EXPECT_EQ(message_of(0, {frame(1).data, 20, kWidth}),
            "stream 0 has frames of 40 x 48, got one of 20 x 48; reset the stream to change the size");
  EXPECT_FALSE(batch.push(0, frame(1)));
  EXPECT_FALSE(batch.push(0, frame(2)));
  EXPECT_TRUE(batch.push(0, frame(3)));
  EXPECT_EQ(message_of(0, frame(4)), "stream 0 has a prediction due: run it before its next frame");
  // What a window keeps is of frames of one size, also where it waits for none.
  Stream window(data("window.pt"), every_frame());
  feed(window, 0, 12);
  const sifa::Frame smaller{frame(0).data, 20, kWidth};
  std::string message;
  EXPECT_EQ(code_of([&] { window.push(smaller); }, &message), ErrorCode::kInvalidArgument);
  EXPECT_EQ(message,
            "stream 0 has frames of 40 x 48, got one of 20 x 48; reset the stream to change the size");
  window.reset();
  EXPECT_FALSE(window.push(smaller).has_value());
  // The refusals have left no trace.
  Stream alone(data("stream.pt"), every_frame());
  EXPECT_EQ(batch.run()[0]->probabilities, feed(alone, 0, kStride)[0].probabilities);
  EXPECT_FALSE(batch.run()[0].has_value());
  EXPECT_EQ(code_of([&] { batch.reset(2); }), ErrorCode::kInvalidArgument);
}

// Consistent on the one clip of the reference input, and not on two.
TEST(Streams, AreAsTheyWereWhenTheModelFails) {
  StreamBatch batch(data("growing.pt"), 2, every_frame());
  for (int i = 0; i < 4; ++i) {
    for (std::size_t s = 0; s < 2; ++s) batch.push(s, frame(i));
  }
  for (int trial = 0; trial < 2; ++trial) EXPECT_EQ(code_of([&] { batch.run(); }), ErrorCode::kOther);
  batch.reset(1);
  EXPECT_TRUE(batch.run()[0].has_value());
}

TEST(Hysteresis, HoldsBetweenItsThresholds) {
  sifa::Hysteresis hysteresis(0.7f, 0.4f);
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::pair<std::vector<float>, std::optional<std::size_t>>> steps{
      {{0.6f, 0.4f}, std::nullopt},   // not enough
      {{0.8f, 0.2f}, 0},              // enough
      {{0.45f, 0.55f}, 0},            // held, though another is higher
      {{0.41f, 0.75f}, 0},            // even where that would be enough
      {{0.3f, 0.69f}, std::nullopt},  // given up
      {{0.3f, 0.7f}, 1},              // the threshold itself is enough
      {{0.9f, 0.1f}, 0},              // given up for another at once
      {{kNaN, 0.6f}, std::nullopt},   // not a number
      {{0.75f, 0.9f, 0.9f}, 1},       // the highest, of equals the first
      {{0.9f}, 0},                    // a class that is no longer there
      {{}, std::nullopt},
  };
  for (std::size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(hysteresis.update(steps[i].first), steps[i].second) << i;
    EXPECT_EQ(hysteresis.decision(), steps[i].second) << i;
  }
  hysteresis.update({1.0f});
  hysteresis.reset();
  EXPECT_EQ(hysteresis.decision(), std::nullopt);
  for (const auto& [enter, leave] : {std::pair{0.4f, 0.5f}, {1.5f, 0.5f}, {0.5f, 0.0f}, {0.5f, -1.0f}}) {
    EXPECT_EQ(code_of([enter = enter, leave = leave] { sifa::Hysteresis(enter, leave); }),
              ErrorCode::kInvalidArgument);
  }
}

}  // namespace
