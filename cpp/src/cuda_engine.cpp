// The engine for GPUs: a stream and buffers of its own, pinned staging, and CUDA graphs where shapes come
// again.
//
// A call copies the frames to pinned memory, from there to a buffer on the GPU, runs the program and copies
// its outputs back, all on the engine's stream, and waits for that stream: when it returns, no work of it is
// under way, so that the tensors of a state can be used on any stream.
//
// Buffers are kept by shape. A program of a new shape is first run as it is, since TorchScript's executor
// compiles in its second run, and libraries choose their kernels and take their workspaces. Then it is
// captured, and from there on replayed: the CPU launches it at once, and nothing is allocated.
#include <ATen/ATen.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <mutex>
#include <shared_mutex>
#include <tuple>

#include "engines.h"
#include "sifa/error.h"
#include "torch_errors.h"

// ATen/cuda/CUDAContextLight.h has this, and asks for cuSPARSE's headers.
namespace at::cuda {
cudaDeviceProp* getDeviceProperties(c10::DeviceIndex device);
}

namespace sifa {
namespace {

using Shape = std::array<std::int64_t, 4>;  // clips, frames, height, width

constexpr int kRunsBeforeCapture = 3;
constexpr std::size_t kMaxShapes = 8;  // the one that was longest without use makes room

// While one engine captures, no other runs: it may share the stream, of which LibTorch has 32, and what it
// loads or allocates meanwhile could spoil the capture.
class CaptureLock {
 public:
  std::shared_lock<std::shared_mutex> for_running() {
    const std::lock_guard<std::mutex> turn(turn_);
    return std::shared_lock<std::shared_mutex>(mutex_);
  }

  std::unique_lock<std::shared_mutex> for_capturing() {
    // Who runs next waits here: readers alone would let a writer wait for ever.
    const std::lock_guard<std::mutex> turn(turn_);
    return std::unique_lock<std::shared_mutex>(mutex_);
  }

 private:
  std::mutex turn_;
  std::shared_mutex mutex_;
};

CaptureLock& capture_lock() {
  static CaptureLock lock;
  return lock;
}

// What is kept for the frames of one shape.
struct Work {
  Shape shape{};
  at::Tensor host_frames, frames;  // bytes (clips, frames, height, width, 3): in pinned memory, on the GPU
  at::Tensor host_first, first;    // of a program with a state: booleans (clips)
  State state;                     //
  at::Tensor output, host_output;  // float32 (clips, classes)
  State next;
  int runs = 0;
  std::unique_ptr<at::cuda::CUDAGraph> graph;  // from `frames`, `first` and `state` to `output` and `next`
};

class CudaEngine : public Engine {
 public:
  CudaEngine(std::unique_ptr<Program> program, const at::Device& device, bool with_graphs)
      : Engine(std::move(program), device),
        stream_(c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(device)),
        with_graphs_(with_graphs) {}

  void reuse(State&& state) override {
    if (!state.empty()) spare_.push_back(std::move(state));
  }

 private:
  std::vector<float> run(const Frames& frames, std::vector<State>& states,
                         const std::vector<bool>& first) override;

  Work& work_for(const Frames& frames, const std::vector<State>& states);
  void run_program(Work& work);
  void copy_in(Work& work, const Frames& frames, const std::vector<State>& states,
               const std::vector<bool>& first);
  std::vector<float> copy_out(Work& work, std::vector<State>& states);
  State new_or_spare(const State& like);
  void capture(Work& work);

  std::int64_t times_out_of_memory() const {
    return c10::cuda::CUDACachingAllocator::getDeviceStats(device().index()).num_ooms;
  }

