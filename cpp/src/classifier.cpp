// The public classifier: what it refuses, and which frames of a video are taken.
#include "sifa/classifier.h"

#include <chrono>
#include <mutex>

#include "model.h"

namespace sifa {
namespace {

double milliseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

struct Classifier::Impl {
  Model model;
  std::mutex mutex;
};

Classifier::Classifier(const std::string& path, const ClassifierOptions& options)
    : impl_(new Impl{load_model(path, options), {}}) {
  if (metadata().kind != "clip") {
    throw Error(
        ErrorCode::kUnsupportedSchema,
        path +
            " is a stream's model: run it with sifa::Stream, or export it without --window or --streaming");
  }
}

Classifier::~Classifier() = default;
Classifier::Classifier(Classifier&&) noexcept = default;
Classifier& Classifier::operator=(Classifier&&) noexcept = default;

const Metadata& Classifier::metadata() const { return impl_->model.metadata; }

std::vector<float> Classifier::classify(const Frames& clips) const {
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kInvalidArgument, "frames must be bytes (" + std::to_string(clips.clips) +
                                                 " clips, " + std::to_string(metadata().num_frames) +
                                                 " frames, height, width, 3): " + why);
  };
  if (clips.data == nullptr) refuse("there is no data");
  if (clips.clips < 1 || clips.clips > kMaxExtent) {
    refuse("got " + std::to_string(clips.clips) +
           " clips, must be 1 to 65536; classify more in several calls");
  }
  if (clips.frames != metadata().num_frames) refuse("got " + std::to_string(clips.frames) + " frames");
  if (clips.height < 1 || clips.width < 1 || clips.height > kMaxExtent || clips.width > kMaxExtent) {
    refuse("got frames of " + std::to_string(clips.height) + " x " + std::to_string(clips.width) +
           ", a side must be 1 to 65536 pixels");
  }
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  std::vector<float> probabilities = impl_->model.engine->classify(clips);
  check_outputs(probabilities, clips.clips, metadata());
  return probabilities;
}

VideoPrediction Classifier::classify(const std::string& path) const {
  const auto begin = std::chrono::steady_clock::now();
  const Video video = read_video(path, metadata().num_frames, metadata().frame_stride, metadata().sampling);
  VideoPrediction prediction;
  prediction.decode_ms = milliseconds_since(begin);
  prediction.total_frames = video.total_frames;
  prediction.indices = video.indices;
  const auto decoded = std::chrono::steady_clock::now();
  prediction.probabilities =
      classify({video.frames.data(), 1, metadata().num_frames, video.height, video.width});
  prediction.model_ms = milliseconds_since(decoded);
  return prediction;
}

}  // namespace sifa
