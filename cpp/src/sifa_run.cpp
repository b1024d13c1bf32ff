// sifa-run: classifies a video file, or follows a stream, with a model file; for people at a terminal, and
// for programs in JSON.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "benchmark.h"
#include "follow.h"
#include "one_line.h"
#include "sifa/classifier.h"
#include "sifa/doctor.h"
#include "standard_output.h"
#include "top_classes.h"
#include "uri.h"

namespace {

struct Arguments {
  FollowArguments follow;  // what classifying a file needs is among it
  bool is_stream = false;
  std::string stream_option;  // the first that was given of those that only streams have
  bool no_exec = false;
  bool doctor = false;
  bool is_benchmark = false;
  std::int64_t batch = 1;
  std::int64_t rounds = 30;
};

std::string result_json(const Arguments& arguments, const sifa::Classifier& classifier,
                        const sifa::VideoPrediction& prediction, double load_ms, double total_ms) {
  using nlohmann::ordered_json;
  const std::vector<std::size_t> best = top_classes(prediction.probabilities, arguments.follow.topk);
  const ordered_json result = {
      {"model", arguments.follow.model},
      {"video", arguments.follow.source},
      {"classes", as_json(best, prediction.probabilities, classifier.labels())},
      {"frames", {{"total", prediction.total_frames}, {"indices", prediction.indices}}},
      {"timings_ms",
       {{"load", load_ms},
        {"decode", prediction.decode_ms},
        {"model", prediction.model_ms},
        {"total", total_ms}}}};
  return as_line(result);
}

std::string result_text(const Arguments& arguments, const sifa::Classifier& classifier,
                        const sifa::VideoPrediction& prediction, double load_ms, double total_ms) {
  std::ostringstream text;
  char number[64];
  for (const std::size_t index : top_classes(prediction.probabilities, arguments.follow.topk)) {
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
  std::snprintf(number, sizeof number, ", total %.0f ms", total_ms);
  text << number;
  return text.str();
}

void classify(const Arguments& arguments) {
  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed_ms = [&] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  };
  const sifa::Classifier classifier(arguments.follow.model, arguments.follow.stream);
  const double load_ms = elapsed_ms();
  const sifa::VideoPrediction prediction =
      classifier.classify(sifa::parse_source(arguments.follow.source).what);
  print((arguments.follow.json ? result_json : result_text)(arguments, classifier, prediction, load_ms,
                                                            elapsed_ms()));
}

// A clip's model classifies a file as a whole, unless it is asked to slide over it.
bool is_stream(const Arguments& arguments) {
  const sifa::SourceUri uri = sifa::parse_source(arguments.follow.source);
  std::error_code none;  // what cannot be looked at is refused where it is opened
  const bool is_file = uri.kind == sifa::SourceKind::kPath && !std::filesystem::is_directory(uri.what, none);
  return !is_file || arguments.is_stream || !arguments.follow.sink.empty() ||
         sifa::read_metadata(arguments.follow.model).kind != "clip";
}

// The path of the SOURCE of --benchmark; "" is none.
std::string benchmarked_video(const std::string& source) {
  if (source.empty()) return "";
  const sifa::SourceUri uri = sifa::parse_source(source);
  if (uri.kind == sifa::SourceKind::kPath) return uri.what;
  throw sifa::Error(sifa::ErrorCode::kInvalidArgument,
                    "--benchmark reads a video file only, got SOURCE " + source + "; see sifa-run --help");
}

// "640x480" as width and height.
std::string parse_size(const std::string& text, sifa::SourceOptions& options) {
  int end = 0;
  if (std::sscanf(text.c_str(), "%5" SCNd64 "x%5" SCNd64 "%n", &options.width, &options.height, &end) == 2 &&
      static_cast<std::size_t>(end) == text.size()) {
    return "";
  }
  return "must be WIDTHxHEIGHT, such as 640x480, got " + text;
}

void print_findings(bool json) {
  const std::vector<sifa::Finding> findings = sifa::examine();
  bool has_problem = false;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const sifa::Finding& finding : findings) {
    has_problem |= !finding.problem.empty();
    list.push_back({{"name", finding.name},
                    {"value", finding.value},
                    {"problem", finding.problem},
                    {"fix", finding.fix}});
    if (json) continue;
    print(finding.name + ": " + finding.value);
    if (!finding.problem.empty()) print("  problem: " + finding.problem);
    if (!finding.fix.empty()) print("  fix: " + finding.fix);
  }
  if (json) print(as_line(list));
  if (has_problem) throw sifa::Error(sifa::ErrorCode::kOther, "there are problems: see above");
}

