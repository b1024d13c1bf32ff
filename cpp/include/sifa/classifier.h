// Loads a model that `sifa export` wrote and classifies clips and video files with it.
//
// The runtime is for inference only: a model computes no gradients in C++. Training is Python's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sifa/error.h"
#include "sifa/export.h"
#include "sifa/metadata.h"
#include "sifa/video.h"

namespace sifa {

/// Raw frames that the caller owns: `clips` x `frames` x `height` x `width` RGB triples of bytes, contiguous.
struct Frames {
  const std::uint8_t* data = nullptr;
  std::int64_t clips = 1;   ///< at most 65536
  std::int64_t frames = 0;  ///< of one clip
  std::int64_t height = 0;  ///< at most 65536
  std::int64_t width = 0;   ///< at most 65536
};

/// How to run a model.
struct ClassifierOptions {
  std::string device = "cpu";  ///< "cpu", "cuda" (the current device) or "cuda:<index>"
  int threads = 0;  ///< of one operation on the CPU, for the whole process; 0 leaves LibTorch's setting
  /// On a GPU: whether frames of a shape that comes again are run by a CUDA graph, which launches all kernels
  /// at once and allocates nothing. It holds a second set of the network's features in memory.
  bool cuda_graphs = true;
};

/// The answer to `Classifier::classify(path)`.
struct VideoPrediction {
  std::vector<float> probabilities;   ///< one per label
  std::int64_t total_frames = 0;      ///< how many frames decoding the whole video gives
  std::vector<std::int64_t> indices;  ///< which of them were classified
  double decode_ms = 0.0;             ///< time to read the frames
  double model_ms = 0.0;              ///< time of preprocessing and network
};

/// A loaded model. Movable, not copyable. Different instances may be used from different threads at the same
/// time; calls on one instance are serialised.
///
/// Every function that can fail throws `Error` and nothing else, std::bad_alloc excepted.
class SIFA_API Classifier {
 public:
  /// Loads `path`: checks the file and its metadata, loads the operator library if the process has none yet
  /// (it is looked for at $SIFA_OPS_LIBRARY if that is set, else beside libsifa_runtime.so), then the graph,
  /// and compares its output on the reference input with the one in the metadata.
  ///
  /// A model file is a program: load only files that you trust as you trust code.
  ///
  /// Throws Error: kFileNotFound, kNotAModel, kDamagedModel, kUnsupportedSchema, kOperatorLibrary,
  /// kDeviceUnavailable, kReferenceMismatch, kInvalidArgument (negative `threads`), kOutOfMemory.
  explicit Classifier(const std::string& path, const ClassifierOptions& options = {});
  ~Classifier();
  Classifier(Classifier&&) noexcept;
  Classifier& operator=(Classifier&&) noexcept;

  const Metadata& metadata() const;
  const std::vector<std::string>& labels() const { return metadata().labels; }

  /// Probabilities, (clips, labels) row by row, of clips of any height and width. Throws
  /// Error(kInvalidArgument) if the number of clips, the height or the width is not 1 to 65536 or a clip does
  /// not have `metadata().num_frames` frames, and Error(kOutOfMemory) if the GPU cannot hold them.
  std::vector<float> classify(const Frames& clips) const;

  /// Classifies the clip that `metadata()` says to sample from the video file `path` (see `read_video`).
  /// Throws Error: kFileNotFound, kVideoCannotBeOpened, kVideoHasNoFrames.
  VideoPrediction classify(const std::string& path) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sifa
