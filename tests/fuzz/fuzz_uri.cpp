// Any text as the URI of a source.
#include <cstdint>

#include "fuzzing.h"
#include "uri.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  sifa::fuzz::allow_errors([&] {
    const sifa::SourceUri uri = sifa::parse_source(text);
    const bool is_standard_input = uri.kind == sifa::SourceKind::kStandardInput;
    sifa::fuzz::require(is_standard_input == uri.what.empty(), "there is something to open");
    // It goes to libraries in C, which would open what stands before the zero.
    sifa::fuzz::require(uri.what.find('\0') == std::string::npos, "what is opened is the whole of it");
    if (uri.kind == sifa::SourceKind::kJetsonCamera) {
      const std::size_t number = uri.what.find('=') + 1;
      sifa::fuzz::require(uri.what.find_first_not_of("0123456789", number) == uri.what.find(" ! ", number),
                          "a sensor is a number, not a piece of a pipeline");
    }
  });
  return 0;
}
