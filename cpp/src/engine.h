// What runs the graph of a model, whatever the file's format.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sifa/classifier.h"

namespace sifa {

/// The device that `text` names. Throws Error(kDeviceUnavailable).
at::Device parse_device(const std::string& text);

/// The type that metadata call `dtype`.
at::ScalarType type_of(const std::string& dtype);

/// A loaded graph. One call at a time. What LibTorch throws becomes Error(kOther).
class Engine {
 public:
  virtual ~Engine() = default;

  /// The outputs of a clip's graph, (clips, classes) row by row, on checked frames.
  std::vector<float> classify(const Frames& clips);

  /// The outputs of a graph with a state, (streams, classes) row by row, on the checked frames that it is to
  /// be given next; `state` becomes the next one. `first` says, per stream, whether it begins with these.
  std::vector<float> step(const Frames& frames, std::vector<at::Tensor>& state,
                          const std::vector<bool>& first);

  /// A state for new streams: zeros, on the engine's device.
  std::vector<at::Tensor> new_state(const Metadata& metadata, std::int64_t streams) const;

 protected:
  explicit Engine(at::Device device) : device_(device) {}

  const at::Device& device() const { return device_; }

 private:
  /// Inputs are contiguous and on the device; so is the state that comes back.
  virtual at::Tensor run_clip(const at::Tensor& clips) = 0;
  virtual std::pair<at::Tensor, std::vector<at::Tensor>> run_step(const at::Tensor& frames,
                                                                  const std::vector<at::Tensor>& state,
                                                                  const at::Tensor& first) = 0;

  at::Tensor on_device(const Frames& frames) const;

  at::Device device_;
};

/// Loads the graph of the model file `path`, whose operators have been loaded, with the engine for its
/// format. Throws Error: kDeviceUnavailable, kOperatorLibrary, kDamagedModel, kUnsupportedSchema.
std::unique_ptr<Engine> load_engine(const std::string& path, const Metadata& metadata,
                                    const std::string& device);

/// Sets the number of threads of one operation on the CPU, for the process.
void set_threads(int threads);

}  // namespace sifa
