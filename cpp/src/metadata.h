// Parses the metadata entry of a model file.
#pragma once

#include <string>

#include "archive.h"
#include "sifa/metadata.h"

namespace sifa {

/// The checked metadata in `archive`; `path` names the file in errors. Throws Error: kNotAModel,
/// kUnsupportedSchema. Does not verify the archive's other entries.
Metadata read_metadata(Archive& archive, const std::string& path);

}  // namespace sifa
