// sifa-run on streams: every prediction a line, every frame into the sink, a summary at the end.
#pragma once

#include <optional>
#include <string>

#include "sifa/source.h"
#include "sifa/stream.h"

struct FollowArguments {
  std::string model;
  std::string source;
  std::string sink;  // "" or "-" is none
  std::size_t topk = 5;
  bool json = false;  // lines of JSON, for programs
  sifa::StreamOptions stream;
  sifa::SourceOptions capture;
  std::optional<std::pair<float, float>> thresholds;  // enter and leave of the hysteresis
};

/// Follows the source to its end, or until SIGINT or SIGTERM. Throws sifa::Error, behind the summary.
void follow(const FollowArguments& arguments);