  c10::Stream stream_;
  bool with_graphs_;
  std::list<Work> works_;     // the one used last in front
  std::vector<State> spare_;  // states that were given back
};

std::vector<float> CudaEngine::run(const Frames& frames, std::vector<State>& states,
                                   const std::vector<bool>& first) {
  const c10::StreamGuard guard(stream_);
  const std::int64_t times_before = times_out_of_memory();
  std::vector<float> outputs;
  try {
    const auto lock = capture_lock().for_running();
    Work& work = work_for(frames, states);
    copy_in(work, frames, states, first);
    if (work.graph) {
      work.graph->replay();
    } else {
      run_program(work);
    }
    outputs = copy_out(work, states);
  } catch (const std::exception&) {
    // Its buffers may be what there is no room for; and nothing of them may be under way any more.
    stream_.synchronize();
    if (!works_.empty()) works_.pop_front();
    // TorchScript and packages tell a failed allocation by a text at most, so that the allocator is asked.
    if (times_out_of_memory() == times_before) throw;
    throw Error(ErrorCode::kOutOfMemory,
                device().str() + " is out of memory with " + std::to_string(frames.clips) + " x " +
                    std::to_string(frames.frames) + " frames of " + std::to_string(frames.height) + " x " +
                    std::to_string(frames.width) +
                    ": give it fewer clips or streams at a time or smaller frames, or end what else uses it");
  }
  Work& work = works_.front();
  if (!work.graph) {
    work.output.reset();
    work.next.clear();
    if (++work.runs == kRunsBeforeCapture && with_graphs_) capture(work);
  }
  return outputs;
}

// In front of the list.
Work& CudaEngine::work_for(const Frames& frames, const std::vector<State>& states) {
  const Shape shape{frames.clips, frames.frames, frames.height, frames.width};
  for (auto work = works_.begin(); work != works_.end(); ++work) {
    if (work->shape != shape) continue;
    works_.splice(works_.begin(), works_, work);
    return works_.front();
  }
  if (works_.size() == kMaxShapes) works_.pop_back();
  Work& work = works_.emplace_front();
  work.shape = shape;
  const auto buffers = [&](at::IntArrayRef sizes, at::ScalarType type, at::Tensor& host, at::Tensor& own) {
    host = at::empty(sizes, at::TensorOptions(type).pinned_memory(true));
    own = at::empty(sizes, at::TensorOptions(device()).dtype(type));
  };
  buffers({shape[0], shape[1], shape[2], shape[3], 3}, at::kByte, work.host_frames, work.frames);
  if (states.empty()) return work;
  buffers({shape[0]}, at::kBool, work.host_first, work.first);
  for (const at::Tensor& like : states.front()) {
    std::vector<std::int64_t> sizes = like.sizes().vec();
    sizes[0] = shape[0];
    work.state.push_back(at::empty(sizes, like.options()));
  }
  return work;
}

void CudaEngine::copy_in(Work& work, const Frames& frames, const std::vector<State>& states,
                         const std::vector<bool>& first) {
  std::memcpy(work.host_frames.mutable_data_ptr(), frames.data, work.host_frames.nbytes());
  work.frames.copy_(work.host_frames, /*non_blocking=*/true);
  if (states.empty()) return;
  std::copy(first.begin(), first.end(), work.host_first.mutable_data_ptr<bool>());
  work.first.copy_(work.host_first, /*non_blocking=*/true);
  for (std::size_t row = 0; row < states.size(); ++row) {
    for (std::size_t part = 0; part < work.state.size(); ++part) {
      work.state[part].narrow(0, static_cast<std::int64_t>(row), 1).copy_(states[row][part], true);
    }
  }
}

void CudaEngine::run_program(Work& work) {
  if (!work.first.defined()) {
    work.output = program().run_clip(work.frames);
  } else {
    std::tie(work.output, work.next) = program().run_step(work.frames, work.state, work.first);
    check_next(work.next, work.state);
  }
  check_output(work.output, work.shape[0]);
  work.output = work.output.to(at::kFloat).contiguous();
}

// Waits for the stream.
std::vector<float> CudaEngine::copy_out(Work& work, std::vector<State>& states) {
  if (!work.host_output.defined() || work.host_output.sizes() != work.output.sizes()) {
    work.host_output = at::empty(work.output.sizes(), at::TensorOptions(at::kFloat).pinned_memory(true));
  }
  work.host_output.copy_(work.output, /*non_blocking=*/true);
  std::vector<State> after;
  for (std::size_t row = 0; row < states.size(); ++row) {
    after.push_back(new_or_spare(states[row]));
    for (std::size_t part = 0; part < work.next.size(); ++part) {
      after[row][part].copy_(work.next[part].narrow(0, static_cast<std::int64_t>(row), 1), true);
    }
  }
  stream_.synchronize();
  states = std::move(after);
  const float* begin = work.host_output.const_data_ptr<float>();
  return std::vector<float>(begin, begin + work.host_output.numel());
}

State CudaEngine::new_or_spare(const State& like) {
  State state;
  if (!spare_.empty()) {
    state = std::move(spare_.back());
    spare_.pop_back();
    return state;
  }
  for (const at::Tensor& tensor : like) state.push_back(at::empty_like(tensor));
  return state;
}

// In the call of an uncaptured run, whose thread has the handles of all libraries by then. What is refused
// leaves the engine without graphs: the next shape would be refused too.
void CudaEngine::capture(Work& work) {
  const auto lock = capture_lock().for_capturing();
  // The graphs of an engine never run at the same time and share their memory; outputs are held by `works_`.
  c10::MempoolId_t pool = at::cuda::graph_pool_handle();
  for (Work& other : works_) {
    if (other.graph) pool = other.graph->pool();
  }
  auto graph = std::make_unique<at::cuda::CUDAGraph>();
  try {
    graph->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    try {
      run_program(work);
    } catch (const std::exception&) {
      try {
        graph->capture_end();
      } catch (const std::exception&) {
        // says that the capture failed, which is known
      }
      throw;
    }
    graph->capture_end();
    work.graph = std::move(graph);
  } catch (const std::exception& error) {
    with_graphs_ = false;
    work.output.reset();
    work.next.clear();
    graph.reset();
    // LibTorch before 2.12 leaves both allocators in the capture; later ones refuse to end it twice.
    const auto leave = [](const auto& function) {
      try {
        function();
      } catch (const std::exception&) {
        // has been left
      }
    };
    leave([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(device().index(), pool); });
    leave([&] { at::getHostAllocator(at::kCUDA)->end_allocate_to_pool(pool); });
    TORCH_WARN("sifa runs this model without CUDA graphs, since its capture was refused: ",
               reason_of(error.what()));
  }
}

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(std::unique_ptr<Program> program, const at::Device& device,
                                         bool with_graphs) {
  // A package allocates past LibTorch's allocator, which may never have been used.
  at::globalContext().lazyInitDevice(at::kCUDA);
  const at::Device own = device.has_index() ? device : c10::impl::VirtualGuardImpl(at::kCUDA).getDevice();
  return std::make_unique<CudaEngine>(std::move(program), own, with_graphs);
}

std::string describe_gpu(int index) {
  const cudaDeviceProp* properties = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(index));
  return std::string(properties->name) + ", compute capability " + std::to_string(properties->major) + "." +
         std::to_string(properties->minor);
}

}  // namespace sifa
