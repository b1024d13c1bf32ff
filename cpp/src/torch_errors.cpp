// What of LibTorch's messages is worth a reader's line.
#include "torch_errors.h"

#include "one_line.h"

namespace sifa {

std::string reason_of(const std::string& message) {
  // The source that a traceback quotes is indented; the reason behind it is not.
  if (message.rfind("The following operation failed in the TorchScript interpreter", 0) == 0) {
    constexpr std::size_t kNone = std::string::npos;
    for (std::size_t end = message.find('\n', message.rfind("<--- HERE")); end != kNone;
         end = message.find('\n', end + 1)) {
      const std::string rest = message.substr(end + 1);
      if (!rest.empty() && rest.front() != ' ' && rest.front() != '\n') return one_line(rest);
    }
  }
  return one_line(message);
}

}  // namespace sifa
