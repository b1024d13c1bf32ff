// What runs the graph of a model, whatever the file's format and the device.
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

/// What a stream remembers between two steps: the tensors of `Metadata::state`, each of one row.
using State = std::vector<at::Tensor>;

/// The graph of a model file, from tensors to tensors: what the formats differ in. Inputs are contiguous and
/// on its device; the tensors of a state have a row per stream. Throws what LibTorch throws.
class Program {
 public:
  virtual ~Program() = default;
  virtual at::Tensor run_clip(const at::Tensor& clips) = 0;
  virtual std::pair<at::Tensor, State> run_step(const at::Tensor& frames, const State& state,
                                                const at::Tensor& first) = 0;
};

/// A loaded graph: what the devices differ in. One call at a time. What LibTorch throws becomes
/// Error(kOther), or Error(kOutOfMemory) where it is the GPU's.
class Engine {
 public:
  virtual ~Engine() = default;

  /// The outputs of a clip's graph, (clips, classes) row by row, on checked frames.
  std::vector<float> classify(const Frames& clips);

  /// The outputs of a graph with a state, (streams, classes) row by row, on the checked frames that each
  /// stream is to be given next; `states`, one per stream, become the next ones, in tensors of their own.
  /// `first` says, per stream, whether it begins with these.
  std::vector<float> step(const Frames& frames, std::vector<State>& states, const std::vector<bool>& first);

  /// The state of a new stream: zeros, on the engine's device.
  State new_state(const Metadata& metadata) const;

  /// Takes back a state that nobody needs any more, for its memory.
  virtual void reuse(State&& state) { state.clear(); }

 protected:
  Engine(std::unique_ptr<Program> program, at::Device device)
      : program_(std::move(program)), device_(device) {}

  Program& program() { return *program_; }
  const at::Device& device() const { return device_; }

 private:
  /// Runs the program and changes `states` once nothing can fail any more; a clip's graph has none.
  virtual std::vector<float> run(const Frames& frames, std::vector<State>& states,
                                 const std::vector<bool>& first) = 0;

  std::unique_ptr<Program> program_;
  at::Device device_;
};

/// Throws Error(kOther) unless `output` is (count, classes).
void check_output(const at::Tensor& output, std::int64_t count);

/// Throws Error(kOther) unless what a program gave as the next state has the shapes and types of `before`.
void check_next(const State& next, const State& before);

/// Loads the graph of the model file `path`, whose operators have been loaded, with the program for its
/// format and the engine for its device. Throws Error: kDeviceUnavailable, kOperatorLibrary, kDamagedModel,
/// kUnsupportedSchema, kOutOfMemory.
std::unique_ptr<Engine> load_engine(const std::string& path, const Metadata& metadata,
                                    const ClassifierOptions& options);

/// Sets the number of threads of one operation on the CPU, for the process.
void set_threads(int threads);

}  // namespace sifa
