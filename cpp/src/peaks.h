// What the device can do at this moment: the ceilings of a roofline.
#pragma once

#include <string>

#include "sifa/export.h"

namespace sifa {

struct Peaks {
  double operations_per_second = 0.0;  ///< of a product of matrices, in the given precision
  double bytes_per_second = 0.0;       ///< of a copy that no cache holds, reads and writes counted
};

/// Measures them, which takes a fraction of a second. `device` as in ClassifierOptions, `precision` as in
/// Metadata.
SIFA_API Peaks measure_peaks(const std::string& device, const std::string& precision);

}  // namespace sifa
