// What this machine and this installation have for SIFA, and what is wrong with them.
#pragma once

#include <string>
#include <vector>

#include "sifa/export.h"

namespace sifa {

struct Finding {
  std::string name;     ///< "operators", "video", ...
  std::string value;    ///< what is there, one line
  std::string problem;  ///< what is wrong with it, one line, or empty
  std::string fix;      ///< what to do about that, if anything
};

/// Looks at versions, devices, the operator library (which is loaded, and run on every device), OpenCV and,
/// on a Jetson, the power mode. Throws nothing but std::bad_alloc: what fails is a finding.
SIFA_API std::vector<Finding> examine();

}  // namespace sifa
