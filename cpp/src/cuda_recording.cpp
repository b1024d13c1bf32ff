// Recording on a GPU: a CUDA graph. Compiled where there is a CUDA toolkit; see no_recording.cpp.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

#include "gpu.h"

namespace sifa {
namespace {

class CudaRecording : public Recording {
 public:
  explicit CudaRecording(const std::function<void()>& launch) {
    // Only this thread is watched: others may go on using the GPU.
    graph_.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      launch();
    } catch (...) {
      try {
        graph_.capture_end();  // or the stream stays in this state
      } catch (const c10::Error&) {
      }
      throw;
    }
    graph_.capture_end();
  }

  void replay() override { graph_.replay(); }

 private:
  at::cuda::CUDAGraph graph_;
};

}  // namespace

std::unique_ptr<Recording> record(const std::function<void()>& launch) {
  return std::make_unique<CudaRecording>(launch);
}

}  // namespace sifa
