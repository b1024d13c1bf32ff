// Any bytes as a model file: the zip archive, its checksums, and the metadata behind them.
#include <cstdint>

#include "fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const sifa::fuzz::MemoryFile file(std::string(reinterpret_cast<const char*>(data), size));
  sifa::fuzz::allow_errors([&] { sifa::fuzz::read_model(file.path()); });
  return 0;
}
