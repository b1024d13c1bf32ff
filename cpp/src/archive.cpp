// The zip format as far as torch writes it: stored and deflated entries under one top folder, zip64 where
// needed. Field offsets are those of PKWARE's APPNOTE, 4.3.7 (local header) to 4.3.16 (end of directory).
#include "archive.h"

#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <new>
#include <set>

#include "one_line.h"
#include "sifa/error.h"

namespace sifa {
namespace {

constexpr std::uint64_t kLocalHeaderSize = 30;
constexpr std::uint64_t kDirectoryEntrySize = 46;
constexpr std::uint64_t kEndSize = 22;
constexpr std::uint64_t kZip64EndSize = 56;
constexpr std::uint64_t kZip64LocatorSize = 20;
constexpr std::uint64_t kMaxCommentSize = 0xFFFF;

// Far above any model's, so that a lying directory cannot make the reader allocate without bound.
constexpr std::uint64_t kMaxDirectorySize = std::uint64_t{64} << 20;
// Of one deflated entry: only code is deflated.
constexpr std::uint64_t kMaxInflatedSize = std::uint64_t{1} << 30;
constexpr std::size_t kChunkSize = std::size_t{1} << 20;

const char kLocalHeader[] = "PK\x03\x04";
const char kDirectoryEntry[] = "PK\x01\x02";
const char kEnd[] = "PK\x05\x06";
const char kZip64End[] = "PK\x06\x06";
const char kZip64Locator[] = "PK\x06\x07";

// The little-endian number of `count` bytes at `offset`. The caller has checked the bounds.
std::uint64_t number(const std::string& bytes, std::size_t offset, int count) {
  std::uint64_t value = 0;
  for (int i = count - 1; i >= 0; --i) {
    value = value << 8 | static_cast<unsigned char>(bytes[offset + static_cast<std::size_t>(i)]);
  }
  return value;
}

bool starts_with(const std::string& bytes, std::size_t offset, const char* signature) {
  return bytes.compare(offset, 4, signature, 4) == 0;
}

// A name that stays inside the folder it would be unpacked in.
bool is_safe(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find('\\') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    return false;
  }
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    if (name.compare(begin, end - begin, "..") == 0) return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace

Archive::Archive(const std::string& path) : path_(path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  const auto unreadable = [&] {
    return Error(ErrorCode::kOther, "model file cannot be read: " + path + ": " + error.message());
  };
  if (error == std::errc::permission_denied) throw unreadable();  // who knows whether it is there
  if (!std::filesystem::exists(status)) {
    throw Error(ErrorCode::kFileNotFound, "model file not found: " + path);
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw Error(ErrorCode::kNotAModel, path + " is not a SIFA model: it is not a regular file");
  }
  file_size_ = std::filesystem::file_size(path, error);
  file_.open(path, std::ios::binary);
  if (!file_) error = {errno, std::generic_category()};
  if (error) throw unreadable();

  const std::string begin = bytes(0, std::min<std::uint64_t>(file_size_, 4));
  if (std::string(kLocalHeader).compare(0, begin.size(), begin) != 0) {
    throw Error(ErrorCode::kNotAModel,
                path + " is not a SIFA model: it is not a zip archive; models are made by `sifa export`");
  }
  read_directory();
}

void Archive::damaged(const std::string& what) const {
  throw Error(ErrorCode::kDamagedModel,
              path_ + " is damaged or truncated: " + what + "; copy or export the model again");
}

std::string Archive::bytes(std::uint64_t offset, std::uint64_t count) {
  if (offset > file_size_ || count > file_size_ - offset) damaged("it ends too early");
  std::string result(count, '\0');
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(offset));
  file_.read(result.data(), static_cast<std::streamsize>(count));
  if (!file_) damaged("it cannot be read to its end");
  return result;
}

void Archive::read_directory() {
  // The end record is the last thing in the file, apart from a comment whose length it states.
  const std::uint64_t tail_size =
      std::min(file_size_, kZip64EndSize + kZip64LocatorSize + kEndSize + kMaxCommentSize);
  const std::string tail = bytes(file_size_ - tail_size, tail_size);
  const std::uint64_t tail_begin = file_size_ - tail_size;
  std::size_t end = tail.size();
  for (std::size_t i = tail.size() < kEndSize ? 0 : tail.size() - kEndSize + 1; i-- > 0;) {
    if (starts_with(tail, i, kEnd) && i + kEndSize + number(tail, i + 20, 2) == tail.size()) {
      end = i;
      break;
    }
  }
  if (end == tail.size()) damaged("it has no directory at its end");

  std::uint64_t count = number(tail, end + 10, 2);
  std::uint64_t size = number(tail, end + 12, 4);
  std::uint64_t offset = number(tail, end + 16, 4);
  std::uint64_t directory_end = tail_begin + end;
  const bool has_zip64 =
      end >= kZip64LocatorSize && starts_with(tail, end - kZip64LocatorSize, kZip64Locator);
  if (has_zip64) {
    directory_end = number(tail, end - kZip64LocatorSize + 8, 8);
    const std::string record = bytes(directory_end, kZip64EndSize);
    if (!starts_with(record, 0, kZip64End)) damaged("its zip64 end record is not where it should be");
    count = number(record, 32, 8);
    size = number(record, 40, 8);
    offset = number(record, 48, 8);
  }
  if (size > kMaxDirectorySize || offset > directory_end || size != directory_end - offset ||
      count > size / kDirectoryEntrySize) {
    damaged("its directory does not fit the file");
  }

  const std::string directory = bytes(offset, size);
  std::set<std::string> names;
  std::string top_folder;
  std::size_t at = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (directory.size() - at < kDirectoryEntrySize || !starts_with(directory, at, kDirectoryEntry)) {
      damaged("its directory is not readable");
    }
    const bool is_encrypted = (number(directory, at + 8, 2) & 1) != 0;
    Entry entry;
    entry.method = static_cast<std::uint16_t>(number(directory, at + 10, 2));
    entry.checksum = static_cast<std::uint32_t>(number(directory, at + 16, 4));
    entry.stored = number(directory, at + 20, 4);
    entry.size = number(directory, at + 24, 4);
    const std::size_t name_size = number(directory, at + 28, 2);
    const std::size_t extra_size = number(directory, at + 30, 2);
    const std::size_t comment_size = number(directory, at + 32, 2);
    entry.header = number(directory, at + 42, 4);
    at += kDirectoryEntrySize;
    if (directory.size() - at < name_size + extra_size + comment_size)
      damaged("its directory is not readable");
    const std::string name = directory.substr(at, name_size);
    at += name_size;

    // Zip64 keeps the numbers that did not fit 32 bits in an extra field of identifier 1, in this order.
    const std::size_t extra_end = at + extra_size;
    for (std::size_t field = at; extra_end - field >= 4;) {
      const std::uint64_t identifier = number(directory, field, 2);
      const std::size_t field_size = number(directory, field + 2, 2);
      field += 4;
      if (extra_end - field < field_size) damaged("its directory is not readable");
      std::size_t value = field;
      field += field_size;
      if (identifier != 1) continue;
      for (std::uint64_t* wide : {&entry.size, &entry.stored, &entry.header}) {
        if (*wide != 0xFFFFFFFF) continue;
        if (field - value < 8) damaged("its directory is not readable");
        *wide = number(directory, value, 8);
        value += 8;
      }
    }
    at = extra_end + comment_size;

    locate_data(entry, name, offset);

    // What follows is no damage: some other program wrote this archive.
    const std::size_t slash = name.find('/');
    if (i == 0) top_folder = name.substr(0, slash + 1);
    const bool is_stored = entry.method == 0 && entry.size == entry.stored;
    const bool is_deflated = entry.method == 8 && entry.size <= kMaxInflatedSize;
    if (!is_safe(name) || slash == std::string::npos || name.compare(0, slash + 1, top_folder) != 0 ||
        !names.insert(name).second || is_encrypted || !(is_stored || is_deflated)) {
      throw Error(ErrorCode::kNotAModel,
                  path_ + " is not a SIFA model: it is a zip archive, but not laid out as torch does");
    }
    entry.name = name.substr(slash + 1);
    entries_.push_back(std::move(entry));
  }
  if (at != directory.size()) damaged("its directory is not readable");

