// Any bytes as the metadata in a sound model file, whose checksum would stop them otherwise.
#include <zlib.h>

#include <cstdint>

#include "fuzzing.h"

namespace {

std::string little_endian(std::uint64_t value, int count) {
  std::string bytes;
  for (; count > 0; --count, value >>= 8) bytes.push_back(static_cast<char>(value & 0xFF));
  return bytes;
}

// A zip archive (APPNOTE, 4.3.7, 4.3.12, 4.3.16) with the one stored entry m/extra/sifa.json.
std::string archive(const std::string& content) {
  const std::string name = "m/extra/sifa.json";
  const uLong checksum = crc32(crc32(0, nullptr, 0), reinterpret_cast<const Bytef*>(content.data()),
                               static_cast<uInt>(content.size()));
  // Flags, method, time, date, checksum, both sizes, length of the name and of the extra field.
  const std::string common = little_endian(0, 8) + little_endian(checksum, 4) +
                             little_endian(content.size(), 4) + little_endian(content.size(), 4) +
                             little_endian(name.size(), 2) + little_endian(0, 2);
  const std::string local = "PK\x03\x04" + little_endian(20, 2) + common + name + content;
  const std::string directory = "PK\x01\x02" + little_endian(20, 2) + little_endian(20, 2) + common +
                                little_endian(0, 2 + 2 + 2 + 4) + little_endian(0, 4) + name;
  return local + directory + "PK\x05\x06" + little_endian(0, 4) + little_endian(1, 2) + little_endian(1, 2) +
         little_endian(directory.size(), 4) + little_endian(local.size(), 4) + little_endian(0, 2);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const sifa::fuzz::MemoryFile file(archive(std::string(reinterpret_cast<const char*>(data), size)));
  sifa::fuzz::allow_errors([&] { sifa::fuzz::read_model(file.path()); });
  return 0;
}
