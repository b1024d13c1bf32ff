// Loading a model: the order of the checks, the reference input.
#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <thread>

#include "archive.h"
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

// The outputs after the last call of a new stream that `clip`, of `num_frames` frames, ends.
std::vector<float> last_outputs(Engine& engine, const Metadata& metadata, Frames clip) {
  const std::int64_t step_bytes = metadata.temporal_stride * clip.height * clip.width * 3;
  std::vector<State> state{engine.new_state(metadata)};
  Frames step = clip;
  step.frames = metadata.temporal_stride;
  if (metadata.kind == "window") {
    // A window whose oldest step the second call pushes out, so that what is kept is looked at too.
    std::vector<std::uint8_t> window(clip.data, clip.data + step_bytes);
    const std::int64_t others = step_bytes * (metadata.num_frames / metadata.temporal_stride - 1);
    window.insert(window.end(), clip.data, clip.data + others);
    clip.data = window.data();
    engine.step(clip, state, {true});
    step.data += others;
    return engine.step(step, state, {false});
  }
  std::vector<float> outputs;
  for (std::int64_t begin = 0; begin < metadata.num_frames; begin += step.frames) {
    outputs = engine.step(step, state, {begin == 0});
    step.data += step_bytes;
  }
  return outputs;
}

void check_reference(Engine& engine, const Metadata& metadata, const std::string& path) {
  const std::int64_t height = metadata.input_size[0] + kReferenceBorder[0];
  const std::int64_t width = metadata.input_size[1] + kReferenceBorder[1];
  const std::vector<std::uint8_t> frames = reference_frames(metadata.num_frames, height, width);
  std::vector<float> outputs;
  try {
    outputs = metadata.kind == "clip"
                  ? engine.classify({frames.data(), 1, metadata.num_frames, height, width})
                  : last_outputs(engine, metadata, {frames.data(), 1, metadata.num_frames, height, width});
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kOutOfMemory) throw;
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

}  // namespace

Model load_model(const std::string& path, const ClassifierOptions& options) {
  // More than the system lets it start end the process.
  const int most = std::max(64, 4 * static_cast<int>(std::thread::hardware_concurrency()));
  if (options.threads < 0 || options.threads > most) {
    throw Error(ErrorCode::kInvalidArgument, "threads must be 1 to " + std::to_string(most) +
                                                 " on this machine, or 0 for LibTorch's own choice, got " +
                                                 std::to_string(options.threads));
  }
  Model model;
  Archive archive(path);
  model.metadata = read_metadata(archive, path);
  archive.verify();
  load_operators();
  check_operator_schema(model.metadata.operator_schema, path);
  if (options.threads > 0) set_threads(options.threads);
  model.engine = load_engine(path, model.metadata, options);
  check_reference(*model.engine, model.metadata, path);
  return model;
}

void check_outputs(const std::vector<float>& probabilities, std::int64_t count, const Metadata& metadata) {
  // A graph may give another number of classes than it did on the reference input.
  if (probabilities.size() == static_cast<std::size_t>(count) * metadata.labels.size()) return;
  throw Error(ErrorCode::kOther, "the model failed: it gave " + std::to_string(probabilities.size()) +
                                     " values for " + std::to_string(count) + " clips and " +
                                     std::to_string(metadata.labels.size()) +
                                     " labels; export the model again");
}

}  // namespace sifa
