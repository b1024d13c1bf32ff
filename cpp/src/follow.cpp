// The loop from source to sink.
#include "follow.h"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "async_sink.h"
#include "durations.h"
#include "one_line.h"
#include "sifa/hysteresis.h"
#include "standard_output.h"
#include "top_classes.h"
#include "uri.h"

namespace {

using nlohmann::ordered_json;
using sifa::AsyncSink;
using sifa::Capture;
using sifa::CapturedFrame;
using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPatience{100};  // between two looks at `stop_asked`

volatile std::sig_atomic_t stop_asked = 0;

// The first signal ends the loop, with its summary; the second the program, should it hang.
void ask_to_stop(int signal) {
  stop_asked = 1;
  std::signal(signal, SIG_DFL);
}

class Follower {
 public:
  explicit Follower(const FollowArguments& arguments)
      : arguments_(arguments),
        stream_(arguments.model, arguments.stream),
        capture_(arguments.source, arguments.capture) {
    if (!arguments.sink.empty() && arguments.sink != "-") {
      sink_.emplace(sifa::open_video_sink(arguments.sink, capture_.frames_per_second()), arguments.sink);
    }
    if (arguments.thresholds) hysteresis_.emplace(arguments.thresholds->first, arguments.thresholds->second);
  }

  void run() {
    CapturedFrame frame;
    while (stop_asked == 0) {
      const Capture::Status status = capture_.read(frame, kPatience);
      if (status == Capture::Status::kEnd) break;
      if (status == Capture::Status::kFrame) take(frame);
    }
  }

  void close_sink() {
    if (sink_) sink_->close();
  }

  void print_summary() const {
    ordered_json summary = {
        {"frames", {{"in", capture_.captured()}, {"used", used_}, {"dropped", capture_.dropped()}}},
        {"predictions", predictions_},
        {"reconnections", capture_.reconnections()},
        {"latency_ms", latencies_.percentiles()},
        {"model_ms", model_.percentiles()}};
    if (sink_) summary["sink"] = {{"written", sink_->written()}, {"dropped", sink_->dropped()}};
    if (arguments_.json) {
      print(as_line({{"summary", summary}}));
      return;
    }
    const auto line = [](const char* name, const ordered_json& value) {
      char text[128];
      if (value["p50"].is_null()) return std::string();
      std::snprintf(text, sizeof text, "; %s p50 %.1f ms, p95 %.1f ms, p99 %.1f ms", name,
                    value["p50"].get<double>(), value["p95"].get<double>(), value["p99"].get<double>());
      return std::string(text);
    };
    print(std::to_string(predictions_) + " predictions; frames: " + std::to_string(capture_.captured()) +
          " in, " + std::to_string(used_) + " used, " + std::to_string(capture_.dropped()) + " dropped" +
          (sink_ ? "; sink: " + std::to_string(sink_->written()) + " written, " +
                       std::to_string(sink_->dropped()) + " dropped"
                 : "") +
          line("latency", summary["latency_ms"]) + line("model", summary["model_ms"]));
  }

 private:
  void take(CapturedFrame& frame) {
    // What came before a gap, or had another size, is no history of this frame.
    const bool is_resized = used_ > 0 && (frame.height != height_ || frame.width != width_);
    if (used_ > 0 && (frame.begins || is_resized)) begin_anew();
    if (used_ == 0) begin_ = frame.time;
    height_ = frame.height;
    width_ = frame.width;
    ++used_;
    const auto before = steady_clock::now();
    const auto prediction = stream_.push({frame.data.data(), frame.height, frame.width});
    if (prediction) {
      const auto now = steady_clock::now();
      ++predictions_;
      model_.add(milliseconds(now - before));
      latencies_.add(milliseconds(now - frame.time));
      report(frame, prediction->probabilities, milliseconds(now - frame.time));
    }
    while (sink_ && !write(frame) && stop_asked == 0) continue;
  }

  // A source may turn out to be live after all.
  bool write(CapturedFrame& frame) {
    return sink_->write(frame, caption_, capture_.is_live() ? AsyncSink::Full::kDrop : AsyncSink::Full::kWait,
                        kPatience);
  }

