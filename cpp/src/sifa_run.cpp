// sifa-run: classifies a video file with a model file, for people and (--json) for programs.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "one_line.h"
#include "sifa/classifier.h"

namespace {

struct Arguments {
  std::string model;
  std::string video;
  std::size_t topk = 5;
  bool json = false;
  sifa::ClassifierOptions options;
};

// The indices of the `count` highest probabilities, the highest first, of equals the first class first.
std::vector<std::size_t> top_classes(const std::vector<float>& probabilities, std::size_t count) {
  std::vector<std::size_t> order(probabilities.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return probabilities[a] > probabilities[b]; });
  order.resize(std::min(count, order.size()));
  return order;
}

std::string as_json(const Arguments& arguments, const sifa::Classifier& classifier,
                    const sifa::VideoPrediction& prediction, double load_ms, double total_ms) {
  using nlohmann::ordered_json;
  ordered_json classes = ordered_json::array();
  for (const std::size_t index : top_classes(prediction.probabilities, arguments.topk)) {
    classes.push_back({{"label", classifier.labels()[index]},
                       {"index", index},
                       {"probability", prediction.probabilities[index]}});
  }
  const ordered_json result = {
      {"model", arguments.model},
      {"video", arguments.video},
      {"classes", classes},
      {"frames", {{"total", prediction.total_frames}, {"indices", prediction.indices}}},
      {"timings_ms",
       {{"load", load_ms},
        {"decode", prediction.decode_ms},
        {"model", prediction.model_ms},
        {"total", total_ms}}}};
  // A path need not be UTF-8; JSON must.
  return result.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string as_text(const Arguments& arguments, const sifa::Classifier& classifier,
                    const sifa::VideoPrediction& prediction, double load_ms, double total_ms) {
  std::ostringstream text;
  char number[64];
  for (const std::size_t index : top_classes(prediction.probabilities, arguments.topk)) {
    std::snprintf(number, sizeof number, "%7.4f  ", prediction.probabilities[index]);
    text << number << sifa::one_line(classifier.labels()[index]) << "\n";
  }
  text << prediction.indices.size() << " frames, " << prediction.indices.front() << " to "
       << prediction.indices.back() << ", of " << prediction.total_frames;
  if (prediction.indices.size() > static_cast<std::size_t>(prediction.total_frames)) {
    text << " (the video is shorter than the clip: frames are repeated)";
  }
  text << "\n";
  std::snprintf(number, sizeof number, "%.0f ms, decode %.0f ms, model %.0f ms", load_ms,
                prediction.decode_ms, prediction.model_ms);
  text << "load " << number;
  std::snprintf(number, sizeof number, ", total %.0f ms\n", total_ms);
  text << number;
  return text.str();
}

void run(const Arguments& arguments) {
  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed_ms = [&] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  };
  const sifa::Classifier classifier(arguments.model, arguments.options);
  const double load_ms = elapsed_ms();
  const sifa::VideoPrediction prediction = classifier.classify(arguments.video);
  std::cout << (arguments.json ? as_json : as_text)(arguments, classifier, prediction, load_ms, elapsed_ms())
            << std::flush;
  if (!std::cout)
    throw sifa::Error(sifa::ErrorCode::kOther, "the result cannot be written to standard output");
}

int fail(sifa::ErrorCode code, const std::string& message) {
  std::cerr << "sifa-run: " << sifa::one_line(message) << std::endl;
  return static_cast<int>(code);
}

int checked_main(int argc, char** argv) {
  // Quiet unless asked: what FFmpeg and OpenCV print about a file says less than our one line.
  setenv("OPENCV_LOG_LEVEL", "SILENT", /*overwrite=*/0);
  setenv("OPENCV_FFMPEG_LOGLEVEL", "-8", /*overwrite=*/0);

  Arguments arguments;
  CLI::App app("Classifies a video file with a model that `sifa export` wrote.", "sifa-run");
  app.set_version_flag("--version", SIFA_VERSION);
  app.add_option("MODEL", arguments.model, "model file")->required();
  app.add_option("VIDEO", arguments.video, "video file")->required();
  app.add_option("--topk", arguments.topk, "how many classes to print")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 30))
      ->capture_default_str();
  app.add_option("--device", arguments.options.device, "cpu, cuda or cuda:<index>")->capture_default_str();
  app.add_option("--threads", arguments.options.threads,
                 "threads of one operation (default: LibTorch's choice)")
      ->check(CLI::Range(1, 1 << 16));
  app.add_flag("--json", arguments.json, "print JSON");
  app.footer(
      "Exit codes: 0 ok, 2 usage, 3 file not found, 4 not a SIFA model, 5 damaged model, 6 unsupported "
      "schema version,\n"
      "7 operator library not found or incompatible, 8 video cannot be opened, 9 video has no frames,\n"
      "10 device unavailable, 11 reference output differs, 1 anything else.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
    return fail(sifa::ErrorCode::kInvalidArgument, std::string(error.what()) + "; see sifa-run --help");
  }
  run(arguments);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return checked_main(argc, argv);
  } catch (const sifa::Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(sifa::ErrorCode::kOther, "out of memory");
  } catch (const std::exception& error) {
    return fail(sifa::ErrorCode::kOther, error.what());
  } catch (...) {
    return fail(sifa::ErrorCode::kOther, "unknown error");
  }
}
