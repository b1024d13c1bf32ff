// The URIs of sources and sinks, taken apart.
#pragma once

#include <string>

#include "sifa/export.h"

namespace sifa {

enum class SourceKind { kPath, kStandardInput, kCamera, kJetsonCamera, kNetwork, kPipeline };

struct SourceUri {
  SourceKind kind;
  std::string what;  ///< path, device, sensor, URL, pipeline: what the kind's reader opens

  /// Whether frames come whether or not they are read.
  bool is_live() const { return kind != SourceKind::kPath && kind != SourceKind::kStandardInput; }

  /// Whether it is worth opening again when it ends. A pipeline that ends was made to.
  bool comes_back() const { return is_live() && kind != SourceKind::kPipeline; }
};

/// Throws Error(kInvalidArgument) for an empty one, an unknown scheme or nothing behind it.
SIFA_API SourceUri parse_source(const std::string& uri);

}  // namespace sifa
