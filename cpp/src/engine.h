// What runs the graph of a model, whatever the file's format.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sifa/classifier.h"

namespace sifa {

/// A loaded graph. One call at a time.
class Engine {
 public:
  virtual ~Engine() = default;

  /// The outputs of the graph, (clips, classes) row by row, on checked frames. Throws Error(kOther).
  virtual std::vector<float> run(const Frames& clips) = 0;
};

/// Loads the graph of the TorchScript file `path`, whose operators have been loaded. Throws Error:
/// kDeviceUnavailable, kOperatorLibrary, kDamagedModel.
std::unique_ptr<Engine> load_torchscript(const std::string& path, const Metadata& metadata,
                                         const std::string& device);

/// Sets the number of threads of one operation on the CPU, for the process.
void set_threads(int threads);

}  // namespace sifa
