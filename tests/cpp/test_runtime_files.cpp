// What the runtime makes of a model file before LibTorch sees it, and the sampling rule: code without torch,
// which is also built and run under the sanitizers.
#include <zlib.h>

#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "../../cpp/src/archive.h"
#include "runtime_data.h"
#include "sifa/metadata.h"
#include "sifa/sampling.h"

namespace {

using sifa::Archive;
using sifa::ErrorCode;

TEST(Sampling, GoldenTable) {
  const auto table = nlohmann::json::parse(contents(environment("SIFA_TEST_GOLDEN") + "/frame_indices.json"));
  ASSERT_GT(table.size(), 20u);
  for (const auto& row : table) {
    EXPECT_EQ(sifa::frame_indices(row["total"], row["num_frames"], row["frame_stride"], row["sampling"]),
              row["indices"].get<std::vector<std::int64_t>>())
        << row.dump();
  }
}

TEST(Sampling, DoesNotOverflow) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(sifa::frame_indices(kMax, 3, kMax), (std::vector<std::int64_t>{0, kMax / 3, kMax / 3 * 2}));
  EXPECT_EQ(sifa::frame_indices(kMax, 1, kMax), std::vector<std::int64_t>{kMax / 2});
  EXPECT_EQ(sifa::frame_indices(kMax, 1, kMax, "segments"), std::vector<std::int64_t>{kMax / 2});
}

