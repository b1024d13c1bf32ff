// What the tests of the runtime share: the data of tests/python/make_runtime_data.py, and errors as values.
//
// The environment names the data: SIFA_TEST_DATA (that script's folder) and SIFA_TEST_GOLDEN (tests/data).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>

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
