// A model file, loaded and checked: what Classifier, Stream and StreamBatch stand on.
#pragma once

#include <memory>
#include <string>

#include "engine.h"
#include "sifa/classifier.h"

namespace sifa {

struct Model {
  Metadata metadata;
  std::unique_ptr<Engine> engine;
};

/// Loads `path` as `Classifier` documents it, and compares its output on the reference input with the
/// recorded one.
Model load_model(const std::string& path, const ClassifierOptions& options);

/// The largest number of clips or streams in one call, and of pixels of a side.
inline constexpr std::int64_t kMaxExtent = 65536;

/// Throws Error(kOther) unless there is a probability per label for each of `count` rows.
void check_outputs(const std::vector<float>& probabilities, std::int64_t count, const Metadata& metadata);

}  // namespace sifa
