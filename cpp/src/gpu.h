// How an engine's graph runs on a GPU: on a stream of its own, from pinned memory, and replayed.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace sifa {

/// A recorded sequence of launches, which one call repeats on the tensors it was recorded with.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay() = 0;
};

/// Runs `launch` while the GPU records what is launched in the current stream, instead of doing it. nullptr
/// if this build of SIFA has no CUDA; throws what LibTorch throws if `launch` cannot be recorded: it waits
/// for the GPU, say.
std::unique_ptr<Recording> record(const std::function<void()>& launch);

/// Runs functions of tensors on one GPU. The first calls with inputs of some sizes are ordinary ones, in
/// which LibTorch optimises and allocates; then the function is recorded, and from then on replayed. What
/// cannot be recorded goes on being called. One call at a time.
class GpuRunner {
 public:
  using Function = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

  explicit GpuRunner(const at::Device& device);

  /// What it works in. Whatever else touches the tensors that run() takes and gives does so in it, too.
  const c10::Stream& stream() const { return stream_; }

  /// The outputs of `function`, always the same one but for what it runs in, for `inputs`, each of them on
  /// the host or on the GPU: the first one on the host, in float32, valid until the next call, and the others
  /// on the GPU. Waits for the GPU.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, const Function& function);

 private:
  // What is kept for inputs of certain sizes, which are always given to the function in the same memory.
  struct Sizes {
    std::vector<at::Tensor> staging;  // pinned, for inputs on the host
    std::vector<at::Tensor> inputs;
    std::vector<at::Tensor> outputs;  // of the recording
    at::Tensor answer;                // pinned
    std::unique_ptr<Recording> recording;
    int calls = 0;
  };
  using Key = std::vector<std::vector<std::int64_t>>;

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, const Function& function, Sizes& sizes);

  at::Device device_;
  c10::Stream stream_;
  std::map<Key, Sizes> known_;
};

}  // namespace sifa