void run(Arguments& arguments) {
  if (arguments.doctor) {
    print_findings(arguments.follow.json);
  } else if (arguments.follow.model.empty()) {
    throw sifa::Error(sifa::ErrorCode::kInvalidArgument, "MODEL is required; see sifa-run --help");
  } else if (arguments.no_exec) {
    print(sifa::read_metadata(arguments.follow.model).json);
  } else if (arguments.is_benchmark) {
    const FollowArguments& given = arguments.follow;
    benchmark({given.model, benchmarked_video(given.source), arguments.batch, arguments.rounds, given.json,
               given.stream});
  } else if (arguments.follow.source.empty()) {
    throw sifa::Error(sifa::ErrorCode::kInvalidArgument, "SOURCE is required; see sifa-run --help");
  } else if (is_stream(arguments)) {
    follow(arguments.follow);
  } else if (!arguments.stream_option.empty()) {
    throw sifa::Error(sifa::ErrorCode::kInvalidArgument,
                      arguments.stream_option + " is for streams, and this model classifies a file as a " +
                          "whole: give --stream too, to slide over it");
  } else {
    classify(arguments);
  }
}

int fail(sifa::ErrorCode code, const std::string& message) {
  std::cerr << "sifa-run: " << sifa::one_line(message) << std::endl;
  return static_cast<int>(code);
}

