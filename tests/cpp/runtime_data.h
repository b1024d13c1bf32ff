// What the tests of the runtime share: the data of tests/python/make_runtime_data.py, and errors as values.
//
// The environment names the data: SIFA_TEST_DATA (that script's folder) and SIFA_TEST_GOLDEN (tests/data).
#pragma once

#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sifa/error.h"

inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) throw std::runtime_error(std::string("set ") + name);
  return value;
}

inline std::string data(const std::string& name) { return environment("SIFA_TEST_DATA") + "/" + name; }

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

// A file of the test's own, removed with this object.
class ScratchFile {
 public:
  ScratchFile() : path_(testing::TempDir() + "/sifa_" + std::to_string(std::random_device{}()) + ".pt") {}
  ~ScratchFile() { std::filesystem::remove(path_); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  const std::string& path() const { return path_; }
  void write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

 private:
  std::string path_;
};

// The code of the Error that `function` throws, if it throws one, and its message, of one line.
template <typename Function>
std::optional<sifa::ErrorCode> code_if_thrown(Function function, std::string* message = nullptr) {
  try {
    function();
  } catch (const sifa::Error& error) {
    const std::string what = error.what();
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    EXPECT_LT(what.size(), 1000u) << what;
    if (message != nullptr) *message = what;
    return error.code();
  }
  return std::nullopt;
}

// The same where an Error is expected.
template <typename Function>
sifa::ErrorCode code_of(Function function, std::string* message = nullptr) {
  const std::optional<sifa::ErrorCode> code = code_if_thrown(function, message);
  EXPECT_TRUE(code.has_value()) << "nothing was thrown";
  return code.value_or(sifa::ErrorCode::kOther);
}

// `pattern` of make_runtime_data.py: clips one after the other, clip i with seed i.
inline std::vector<std::uint8_t> pattern(int clips, int frames, int height, int width, int first_frame = 0,
                                         int stride = 1) {
  std::vector<std::uint8_t> values;
  for (int seed = 0; seed < clips; ++seed) {
    for (int i = 0; i < frames; ++i) {
      const int t = first_frame + i * stride;
      for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
          for (int c = 0; c < 3; ++c) {
            values.push_back((37 * t + 5 * y + 11 * x + 83 * c + t * x + (x * y >> 2) + 101 * seed) & 255);
          }
        }
      }
    }
  }
  return values;
}

inline void expect_near(const std::vector<float>& actual, const std::vector<float>& expected,
                        double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i)
    EXPECT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
}

// Bytes of the process's own in memory, without the pages of files that it has mapped.
inline std::int64_t resident() {
  // What is free already and kept by glibc comes and goes in pieces as large as a layer's result.
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  const std::string name = "RssAnon:";
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(name, 0) == 0) return std::stoll(line.substr(name.size())) * 1024;
  }
  return 0;
}
