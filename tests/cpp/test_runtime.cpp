// The C++ runtime on the models and videos of tests/python/make_runtime_data.py, good ones and bad ones.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime_data.h"
#include "sifa/classifier.h"

namespace {

using sifa::Classifier;
using sifa::Error;
using sifa::ErrorCode;

constexpr int kFrames = 4;
constexpr int kHeight = 23;
constexpr int kWidth = 31;

sifa::Frames frames_of(const std::vector<std::uint8_t>& values, int clips = 1) {
  return {values.data(), clips, kFrames, kHeight, kWidth};
}

// First in the file, so that threads compete to load the operator library: twice would crash.
TEST(Concurrency, InstancesOfSeveralThreads) {
  const std::vector<std::uint8_t> values = pattern(3, kFrames, kHeight, kWidth);
  std::vector<std::vector<float>> results(4);
  std::vector<std::thread> threads;
  for (std::vector<float>& result : results) {
    threads.emplace_back([&] {
      const Classifier classifier(data("model.pt"));
      for (int i = 0; i < 5; ++i) result = classifier.classify(frames_of(values, 3));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<float> expected = Classifier(data("model.pt")).classify(frames_of(values, 3));
  for (const std::vector<float>& result : results) expect_near(result, expected, 1e-6);
}

TEST(Concurrency, OneInstanceIsSerialised) {
  const Classifier classifier(data("model.pt"));
  const std::vector<std::uint8_t> values = pattern(1, kFrames, kHeight, kWidth);
  const std::vector<float> expected = classifier.classify(frames_of(values));
  std::vector<std::thread> threads;
  std::atomic<int> equal{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] { equal += classifier.classify(frames_of(values)) == expected; });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 4);
}

// The graph of no_code.pt cannot be loaded, so whoever reads its metadata has not tried.
TEST(Metadata, IsReadWithoutTheGraph) {
  EXPECT_EQ(sifa::read_metadata(data("no_code.pt")).model, "small");
  EXPECT_EQ(code_of([] { Classifier(data("no_code.pt")); }), ErrorCode::kDamagedModel);
}

struct BadModel {
  const char* file;
  ErrorCode code;
  const char* message;
};

class Refused : public testing::TestWithParam<BadModel> {};

TEST_P(Refused, ByNameWithItsCode) {
  std::string message;
  EXPECT_EQ(code_of([] { Classifier classifier(data(GetParam().file)); }, &message), GetParam().code);
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_NE(message.find(GetParam().file), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Models, Refused,
    testing::Values(
        BadModel{"nothing.pt", ErrorCode::kFileNotFound, "model file not found"},
        BadModel{".", ErrorCode::kNotAModel, "not a regular file"},
        BadModel{"text.pt", ErrorCode::kNotAModel, "not a zip archive"},
        BadModel{"clip.mp4", ErrorCode::kNotAModel, "not a zip archive"},
        BadModel{"foreign.zip", ErrorCode::kNotAModel, "not laid out as torch does"},
        BadModel{"no_metadata.pt", ErrorCode::kNotAModel, "no entry extra/sifa.json"},
        BadModel{"not_json.pt", ErrorCode::kNotAModel, "not a JSON object"},
        BadModel{"no_schema_version.pt", ErrorCode::kNotAModel,
                 "schema_version must be an integer, got nothing"},
        BadModel{"deep.pt", ErrorCode::kNotAModel, "schema_version must be an integer, got a nested array"},
        BadModel{"no_labels.pt", ErrorCode::kNotAModel, "labels must be a list of at least one string"},
        BadModel{"few_labels.pt", ErrorCode::kNotAModel,
                 "reference.probabilities must be a list of 2 numbers"},
        BadModel{"no_frames.pt", ErrorCode::kNotAModel, "num_frames must be an integer from 1"},
        BadModel{"absurd_frames.pt", ErrorCode::kNotAModel, "num_frames must be an integer from 1"},
        BadModel{"absurd_size.pt", ErrorCode::kNotAModel, "at most 1 GiB"},
        BadModel{"absurd_shape.pt", ErrorCode::kNotAModel, "at most 1 GiB"},
        BadModel{"empty.pt", ErrorCode::kDamagedModel, "damaged or truncated"},
        BadModel{"no_code.pt", ErrorCode::kDamagedModel, "not loadable by"},
        BadModel{"frames.pt", ErrorCode::kDamagedModel,
                 "the model failed: builtins.ValueError: clip must have 4 frames, got 5"},
        BadModel{"encrypted.pt", ErrorCode::kNotAModel, "not laid out as torch does"},
        BadModel{"method.pt", ErrorCode::kNotAModel, "not laid out as torch does"},
        BadModel{"labels_type.pt", ErrorCode::kNotAModel, "labels must be a list of at least one string"},
        BadModel{"empty_labels.pt", ErrorCode::kNotAModel, "labels must be a list of at least one string"},
        BadModel{"no_model_name.pt", ErrorCode::kNotAModel, "model.name must be a string, got nothing"},
        BadModel{"probabilities_type.pt", ErrorCode::kNotAModel,
                 "reference.probabilities must be a list of 3 numbers"},
        BadModel{"tolerance.pt", ErrorCode::kNotAModel,
                 "reference.tolerance must be a number above 0, got 0"},
        BadModel{"cost.pt", ErrorCode::kNotAModel, "cost.operations must be an integer from 0"},
        BadModel{"window_as_stream.pt", ErrorCode::kNotAModel,
                 "state must be such that the last two tensors are 3 rows, the features of as many steps"},
        BadModel{"unknown_entry.pt", ErrorCode::kNotAModel,
                 "its entry evil/lib.so is none that torch writes into a file of format torchscript"},
        BadModel{"second_library.pt2", ErrorCode::kNotAModel,
                 "its entry data/aotinductor/model/a.so is none"},
        BadModel{"leaves_its_folder.pt", ErrorCode::kNotAModel, "not laid out as torch does"},
        BadModel{"leaves_its_folder.pt2", ErrorCode::kNotAModel, "not laid out as torch does"},
        BadModel{"inputs.pt2", ErrorCode::kDamagedModel,
                 "compiled for clip of 4 frames in steps of 1, and its metadata states clip of 1 frames"},
        BadModel{"more_inputs.pt2", ErrorCode::kDamagedModel, "its metadata states clip of 64 frames"},
        BadModel{"stream_as_window.pt", ErrorCode::kNotAModel, "state must be one tensor of 3 rows"},
        BadModel{"boolean.pt", ErrorCode::kNotAModel, "frame_stride must be an integer from 1"},
        BadModel{"nan.pt", ErrorCode::kNotAModel, "not a JSON object"},
        BadModel{"schema_version.pt", ErrorCode::kUnsupportedSchema, "schema version 2"},
        BadModel{"kind.pt", ErrorCode::kUnsupportedSchema, "kind \"segments\""},
        BadModel{"format.pt", ErrorCode::kUnsupportedSchema, "reads torchscript or aoti or exported"},
        BadModel{"stream.pt", ErrorCode::kUnsupportedSchema, "is a stream's model"},
        BadModel{"model.exported.pt2", ErrorCode::kUnsupportedSchema,
                 "is a portable program: finish it on this machine, with `sifa compile`"},
        BadModel{"machine.pt2", ErrorCode::kUnsupportedSchema, "was compiled for machine vax, not for "},
        BadModel{"no_code.pt2", ErrorCode::kDamagedModel, "not loadable by"},
        BadModel{"reference.pt2", ErrorCode::kReferenceMismatch, "on the reference input"},
        BadModel{"operator.pt", ErrorCode::kOperatorLibrary, "needs another operator library"},
        BadModel{"lying_labels.pt", ErrorCode::kReferenceMismatch, "3 outputs but 2 labels"},
        BadModel{"reference.pt", ErrorCode::kReferenceMismatch, "on the reference input"}));

// A changed byte is either refused or, where it means nothing (a date, padding), changes nothing.
TEST(Damage, ChangedBytes) {
  const std::string good = contents(data("model.pt"));
  const std::string json = sifa::read_metadata(data("model.pt")).json;
  const std::vector<std::uint8_t> values = pattern(1, kFrames, kHeight, kWidth);
  const std::vector<float> expected = Classifier(data("model.pt")).classify(frames_of(values));
  const ScratchFile file;
  std::mt19937 random(0);
  int refused = 0;
  constexpr int kTrials = 600;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::string bytes = good;
    const std::size_t at = random() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
    file.write(bytes);
    try {
      const Classifier classifier(file.path());
      EXPECT_EQ(classifier.metadata().json, json) << "byte " << at;
      EXPECT_EQ(classifier.classify(frames_of(values)), expected) << "byte " << at;
    } catch (const Error& error) {
      ++refused;
      EXPECT_TRUE(error.code() == ErrorCode::kDamagedModel || error.code() == ErrorCode::kNotAModel)
          << "byte " << at << ": " << error.what();
    }
  }
  EXPECT_GT(refused, kTrials / 2);
}

// What Python answered, in both engines, chosen by looking at the file.
TEST(Classify, AgreesWithPython) {
  const auto table = nlohmann::json::parse(contents(data("expected.json")));
  std::vector<float> expected;
  for (const auto& row : table) {
    for (const auto& probability : row) expected.push_back(probability);
  }
  const std::vector<std::uint8_t> values = pattern(3, kFrames, kHeight, kWidth);
  for (const auto& [file, format] : {std::pair{"model.pt", "torchscript"}, {"model.pt2", "aoti"}}) {
    const Classifier classifier(data(file));
    EXPECT_EQ(classifier.metadata().format, format);
    expect_near(classifier.classify(frames_of(values, 3)), expected, 1e-5);
    expect_near(classifier.classify(frames_of(values, 1)), {expected[0], expected[1], expected[2]}, 1e-5);
  }
}

TEST(Classify, Zip64) {
  const std::vector<std::uint8_t> values = pattern(1, kFrames, kHeight, kWidth);
  const std::vector<float> expected = Classifier(data("model.pt")).classify(frames_of(values));
  for (const char* name : {"jit_save.pt", "zip64.pt"})
    expect_near(Classifier(data(name)).classify(frames_of(values)), expected, 1e-6);
}

// A tolerance that is written as an integer is a number too.
TEST(Classify, IntegerTolerance) {
  EXPECT_EQ(Classifier(data("integer_tolerance.pt")).metadata().reference_tolerance, 1.0);
}

// Consistent on the one clip of the reference input.
TEST(Classify, RefusesOutputsOfAnotherWidth) {
  const Classifier classifier(data("growing.pt"));
  const std::vector<std::uint8_t> values = pattern(3, kFrames, kHeight, kWidth);
  EXPECT_EQ(classifier.classify(frames_of(values)).size(), 3u);
  std::string message;
  EXPECT_EQ(code_of([&] { classifier.classify(frames_of(values, 3)); }, &message), ErrorCode::kOther);
  EXPECT_NE(message.find("it gave 15 values for 3 clips and 3 labels"), std::string::npos) << message;
}

TEST(Classify, MovedInstance) {
  Classifier first(data("model.pt"));
  const std::vector<std::uint8_t> values = pattern(1, kFrames, kHeight, kWidth);
  const std::vector<float> expected = first.classify(frames_of(values));
  Classifier second(std::move(first));
  EXPECT_EQ(second.classify(frames_of(values)), expected);
  first = std::move(second);
  EXPECT_EQ(first.classify(frames_of(values)), expected);
}

// Thousands of loads leave nothing in memory, nor the folders that LibTorch unpacks packages to. (The code of
// a package stays mapped: see aoti_program.cpp.)
TEST(Classify, UnloadsWhatItLoaded) {
  const auto count_folders = [] {
    const std::filesystem::directory_iterator files(std::filesystem::temp_directory_path());
    return std::count_if(begin(files), end(files), [](const auto& entry) {
      return entry.path().filename().string().rfind("aotinductor_", 0) == 0;
    });
  };
  const std::vector<std::uint8_t> values = pattern(1, kFrames, kHeight, kWidth);
  for (const auto& [file, loads] : {std::pair{"model.pt", 2000}, {"model.pt2", 60}}) {
    const auto folders = count_folders();
    Growth growth(loads);
    for (int i = 0; i < loads; ++i) {
      const Classifier classifier(data(file));
      classifier.classify(frames_of(values));
      growth.look(i);
    }
    EXPECT_LT(growth.bytes(), std::int64_t{8} << 20) << file;
    EXPECT_LE(count_folders(), folders + loads / 2) << file;  // other processes may have made some
  }
}

TEST(Classify, RefusesFrames) {
  const Classifier classifier(data("model.pt"));
  const std::vector<std::uint8_t> values = pattern(1, kFrames, kHeight, kWidth);
  const std::uint8_t* bytes = values.data();
  for (const auto& [frames, part] : std::vector<std::pair<sifa::Frames, std::string>>{
           {{nullptr, 1, kFrames, kHeight, kWidth}, "there is no data"},
           {{bytes, 0, kFrames, kHeight, kWidth}, "got 0 clips"},
           {{bytes, 1, 3, kHeight, kWidth}, "got 3 frames"},
           {{bytes, 1, kFrames, 0, kWidth}, "got frames of 0 x 31"},
           {{bytes, 1, kFrames, kHeight, -1}, "got frames of 23 x -1, a side must be 1 to 65536 pixels"},
           {{bytes, 1, kFrames, 65537, 1}, "got frames of 65537 x 1"},
           {{bytes, 65537, kFrames, 1, 1}, "got 65537 clips, must be 1 to 65536"}}) {
    std::string message;
    EXPECT_EQ(code_of([&, given = frames] { classifier.classify(given); }, &message),
              ErrorCode::kInvalidArgument);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find("4 frames, height, width, 3"), std::string::npos) << message;
  }
}

TEST(Classify, RefusesDevices) {
  for (const char* device : {"", "gpu", "cpu:x", "cpu:1", "cuda:-2", "cuda:99", "mps", "meta"}) {
    std::string message;
    EXPECT_EQ(code_of([&] { Classifier(data("model.pt"), {device, 0}); }, &message),
              ErrorCode::kDeviceUnavailable)
        << device;
    EXPECT_NE(message.find(device), std::string::npos) << message;
  }
  // Names that LibTorch itself would take for another device.
  for (const char* device : {"cuda:256", "cuda:200"}) {
    std::string message;
    EXPECT_EQ(code_of([&] { Classifier(data("model.pt"), {device, 0}); }, &message),
              ErrorCode::kDeviceUnavailable);
    EXPECT_NE(message.find("device must be cpu, cuda or cuda:<index>, got \"" + std::string(device)),
              std::string::npos)
        << message;
  }
  EXPECT_EQ(code_of([] { Classifier(data("model.pt"), {"cpu", -1}); }), ErrorCode::kInvalidArgument);
}

#if SIFA_TEST_VIDEO

void expect_frames(const std::string& name, const std::vector<std::int64_t>& indices, std::int64_t total) {
  const sifa::Video video = sifa::read_video(data(name), static_cast<std::int64_t>(indices.size()), 2);
  EXPECT_EQ(video.total_frames, total) << name;
  EXPECT_EQ(video.indices, indices) << name;
  ASSERT_EQ(video.height, 20) << name;
  ASSERT_EQ(video.width, 30) << name;
  std::vector<std::uint8_t> expected;
  for (const std::int64_t index : indices) {
    const std::vector<std::uint8_t> frame = pattern(1, 1, 20, 30, static_cast<int>(index));
    expected.insert(expected.end(), frame.begin(), frame.end());
  }
  EXPECT_EQ(video.frames, expected) << name;
}

TEST(Video, LosslessFramesAreExact) {
  for (const char* name : {"clip.mkv", "clip.mp4", "clip.avi"}) expect_frames(name, {2, 4, 6, 8}, 11);
}

TEST(Video, ShorterThanTheClipRepeatsFrames) {
  expect_frames("short.mkv", {0, 0, 1, 1}, 2);
  expect_frames("single.mkv", {0, 0, 0, 0}, 1);
}

// The container says 1000 frames.
TEST(Video, IsCountedWhereTheContainerLies) { expect_frames("lying.avi", {2, 4, 6, 8}, 11); }

TEST(Video, IsTurnedUpright) {
  const std::vector<std::uint8_t> frame = pattern(1, 1, 20, 30, 5);  // the middle one of 11
  const auto pixel = [&](int y, int x) {
    const std::uint8_t* rgb = &frame[static_cast<std::size_t>((y * 30 + x) * 3)];
    return std::array<int, 3>{rgb[0], rgb[1], rgb[2]};
  };
  // The top left pixel of the coded frame, and where it is after turning clockwise.
  for (const auto& [name, height, y, x] : {std::tuple{"rotated_90.mp4", 30, 0, 19},
                                           {"rotated_180.mp4", 20, 19, 29},
                                           {"rotated_270.mp4", 30, 29, 0}}) {
    const sifa::Video video = sifa::read_video(data(name), 1);
    ASSERT_EQ(video.height, height) << name;
    ASSERT_EQ(video.width, 50 - height) << name;
    const std::uint8_t* rgb = &video.frames[static_cast<std::size_t>((y * video.width + x) * 3)];
    EXPECT_EQ((std::array<int, 3>{rgb[0], rgb[1], rgb[2]}), pixel(0, 0)) << name;
  }
}

TEST(Video, ClassifiedLikeItsFrames) {
  const Classifier classifier(data("model.pt"));
  const sifa::VideoPrediction prediction = classifier.classify(data("clip.mkv"));
  EXPECT_EQ(prediction.total_frames, 11);
  EXPECT_EQ(prediction.indices, (std::vector<std::int64_t>{2, 4, 6, 8}));
  EXPECT_GT(prediction.decode_ms, 0.0);
  EXPECT_GT(prediction.model_ms, 0.0);
  const std::vector<std::uint8_t> frames = pattern(1, 4, 20, 30, 2, 2);
  EXPECT_EQ(prediction.probabilities, classifier.classify({frames.data(), 1, 4, 20, 30}));
}

TEST(Video, Refused) {
  const Classifier classifier(data("model.pt"));
  EXPECT_EQ(code_of([&] { classifier.classify(data("nothing.mp4")); }), ErrorCode::kFileNotFound);
  for (const char* name : {"text.mp4", "list.TXT", "truncated.mp4", "model.pt", "."}) {
    EXPECT_EQ(code_of([&] { classifier.classify(data(name)); }), ErrorCode::kVideoCannotBeOpened) << name;
  }
  EXPECT_EQ(code_of([&] { classifier.classify(data("no_frames.avi")); }), ErrorCode::kVideoHasNoFrames);
  EXPECT_EQ(code_of([&] { sifa::read_video(data("clip.mkv"), 0); }), ErrorCode::kInvalidArgument);
}

#endif

}  // namespace