int checked_main(int argc, char** argv) {
  // Quiet unless asked: what FFmpeg and OpenCV print about a file says less than our one line.
  setenv("OPENCV_LOG_LEVEL", "SILENT", /*overwrite=*/0);
  setenv("OPENCV_FFMPEG_LOGLEVEL", "-8", /*overwrite=*/0);
  // GStreamer's autovideosink tries DirectFB among others, which crashes where it cannot draw.
  setenv("GST_PLUGIN_FEATURE_RANK", "dfbvideosink:NONE", /*overwrite=*/0);

  Arguments arguments;
  FollowArguments& follow = arguments.follow;
  std::vector<float> thresholds;
  std::string size;
  double give_up_after = 0.0;
  CLI::App app("Classifies a video file, or follows a stream, with a model that `sifa export` wrote.",
               "sifa-run");
  app.set_version_flag("--version", SIFA_VERSION);
  app.add_option("MODEL", follow.model, "model file");
  app.add_option("SOURCE", follow.source,
                 "a video file, a folder of images, /dev/video0, csi://0, rtsp://, http://, udp://, "
                 "gst://PIPELINE, or - for raw RGB on standard input");
  app.add_option(
      "SINK", follow.sink,
      "annotated video: a file (.mp4, .mkv, .avi), rtp://HOST:PORT, udp://HOST:PORT, gst://PIPELINE "
      "(gst://autovideosink is a window); - is none, with lines of JSON");
  app.add_option("--topk", follow.topk, "how many classes to print")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 30))
      ->capture_default_str();
  app.add_option("--device", follow.stream.device, "cpu, cuda or cuda:<index>")->capture_default_str();
  app.add_option("--threads", follow.stream.threads, "threads of one operation (default: LibTorch's choice)")
      ->check(CLI::Range(1, 1 << 16));
  app.add_flag("!--no-cuda-graphs", follow.stream.cuda_graphs,
               "on a GPU: launch every operation by itself, instead of all of them by a CUDA graph");
  app.add_flag("--json", follow.json, "print JSON; of videos and streams always where no terminal reads it");
  app.add_flag("--no-exec", arguments.no_exec, "print the model's metadata, and load nothing of its program");
  app.add_flag("--doctor", arguments.doctor,
               "say what this machine and installation have, and what is wrong");
  const char* const kBenchmark = "Benchmark";
  app.add_flag("--benchmark", arguments.is_benchmark,
               "time the model, on frames of its own or, with the decoder, on the video SOURCE")
      ->group(kBenchmark);
  app.add_option("--batch", arguments.batch, "clips or streams at a time")
      ->group(kBenchmark)
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  app.add_option("--rounds", arguments.rounds, "how many are timed, after a warm-up")
      ->group(kBenchmark)
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  const char* const kStreams = "Streams";
  app.add_flag("--stream", arguments.is_stream,
               "slide over a video file instead of classifying it as a whole")
      ->group(kStreams);
  app.add_option("--size", size, "WIDTHxHEIGHT of raw frames")
      ->group(kStreams)
      ->check([&](const std::string& text) { return parse_size(text, follow.capture); });
  app.add_option("--frame-stride", follow.stream.frame_stride,
                 "use every n-th frame (default: what the model was trained with)")
      ->group(kStreams)
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--hop", follow.stream.hop,
                 "used frames between two predictions (default: one step of the model)")
      ->group(kStreams)
      ->check(CLI::Range(1, 1 << 14));
  app.add_option("--decide", thresholds,
                 "ENTER LEAVE: decide for a class from a probability on, until below another")
      ->group(kStreams)
      ->expected(2);
  app.add_option("--give-up-after", give_up_after, "seconds to wait for a lost source (default: for ever)")
      ->group(kStreams)
      ->check(CLI::Range(0.001, 1e9));
  app.footer(
      "Exit codes: 0 ok, 2 usage, 3 file not found, 4 not a SIFA model, 5 damaged model, 6 unsupported "
      "schema version,\n"
      "7 operator library not found or incompatible, 8 video cannot be opened, 9 video has no frames,\n"
      "10 device unavailable, 11 reference output differs,\n"
      "12 GPU out of memory, 1 anything else.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
    return fail(sifa::ErrorCode::kInvalidArgument, std::string(error.what()) + "; see sifa-run --help");
  }
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0) continue;
    const std::string name = option->get_name();
    if (option->get_group() == kStreams && arguments.stream_option.empty()) arguments.stream_option = name;
    if (option->get_group() == kBenchmark && !arguments.is_benchmark) {
      return fail(sifa::ErrorCode::kInvalidArgument,
                  name + " is for --benchmark, which is not given; see sifa-run --help");
    }
  }
  if (!size.empty() && follow.source != "-") {
    return fail(
        sifa::ErrorCode::kInvalidArgument,
        "--size is of raw frames on standard input (SOURCE -), which say no size; see sifa-run --help");
  }
  if (arguments.is_benchmark && !arguments.stream_option.empty()) {
    return fail(sifa::ErrorCode::kInvalidArgument,
                arguments.stream_option +
                    " is for streams that are followed, and --benchmark times a clip or a "
                    "single step; see sifa-run --help");
  }
  if (arguments.is_benchmark && !follow.sink.empty()) {
    return fail(sifa::ErrorCode::kInvalidArgument,
                "--benchmark writes no SINK, got " + follow.sink + "; see sifa-run --help");
  }
  if (!thresholds.empty()) follow.thresholds = {thresholds[0], thresholds[1]};
  // CLI11 lets what is no number through its range.
  if (std::isnan(give_up_after)) {
    return fail(sifa::ErrorCode::kInvalidArgument,
                "--give-up-after must be seconds, got nan; see sifa-run --help");
  }
  const bool answers_in_lines = !arguments.is_benchmark && !arguments.doctor;
  follow.json |= answers_in_lines && (follow.sink == "-" || isatty(STDOUT_FILENO) == 0);
  follow.capture.give_up_after = std::chrono::milliseconds(static_cast<std::int64_t>(1000.0 * give_up_after));
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
