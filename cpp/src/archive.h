// Reads and checks the zip archive that a model file is, before anything in it reaches LibTorch.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace sifa {

/// A model file as a zip archive. LibTorch reads the same archive but ignores its checksums: a flipped byte
/// in a weight would load silently, one in the code could crash its parser. So every entry is checked here
/// first.
class Archive {
 public:
  /// Opens `path` and reads its directory. Throws Error: kFileNotFound, kNotAModel (not a zip archive),
  /// kDamagedModel (truncated, or a directory that does not fit the file).
  explicit Archive(const std::string& path);

  bool contains(const std::string& name) const { return find(name) != nullptr; }

  /// Refuses, with Error(kNotAModel), entries that torch does not write into a file of this format of
  /// models, and a second library of machine code.
  void check_entries(const std::string& format) const;

  /// The bytes of the entry `name`, given without the archive's top folder. Throws Error(kDamagedModel), also
  /// if the entry has more than `max_size` bytes. The entry must exist.
  std::string read(const std::string& name, std::uint64_t max_size);

  /// Reads every entry once and compares its size and checksum with the directory. Throws
  /// Error(kDamagedModel).
  void verify();

 private:
  struct Entry {
    std::string name;            // without the top folder
    std::uint16_t method = 0;    // 0 stored, 8 deflated
    std::uint32_t checksum = 0;  // CRC-32 of the uncompressed bytes
    std::uint64_t size = 0;      // uncompressed
    std::uint64_t stored = 0;    // bytes in the file
    std::uint64_t header = 0;    // offset of the local header
    std::uint64_t data = 0;      // offset of the stored bytes
  };

  [[noreturn]] void damaged(const std::string& what) const;
  std::string bytes(std::uint64_t offset, std::uint64_t count);
  void read_directory();
  void locate_data(Entry& entry, const std::string& name, std::uint64_t directory);
  const Entry* find(const std::string& name) const;
  void extract(const Entry& entry, std::string* output);

  std::string path_;
  std::ifstream file_;
  std::uint64_t file_size_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace sifa
