// What the fuzzers share: a file in memory, and what may come out of a reader.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "sifa/error.h"
#include "sifa/metadata.h"

namespace sifa::fuzz {

/// Ends the process, which libFuzzer reports with the input, unless `holds`.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

/// A file with `content` for as long as the object lives.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& content) : descriptor_(memfd_create("model", MFD_CLOEXEC)) {
    require(descriptor_ >= 0, "a file in memory can be made");
    for (std::size_t done = 0; done < content.size();) {
      const ssize_t count = write(descriptor_, content.data() + done, content.size() - done);
      require(count > 0, "a file in memory can be written");
      done += static_cast<std::size_t>(count);
    }
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

/// Runs `read`. The only thing it may throw is an Error that is one line.
template <typename Read>
void allow_errors(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string message = error.what();
    require(!message.empty(), "an error says something");
    require(message.find_first_of("\r\n") == std::string::npos, "an error is one line");
  }
}

/// Reads the model file at `path`, and checks what every later part of the runtime relies on.
inline void read_model(const std::string& path) {
  const Metadata metadata = read_metadata(path);
  require(metadata.num_frames >= 1 && metadata.frame_stride >= 1, "frames are counted from 1");
  require(metadata.temporal_stride >= 1 && metadata.temporal_stride <= metadata.num_frames,
          "a step is a part of a clip");
  require(!metadata.labels.empty(), "there is a label");
  require(metadata.reference_probabilities.size() == metadata.labels.size(), "every label has an output");
  require(metadata.reference_tolerance > 0.0, "the tolerance is a positive number");
  require(metadata.input_size[0] >= 1 && metadata.input_size[1] >= 1, "the input has pixels");
  require((metadata.kind != "clip") == !metadata.state.empty(),
          "all but a clip, and only they, have a state");
  std::int64_t total = 0;
  for (const StateTensor& tensor : metadata.state) {
    std::int64_t size = 1;
    for (const std::int64_t side : tensor.shape) {
      require(side >= 1 && size <= (std::int64_t{1} << 28) / side, "a state is small");
      size *= side;
    }
    total += size;
  }
  require(total <= std::int64_t{1} << 28, "a state is small");
}

}  // namespace sifa::fuzz