  // Entries that share bytes are how small archives unpack to huge ones.
  std::vector<const Entry*> order;
  for (const Entry& entry : entries_) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return a->header < b->header; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->header < order[i - 1]->data + order[i - 1]->stored) damaged("its entries overlap");
  }
}

// Finds where the bytes of `entry` begin: behind its local header, which repeats the `name` and has fields of
// its own.
void Archive::locate_data(Entry& entry, const std::string& name, std::uint64_t directory) {
  const std::string header = bytes(entry.header, kLocalHeaderSize);
  const std::uint64_t name_size = number(header, 26, 2);
  const std::uint64_t extra_size = number(header, 28, 2);
  if (!starts_with(header, 0, kLocalHeader) || number(header, 8, 2) != entry.method ||
      bytes(entry.header + kLocalHeaderSize, name_size) != name) {
    damaged("entry " + one_line(name) + " is not where the directory says");
  }
  entry.data = entry.header + kLocalHeaderSize + name_size + extra_size;
  if (entry.data > directory || entry.stored > directory - entry.data) {
    damaged("entry " + one_line(name) + " does not fit the file");
  }
}

void Archive::check_entries(const std::string& format) const {
  // What ends with a slash is a folder. sifa.artifact.metadata has the same list.
  std::vector<std::string> known{"extra/", ".data/", "version", "byteorder"};
  if (format == "torchscript") {
    known.insert(known.end(), {"code/", "constants/", "data/", "constants.pkl", "data.pkl"});
  } else {
    known.insert(known.end(), {"data/", "models/", "archive_format", "archive_version"});
  }
  int libraries = 0;
  for (const Entry& entry : entries_) {
    const bool is_known = std::any_of(known.begin(), known.end(), [&](const std::string& name) {
      return name.back() == '/' ? entry.name.compare(0, name.size(), name) == 0 : entry.name == name;
    });
    const std::size_t dot = entry.name.rfind('.');
    libraries += dot != std::string::npos && entry.name.compare(dot, std::string::npos, ".so") == 0;
    if (is_known && libraries <= (format == "aoti" ? 1 : 0)) continue;
    throw Error(ErrorCode::kNotAModel, path_ + " is not a SIFA model: its entry " + one_line(entry.name) +
                                           " is none that torch writes into a file of format " + format);
  }
}

