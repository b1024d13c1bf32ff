// Loading, the first answer, and then `rounds` answers, after some that are not counted.
//
// Preprocessing is in the graph, so that it is part of the model's time.
#include "benchmark.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <sstream>

#include "durations.h"
#include "peaks.h"
#include "standard_output.h"

namespace {

using nlohmann::ordered_json;
using std::chrono::steady_clock;

constexpr int kWarmUp = 5;  // rounds: TorchScript's executor looks at the first calls before it settles

using Times = std::vector<double>;  // milliseconds

struct Round {
  double decode_ms = 0.0;
  double model_ms = 0.0;
};

// A line of /proc/self/status in MB (10^6 bytes), or null.
ordered_json memory(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, name.size() + 1, name + ":") != 0) continue;
    return std::stod(line.substr(name.size() + 1)) * 1024.0 / 1e6;
  }
  return nullptr;
}

std::function<Round()> clip_round(const sifa::Classifier& classifier, const BenchmarkArguments& arguments,
                                  const std::vector<std::uint8_t>& frames, std::int64_t height,
                                  std::int64_t width) {
  if (!arguments.video.empty()) {
    return [&] {
      const sifa::VideoPrediction prediction = classifier.classify(arguments.video);
      return Round{prediction.decode_ms, prediction.model_ms};
    };
  }
  return [&, height, width] {
    const auto begin = steady_clock::now();
    classifier.classify({frames.data(), arguments.batch, classifier.metadata().num_frames, height, width});
    return Round{0.0, milliseconds(steady_clock::now() - begin)};
  };
}

std::function<Round()> stream_round(sifa::StreamBatch& streams, const std::vector<std::uint8_t>& frames,
                                    std::int64_t height, std::int64_t width) {
  return [&, height, width] {
    const auto begin = steady_clock::now();
    for (bool is_due = false; !is_due;) {
      for (std::size_t stream = 0; stream < streams.size(); ++stream) {
        is_due = streams.push(stream, {frames.data(), height, width});
      }
    }
    streams.run();
    return Round{0.0, milliseconds(steady_clock::now() - begin)};
  };
}

// Of sorted times; between two of them, on the line from one to the other.
double percentile(const Times& times, double share) {
  const double position = share * static_cast<double>(times.size() - 1);
  const std::size_t below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, times.size() - 1);
  return times[below] + (position - static_cast<double>(below)) * (times[above] - times[below]);
}

ordered_json percentiles(const Times& times) {
  return {
      {"p50", percentile(times, 0.50)}, {"p95", percentile(times, 0.95)}, {"p99", percentile(times, 0.99)}};
}

// The time that the device needs at least for the model's arithmetic, or to read frames and weights once, and
// the share of it in the time that the model took. Null for a model that does not say what it costs.
ordered_json roofline(const sifa::Metadata& metadata, const BenchmarkArguments& arguments,
                      std::int64_t frame_bytes, double model_ms) {
  if (metadata.operations == 0) return nullptr;
  const sifa::Peaks peaks = sifa::measure_peaks(arguments.options.device, metadata.precision);
  const double operations = static_cast<double>(metadata.operations * arguments.batch);
  const double bytes = static_cast<double>(metadata.weight_bytes + frame_bytes);
  const double floor_ms =
      1e3 * std::max(operations / peaks.operations_per_second, bytes / peaks.bytes_per_second);
  return {{"gflop", operations / 1e9},
          {"mb", bytes / 1e6},
          {"peak_gflop_per_s", peaks.operations_per_second / 1e9},
          {"peak_gb_per_s", peaks.bytes_per_second / 1e9},
          {"floor_ms", floor_ms},
          {"floor_over_p50", floor_ms / model_ms}};
}

void report(const ordered_json& result, bool as_json) {
  if (as_json) return print(as_line(result));
  for (const auto& [name, value] : result.items()) {
    print(name + ": " + (value.is_string() ? value.get<std::string>() : value.dump()));
  }
}

}  // namespace

void benchmark(const BenchmarkArguments& arguments) {
  const sifa::Metadata metadata = sifa::read_metadata(arguments.model);
  const bool is_stream = metadata.kind != "clip";
  if (!arguments.video.empty() && (is_stream || arguments.batch > 1)) {
    throw sifa::Error(
        sifa::ErrorCode::kInvalidArgument,
        "--benchmark reads a video for one clip at a time only: leave SOURCE away for streams and "
        "batches");
  }
  const auto begin = steady_clock::now();
  std::optional<sifa::Classifier> classifier;
  std::optional<sifa::StreamBatch> streams;
  if (is_stream) {
    sifa::StreamOptions options = arguments.options;
    options.frame_stride = 1;  // a round is one step, which is what the metadata's cost is of
    streams.emplace(arguments.model, static_cast<std::size_t>(arguments.batch), options);
  } else {
    classifier.emplace(arguments.model, arguments.options);
  }
  const double load_ms = milliseconds(steady_clock::now() - begin);
  // As wide as most videos are for their height. Every stream is pushed the same frame.
  const std::int64_t height = metadata.input_size[0] * 8 / 7, width = height * 4 / 3;
  const std::int64_t count = is_stream ? 1 : arguments.batch * metadata.num_frames;
  std::vector<std::uint8_t> frames(static_cast<std::size_t>(count * height * width * 3));
  for (std::size_t i = 0; i < frames.size(); ++i) frames[i] = static_cast<std::uint8_t>(i * 7 + (i >> 9));
  const auto round = is_stream ? stream_round(*streams, frames, height, width)
                               : clip_round(*classifier, arguments, frames, height, width);
  const Round first = round();
  const ordered_json resident = {{"anonymous", memory("RssAnon")}, {"all", memory("VmRSS")}};
  for (int i = 0; i < kWarmUp; ++i) round();

  Times decode, model, total;
  const auto start = steady_clock::now();
  for (std::int64_t i = 0; i < arguments.rounds; ++i) {
    const Round times = round();
    decode.push_back(times.decode_ms);
    model.push_back(times.model_ms);
    total.push_back(times.decode_ms + times.model_ms);
  }
  const double seconds = milliseconds(steady_clock::now() - start) / 1000.0;
  const ordered_json peak_resident = memory("VmHWM");
  for (Times* times : {&decode, &model, &total}) std::sort(times->begin(), times->end());
  const std::int64_t frame_bytes =
      arguments.batch * (is_stream ? metadata.temporal_stride : metadata.num_frames) * height * width * 3;
  report({{"model", arguments.model},
          {"kind", metadata.kind},
          {"format", metadata.format},
          {"frames",
           arguments.video.empty() ? std::to_string(height) + "x" + std::to_string(width) : arguments.video},
          {"batch", arguments.batch},
          {"rounds", arguments.rounds},
          {"load_ms", load_ms},
          {"first_ms", first.decode_ms + first.model_ms},
          {"decode_ms", arguments.video.empty() ? ordered_json(nullptr) : percentiles(decode)},
          {"model_ms", percentiles(model)},
          {"total_ms", percentiles(total)},
          {"per_second", static_cast<double>(arguments.rounds * arguments.batch) / seconds},
          {"roofline", roofline(metadata, arguments, frame_bytes, percentile(model, 0.5))},
          {"resident_mb", resident},
          {"peak_resident_mb", peak_resident}},
         arguments.json);
}