TEST(Sampling, RefusesWhatIsBelowOneAndOtherRules) {
  std::string message;
  EXPECT_EQ(code_of([] { sifa::frame_indices(0, 1); }, &message), ErrorCode::kInvalidArgument);
  EXPECT_EQ(message, "frame_indices: total must be at least 1, got 0");
  EXPECT_EQ(code_of([] { sifa::frame_indices(1, -1); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { sifa::frame_indices(1, 1, 0); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { sifa::frame_indices(1, 1, 1, "random"); }, &message), ErrorCode::kInvalidArgument);
  EXPECT_EQ(message, "frame_indices: sampling must be center or segments, got \"random\"");
}

TEST(Metadata, OfAGoodModel) {
  const sifa::Metadata metadata = sifa::read_metadata(data("model.pt"));
  EXPECT_EQ(metadata.schema_version, 1);
  EXPECT_EQ(metadata.kind, "clip");
  EXPECT_EQ(metadata.format, "torchscript");
  EXPECT_EQ(metadata.model, "small");
  EXPECT_EQ(metadata.labels, (std::vector<std::string>{"still", "left", "right"}));
  EXPECT_EQ(metadata.num_frames, 4);
  EXPECT_EQ(metadata.frame_stride, 2);
  EXPECT_EQ(metadata.sampling, "center");
  EXPECT_EQ(metadata.input_size, (std::array<std::int64_t, 2>{16, 16}));
  EXPECT_EQ(metadata.precision, "float32");
  EXPECT_EQ(metadata.reference_probabilities.size(), 3u);
  EXPECT_EQ(metadata.reference_tolerance, 1e-3);
  EXPECT_EQ(metadata.operations, 3981360);  // counted by hand in test_artifact.py
  EXPECT_EQ(metadata.weight_bytes, 4 * (8 * 27 + 8 + 18 * 72 + 3 * 8 + 3));
  EXPECT_EQ(sifa::read_metadata(data("no_cost.pt")).operations, 0);
  EXPECT_EQ(nlohmann::json::parse(metadata.json)["model"]["config"]["channels"], 8);
}

TEST(Damage, TruncatedAtEveryLength) {
  const std::string good = contents(data("model.pt"));
  const ScratchFile file;
  for (std::size_t size = 0; size < good.size(); size += size < 64 || size + 64 > good.size() ? 1 : 13) {
    file.write(good.substr(0, size));
    EXPECT_EQ(code_of([&] { sifa::read_metadata(file.path()); }), ErrorCode::kDamagedModel) << size;
  }
}

// torch.jit.save itself writes zip64 end records; the other file has all its numbers in zip64 extra fields.
TEST(Archive, Zip64) {
  for (const char* name : {"jit_save.pt", "zip64.pt"}) {
    EXPECT_NE(contents(data(name)).find("PK\x06\x06"), std::string::npos) << name;
    EXPECT_EQ(sifa::read_metadata(data(name)).json, sifa::read_metadata(data("model.pt")).json) << name;
  }
}

// Garbage in the directory: every number in its records is one that the reader has to survive.
TEST(Damage, RandomBytes) {
  for (const char* name : {"model.pt", "zip64.pt"}) {
    const std::string good = contents(data(name));
    const std::size_t directory = good.find("PK\x01\x02");
    ASSERT_NE(directory, std::string::npos);
    const ScratchFile file;
    std::mt19937 random(1);
    int refused = 0;
    constexpr int kTrials = 2000;
    for (int trial = 0; trial < kTrials; ++trial) {
      std::string bytes = good;
      for (int i = 0; i < 6; ++i)
        bytes[directory + random() % (bytes.size() - directory)] = static_cast<char>(random());
      file.write(bytes);
      std::string message;
      const auto code = code_if_thrown([&] { sifa::read_metadata(file.path()); }, &message);
      if (!code) continue;
      ++refused;
      EXPECT_TRUE(code == ErrorCode::kDamagedModel || code == ErrorCode::kNotAModel) << message;
    }
    EXPECT_GT(refused, kTrials * 9 / 10) << name;
  }
}

// What a file calls its entries does not break the line of the message.
TEST(Damage, NameOfSeveralLines) {
  std::string bytes = contents(data("model.pt"));
  const std::string name = "/extra/sifa.json";
  for (std::size_t at = bytes.find(name); at != std::string::npos; at = bytes.find(name, at + 1))
    bytes[at + 3] = '\n';
  const std::size_t content = bytes.find('{', bytes.find("/ex\nra/sifa.json"));
  bytes[content] = '[';
  const ScratchFile file;
  file.write(bytes);
  std::string message;
  EXPECT_EQ(code_of([&] { Archive(file.path()).verify(); }, &message), ErrorCode::kDamagedModel);
  EXPECT_NE(message.find("the checksum of entry ex does not match"), std::string::npos) << message;
}

// The same for the JSON, with a checksum that is right.
TEST(Damage, RandomMetadata) {
  const std::string good = contents(data("model.pt"));
  const std::string json = sifa::read_metadata(data("model.pt")).json;
  const std::size_t at = good.find(json);
  ASSERT_NE(at, std::string::npos);
  const ScratchFile file;
  std::mt19937 random(2);
  int refused = 0;
  constexpr int kTrials = 2000;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::string text = json;
    for (int i = 0; i < 3; ++i) text[random() % text.size()] = static_cast<char>(random());
    std::string bytes = good;
    bytes.replace(at, json.size(), text);
    const auto checksum = static_cast<std::uint32_t>(
        crc32(0, reinterpret_cast<const Bytef*>(text.data()), static_cast<uInt>(text.size())));
    const std::size_t entry = bytes.find("/extra/sifa.json", bytes.find("PK\x01\x02"));
    const std::size_t field = bytes.rfind("PK\x01\x02", entry) + 16;
    for (int i = 0; i < 4; ++i)
      bytes[field + static_cast<std::size_t>(i)] = static_cast<char>(checksum >> 8 * i);
    file.write(bytes);
    std::string message;
    const auto code = code_if_thrown([&] { sifa::read_metadata(file.path()); }, &message);
    if (!code) continue;
    ++refused;
    EXPECT_TRUE(code == ErrorCode::kNotAModel || code == ErrorCode::kUnsupportedSchema) << message;
  }
  EXPECT_GT(refused, kTrials / 4);
  EXPECT_LT(refused, kTrials);
}

}  // namespace