  void begin_anew() {
    stream_.reset();
    if (hysteresis_) hysteresis_->reset();
    caption_.clear();
  }

  void report(const CapturedFrame& frame, const std::vector<float>& probabilities, double latency) {
    const std::vector<std::string>& labels = stream_.labels();
    const std::vector<std::size_t> best = top_classes(probabilities, arguments_.topk);
    std::optional<std::size_t> decision;
    if (hysteresis_) decision = hysteresis_->update(probabilities);
    const double seconds = milliseconds(frame.time - begin_) / 1000.0;

    caption_.clear();
    if (hysteresis_) caption_.push_back(decision ? sifa::one_line(labels[*decision]) : "-");
    for (const std::size_t index : best) {
      char number[16];
      std::snprintf(number, sizeof number, "%.2f ", probabilities[index]);
      caption_.push_back(number + sifa::one_line(labels[index]));
    }

    if (!arguments_.json) {
      char text[64];
      std::snprintf(text, sizeof text, "%9.2f s  %6.1f ms  ", seconds, latency);
      print(text + (hysteresis_ ? caption_[0] + "  " : "") + caption_[hysteresis_ ? 1 : 0]);
      return;
    }
    ordered_json line = {{"frame", frame.index}, {"time_s", seconds}, {"latency_ms", latency}};
    if (hysteresis_) line["decision"] = decision ? ordered_json(labels[*decision]) : ordered_json(nullptr);
    line["classes"] = as_json(best, probabilities, labels);
    print(as_line(line));
  }

  const FollowArguments& arguments_;
  sifa::Stream stream_;
  Capture capture_;
  std::optional<AsyncSink> sink_;
  std::optional<sifa::Hysteresis> hysteresis_;
  std::vector<std::string> caption_;
  steady_clock::time_point begin_;
  std::int64_t height_ = 0;
  std::int64_t width_ = 0;
  std::int64_t used_ = 0;
  std::int64_t predictions_ = 0;
  Durations latencies_;
  Durations model_;
};

// A video that is written over itself would be gone before it is read, and so would a model.
void refuse_overwriting(const FollowArguments& arguments) {
  if (arguments.sink.empty()) return;
  const sifa::SourceUri source = sifa::parse_source(arguments.source);
  const std::string file = source.kind == sifa::SourceKind::kPath ? source.what : "";
  for (const auto& [what, path] : {std::pair{"SOURCE", file}, {"MODEL", arguments.model}}) {
    std::error_code none;  // a path that leads nowhere is another file
    if (!std::filesystem::equivalent(path, arguments.sink, none)) continue;
    throw sifa::Error(sifa::ErrorCode::kInvalidArgument, "sink " + sifa::one_line(arguments.sink) +
                                                             " is the same file as " + what +
                                                             ", which would be written over: name another");
  }
}

// FFmpeg takes 5 seconds, of some formats 90, to get to know a stream that does not say its frame rate, and
// by then a network stream counts as lost.
void limit_analysis(const std::string& source) {
  if (sifa::parse_source(source).kind != sifa::SourceKind::kNetwork) return;
  // The first option is OpenCV's own default.
  setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp|analyzeduration;3000000", /*overwrite=*/0);
}

template <typename Function>
std::exception_ptr failure_of(Function function) {
  try {
    function();
    return nullptr;
  } catch (const sifa::Error&) {
    return std::current_exception();
  }
}

}  // namespace

void follow(const FollowArguments& arguments) {
  refuse_overwriting(arguments);
  limit_analysis(arguments.source);
  // Errors like others: a reader that has gone and a file at its limit, after which the sink is closed whole.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  Follower follower(arguments);
  // Only now: while a source is waited for there is nothing to sum up, and a signal ends it at once.
  std::signal(SIGINT, ask_to_stop);
  std::signal(SIGTERM, ask_to_stop);
  const std::exception_ptr failures[] = {failure_of([&] { follower.run(); }),
                                         failure_of([&] { follower.close_sink(); })};
  follower.print_summary();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}
