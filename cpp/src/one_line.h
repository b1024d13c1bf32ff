// Torch's messages end in long C++ backtraces; users get one line.
#pragma once

#include <string>

namespace sifa {

/// The first line of `message` that says something, without control characters and of a bounded length.
inline std::string one_line(const std::string& message) {
  constexpr std::size_t kMaxSize = 400;
  std::string line;
  for (const char character : message) {
    if (character == '\n' && line.find_first_not_of(' ') != std::string::npos) break;
    line += static_cast<unsigned char>(character) < 0x20 || character == 0x7F ? ' ' : character;
  }
  const std::size_t begin = line.find_first_not_of(' ');
  const std::size_t end = line.find_last_not_of(' ');
  if (begin == std::string::npos) return "no reason was given";
  line = line.substr(begin, end - begin + 1);
  if (line.size() > kMaxSize) line = line.substr(0, kMaxSize - 3) + "...";
  return line;
}

}  // namespace sifa
