// Classifies live video: push frames one by one, get a prediction whenever one is due.
//
// What a model file is decides how. A clip's model is run on the last frames, whole. A window's
// (`sifa export --window`) gives the same, and computes what does not depend on the window once per step: all
// before its first block with SIFA or a context of the whole clip. A causal model's (`--streaming`) keeps a
// feature map per SIFA layer, and a step costs what its own frames cost, however long the history.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sifa/classifier.h"
#include "sifa/error.h"
#include "sifa/export.h"
#include "sifa/metadata.h"

namespace sifa {

/// One raw frame that the caller owns: `height` x `width` RGB triples of bytes, contiguous. It is copied.
struct Frame {
  const std::uint8_t* data = nullptr;
  std::int64_t height = 0;  ///< 1 to 65536
  std::int64_t width = 0;   ///< 1 to 65536
};

/// How to run a stream.
struct StreamOptions : ClassifierOptions {
  /// Every how many of the frames pushed one is used: the distance between two frames that the model was
  /// trained with, if 0.
  std::int64_t frame_stride = 0;
  /// Used frames between two predictions: `temporal_stride` of the model for a causal one, and any multiple
  /// of it up to `num_frames` for others; `temporal_stride` if 0.
  std::int64_t hop = 0;
};

struct StreamPrediction {
  std::vector<float> probabilities;  ///< one per label
  std::int64_t frame = 0;  ///< the newest frame in it, counted from 0 as pushed since the last reset
};

/// Several streams through one model. Streams that are due at the same time, with as many frames of the same
/// size, go through it as one batch; each has its own state and its own reset. Movable, not copyable; calls
/// on one instance are serialised.
///
/// Every function that can fail throws `Error` and nothing else, std::bad_alloc excepted, and leaves the
/// streams as they were.
class SIFA_API StreamBatch {
 public:
  /// Loads the model file `path`, of any kind, for `streams` streams (1 to 65536). Throws what the
  /// constructor of Classifier throws, and Error(kInvalidArgument) for an option out of its range.
  StreamBatch(const std::string& path, std::size_t streams, const StreamOptions& options = {});
  ~StreamBatch();
  StreamBatch(StreamBatch&&) noexcept;
  StreamBatch& operator=(StreamBatch&&) noexcept;

  const Metadata& metadata() const;
  const std::vector<std::string>& labels() const { return metadata().labels; }
  std::size_t size() const;

  /// Gives a stream its next frame; returns whether a prediction of it is now due. Throws
  /// Error(kInvalidArgument): there is no such stream; it has a prediction due already; the frame has no
  /// pixels, or another size than the frames that it would be stacked with (reset the stream to change it).
  bool push(std::size_t stream, const Frame& frame);

  /// Makes the predictions that are due: by stream, nothing where none is. Throws Error(kOther) if the model
  /// fails, and Error(kOutOfMemory) if the GPU cannot hold them; they are then still due.
  std::vector<std::optional<StreamPrediction>> run();

  /// Lets a stream begin anew, with a frame of any size.
  void reset(std::size_t stream);

  /// Everything that a stream remembers, as bytes for `restore`, of this class or `Stream`, of the same model
  /// file, in this process or another on a machine of the same byte order. Throws Error(kInvalidArgument) if
  /// the stream has a prediction due.
  std::vector<std::uint8_t> save(std::size_t stream) const;

  /// Continues a stream where it was saved. Throws Error(kInvalidArgument) for bytes that `save` did not
  /// make, or made with another model file or other options; the stream is then as it was.
  void restore(std::size_t stream, const std::vector<std::uint8_t>& bytes);

 private:
  friend class Stream;
  /// Forgets the frame that made a prediction due.
  void take_back(std::size_t stream);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One stream through one model; see `StreamBatch`.
class SIFA_API Stream {
 public:
  explicit Stream(const std::string& path, const StreamOptions& options = {}) : batch_(path, 1, options) {}

  const Metadata& metadata() const { return batch_.metadata(); }
  const std::vector<std::string>& labels() const { return batch_.labels(); }

  /// Takes the next frame; returns a prediction if one is due.
  std::optional<StreamPrediction> push(const Frame& frame);

  void reset() { batch_.reset(0); }
  std::vector<std::uint8_t> save() const { return batch_.save(0); }
  void restore(const std::vector<std::uint8_t>& bytes) { batch_.restore(0, bytes); }

 private:
  StreamBatch batch_;
};

}  // namespace sifa
