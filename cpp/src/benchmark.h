// sifa-run --benchmark: what a model costs on this machine.
#pragma once

#include <string>

#include "sifa/stream.h"

struct BenchmarkArguments {
  std::string model;
  std::string video;  // "" is frames of the benchmark's own
  std::int64_t batch = 1;
  std::int64_t rounds = 30;
  bool json = false;
  sifa::StreamOptions options;
};

/// Prints times and memory. Throws sifa::Error.
void benchmark(const BenchmarkArguments& arguments);
