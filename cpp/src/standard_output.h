// What sifa-run answers, on standard output.
#pragma once

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "sifa/error.h"

/// Writes a line, or several, and sees to it that they arrive: on a full disk they do not. Throws
/// Error(kOther).
inline void print(const std::string& text) {
  std::cout << text << std::endl;
  if (!std::cout) {
    throw sifa::Error(sifa::ErrorCode::kOther, "the result cannot be written to standard output");
  }
}

/// One line. A path or a label need not be UTF-8; JSON must.
inline std::string as_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}
