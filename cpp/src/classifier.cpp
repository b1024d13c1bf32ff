// The public classifier: order of the checks at load, the reference input, which frames of a video are taken.
#include "sifa/classifier.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>

#include "archive.h"
#include "engine.h"
#include "metadata.h"
#include "operators.h"

namespace sifa {
namespace {

// The input whose output the metadata records: the same integers in every language, and somewhat larger than
// the network's input, so that resize and crop both have work to do (`sifa.artifact.reference_frames`).
std::vector<std::uint8_t> reference_frames(std::int64_t num_frames, std::int64_t height, std::int64_t width) {
  std::vector<std::uint8_t> frames;
  frames.reserve(static_cast<std::size_t>(num_frames * height * width * 3));
  for (std::int64_t t = 0; t < num_frames; ++t) {
    for (std::int64_t y = 0; y < height; ++y) {
      for (std::int64_t x = 0; x < width; ++x) {
        for (std::int64_t c = 0; c < 3; ++c) {
          const std::int64_t value = 17 * t * x + 7 * y + 13 * x + 31 * t + 61 * c + ((x * y) >> 3);
          frames.push_back(static_cast<std::uint8_t>(value & 255));
        }
      }
    }
  }
  return frames;
}

void check_reference(Engine& engine, const Metadata& metadata, const std::string& path) {
  const std::int64_t height = metadata.input_size[0] + 17;
  const std::int64_t width = metadata.input_size[1] + 40;
  const std::vector<std::uint8_t> frames = reference_frames(metadata.num_frames, height, width);
  std::vector<float> outputs;
  try {
    outputs = engine.run({frames.data(), 1, metadata.num_frames, height, width});
  } catch (const Error& error) {
    throw Error(ErrorCode::kDamagedModel, path + " cannot be used: on the reference input " + error.what() +
                                              "; export the model again");
  }
  if (outputs.size() != metadata.labels.size()) {
    throw Error(ErrorCode::kReferenceMismatch,
                path + " cannot be used: it has " + std::to_string(outputs.size()) + " outputs but " +
                    std::to_string(metadata.labels.size()) + " labels; export the model again");
  }
  double worst = 0.0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const double difference = std::abs(static_cast<double>(outputs[i]) - metadata.reference_probabilities[i]);
    if (!(difference <= worst)) worst = difference;  // also NaN
  }
  if (!(worst <= metadata.reference_tolerance)) {
    char numbers[128];
    std::snprintf(numbers, sizeof numbers, "%.3g, more than the tolerance %.3g", worst,
                  metadata.reference_tolerance);
    throw Error(
        ErrorCode::kReferenceMismatch,
        path + " cannot be used: on the reference input its probabilities differ from those recorded at " +
            "export by " + numbers +
            ": this machine does not compute what was exported; export the model again on this machine");
  }
}

double milliseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

struct Classifier::Impl {
  Metadata metadata;
  std::unique_ptr<Engine> engine;
  std::mutex mutex;
};

Classifier::Classifier(const std::string& path, const ClassifierOptions& options) : impl_(new Impl) {
  if (options.threads < 0) {
    throw Error(
        ErrorCode::kInvalidArgument,
        "threads must be at least 1, or 0 for LibTorch's own choice, got " + std::to_string(options.threads));
  }
  Archive archive(path);
  impl_->metadata = read_metadata(archive, path);
  archive.verify();
  load_operators();
  check_operator_schema(impl_->metadata.operator_schema, path);
  if (options.threads > 0) set_threads(options.threads);
  impl_->engine = load_torchscript(path, impl_->metadata, options.device);
  check_reference(*impl_->engine, impl_->metadata, path);
}

Classifier::~Classifier() = default;
Classifier::Classifier(Classifier&&) noexcept = default;
Classifier& Classifier::operator=(Classifier&&) noexcept = default;

const Metadata& Classifier::metadata() const { return impl_->metadata; }

std::vector<float> Classifier::classify(const Frames& clips) const {
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kInvalidArgument, "frames must be bytes (" + std::to_string(clips.clips) +
                                                 " clips, " + std::to_string(impl_->metadata.num_frames) +
                                                 " frames, height, width, 3): " + why);
  };
  constexpr std::int64_t kMax = 65536;  // of clips and of a side
  if (clips.data == nullptr) refuse("there is no data");
  if (clips.clips < 1 || clips.clips > kMax) {
    refuse("got " + std::to_string(clips.clips) +
           " clips, must be 1 to 65536; classify more in several calls");
  }
  if (clips.frames != impl_->metadata.num_frames) refuse("got " + std::to_string(clips.frames) + " frames");
  if (clips.height < 1 || clips.width < 1 || clips.height > kMax || clips.width > kMax) {
    refuse("got frames of " + std::to_string(clips.height) + " x " + std::to_string(clips.width) +
           ", a side must be 1 to 65536 pixels");
  }
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  std::vector<float> probabilities = impl_->engine->run(clips);
  // A graph may give another number of classes than it did on the reference input.
  const std::size_t expected = static_cast<std::size_t>(clips.clips) * impl_->metadata.labels.size();
  if (probabilities.size() != expected) {
    throw Error(ErrorCode::kOther, "the model failed: it gave " + std::to_string(probabilities.size()) +
                                       " values for " + std::to_string(clips.clips) + " clips and " +
                                       std::to_string(impl_->metadata.labels.size()) +
                                       " labels; export the model again");
  }
  return probabilities;
}

VideoPrediction Classifier::classify(const std::string& path) const {
  const auto begin = std::chrono::steady_clock::now();
  const Metadata& metadata = impl_->metadata;
  const Video video = read_video(path, metadata.num_frames, metadata.frame_stride, metadata.sampling);
  VideoPrediction prediction;
  prediction.decode_ms = milliseconds_since(begin);
  prediction.total_frames = video.total_frames;
  prediction.indices = video.indices;
  const auto decoded = std::chrono::steady_clock::now();
  prediction.probabilities =
      classify({video.frames.data(), 1, impl_->metadata.num_frames, video.height, video.width});
  prediction.model_ms = milliseconds_since(decoded);
  return prediction;
}

}  // namespace sifa