const Archive::Entry* Archive::find(const std::string& name) const {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

std::string Archive::read(const std::string& name, std::uint64_t max_size) {
  const Entry& entry = *find(name);
  if (entry.size > max_size) damaged("entry " + name + " has " + std::to_string(entry.size) + " bytes");
  std::string result;
  result.reserve(entry.size);
  extract(entry, &result);
  return result;
}

void Archive::verify() {
  for (const Entry& entry : entries_) extract(entry, nullptr);
}

// Reads an entry through its checksum, and into `output` unless that is null.
void Archive::extract(const Entry& entry, std::string* output) {
  uLong checksum = crc32(0, nullptr, 0);
  std::uint64_t size = 0;
  const auto consume = [&](const char* data, std::size_t count) {
    checksum = crc32(checksum, reinterpret_cast<const Bytef*>(data), static_cast<uInt>(count));
    size += count;
    if (output != nullptr) output->append(data, count);
  };

  std::vector<char> inflated;
  z_stream stream{};
  std::unique_ptr<z_stream, int (*)(z_stream*)> stream_end(nullptr, inflateEnd);
  const bool is_deflated = entry.method == 8;
  if (is_deflated) {
    inflated.resize(kChunkSize);
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::bad_alloc();  // negative: raw deflate
    stream_end.reset(&stream);
  }
  int status = Z_OK;
  for (std::uint64_t done = 0; done < entry.stored && status == Z_OK;) {
    std::string chunk = bytes(entry.data + done, std::min<std::uint64_t>(kChunkSize, entry.stored - done));
    done += chunk.size();
    if (!is_deflated) {
      consume(chunk.data(), chunk.size());
      continue;
    }
    stream.next_in = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_in = static_cast<uInt>(chunk.size());
    do {
      stream.next_out = reinterpret_cast<Bytef*>(inflated.data());
      stream.avail_out = static_cast<uInt>(inflated.size());
      status = inflate(&stream, Z_NO_FLUSH);
      consume(inflated.data(), inflated.size() - stream.avail_out);
    } while (status == Z_OK && stream.avail_out == 0 && size <= entry.size);
    if (status == Z_BUF_ERROR) status = Z_OK;  // the output ended with the buffer: nothing is wrong
    if (size > entry.size) break;
  }
  if (size != entry.size || checksum != entry.checksum || (is_deflated && status != Z_STREAM_END)) {
    damaged("the checksum of entry " + one_line(entry.name) + " does not match");
  }
}

}  // namespace sifa
