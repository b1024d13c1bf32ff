// Parses the metadata entry of a model file.
#pragma once

#include <cstdint>
#include <string>

#include "archive.h"
#include "sifa/metadata.h"

namespace sifa {

/// How much higher and wider than the network's input the reference input is, in pixels.
inline constexpr std::int64_t kReferenceBorder[2] = {17, 40};

/// The checked metadata in `archive`; `path` names the file in errors. Throws Error: kNotAModel,
/// kUnsupportedSchema. Does not verify the archive's other entries.
Metadata read_metadata(Archive& archive, const std::string& path);

}  // namespace sifa
