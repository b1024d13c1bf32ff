// sifa::inter_frame_attention and its backward on the CPU: turns tensors into the parameter struct, cuts the
// work into tiles and hands them to torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "../checks.h"
#include "kernels.h"
#include "scratch.h"

namespace sifa::cpu {
namespace {

using torch::stable::Tensor;

// Tiles per thread that are worth a thread: about as many products as the elements that torch's own loops ask
// for.
int64_t tile_grain(const InterFrameAttention& call) {
  constexpr int64_t kProducts = 1 << 16;
  const int64_t per_tile = kTileSize * kTileSize * call.channels * call.kernel_size * call.kernel_size;
  return std::max<int64_t>(1, kProducts / std::max<int64_t>(1, per_tile));
}

Tensor inter_frame_attention(Tensor query, Tensor memory, Tensor offset, int64_t kernel_size,
                             int64_t dilation, int64_t groups, std::optional<double> scale,
                             int64_t frame_shift, std::string edge, bool softmax, bool residual) {
  InterFrameAttention call = check_arguments(query, memory, offset, kernel_size, dilation, groups, scale,
                                             frame_shift, edge, softmax, residual);
  Tensor output = empty_channels_last(query);
  if (output.numel() == 0) return output;

  read_features(call, query, memory);
  call.offset = offset.const_data_ptr();
  call.offset_strides = offset_strides(offset);
  call.output = output.mutable_data_ptr();

  const Kernels& table = kernels();
  torch::stable::parallel_for(0, tiles(call), tile_grain(call), [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(scratch_bytes(call));
    table.forward(call, begin, end, scratch.get());
  });
  return output;
}

// How many rows of a memory frame are summed as one piece, a band: so few that every thread has two pieces,
// and that the float32 sums of half or bfloat16 rows stay in the cache. No fewer, because for each of a
// frame's bands its readers' taps are located again.
int64_t rows_per_band(const InterFrameAttention& call) {
  constexpr int64_t kScratchLimit = 1 << 20;
  const int64_t frames = call.batch * call.memory_frames;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t for_threads = threads == 1 ? 1 : (2 * threads + frames - 1) / frames;
  const int64_t for_cache = memory_scratch_bytes(call, call.height) / kScratchLimit + 1;
  const int64_t bands = std::min(std::max(for_threads, for_cache), call.height);
  return (call.height + bands - 1) / bands;
}

// Deterministic for any number of threads, whether `deterministic` is asked for or not: every element of
// every gradient is summed by one thread, in the order of the query pixels and their taps.
std::tuple<Tensor, Tensor, Tensor> inter_frame_attention_backward(
    Tensor grad_output, Tensor query, Tensor memory, Tensor offset, int64_t kernel_size, int64_t dilation,
    int64_t groups, std::optional<double> scale, int64_t frame_shift, std::string edge, bool softmax,
    bool residual, [[maybe_unused]] bool deterministic) {
  InterFrameAttentionBackward call{};
  static_cast<InterFrameAttention&>(call) = check_arguments(
      query, memory, offset, kernel_size, dilation, groups, scale, frame_shift, edge, softmax, residual);
  check_grad_output(grad_output, query);
  Tensor grad_query = empty_channels_last(query);
  Tensor grad_memory = empty_channels_last(memory);
  Tensor grad_offset = empty_channels_last(offset);
  if (query.numel() == 0) {
    torch::stable::zero_(grad_memory);
    torch::stable::zero_(grad_offset);
    return {grad_query, grad_memory, grad_offset};
  }

  read_features(call, query, memory);
  read_gradient(call, grad_output);
  call.offset = offset.const_data_ptr();
  call.offset_strides = offset_strides(offset);
  call.grad_query = grad_query.mutable_data_ptr();
  call.grad_memory = grad_memory.mutable_data_ptr();
  call.grad_offset = grad_offset.mutable_data_ptr();

  const Kernels& table = kernels();
  const Scratch tap_gradients = allocate(tap_gradient_bytes(call));
  torch::stable::parallel_for(0, tiles(call), tile_grain(call), [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(scratch_bytes(call));
    table.backward_query(call, begin, end, tap_gradients.get(), scratch.get());
  });
  if (call.memory_frames == 0) return {grad_query, grad_memory, grad_offset};

  // Counted through (n, band, m), with the last m first: of a clip that clamps one end has two readers and
  // the other none. Side by side they are shared evenly among threads, which get adjacent pieces: frame by
  // frame from the first on, one of two threads had three quarters of the work of four frames.
  const int64_t rows = rows_per_band(call), bands = (call.height + rows - 1) / rows;
  const int64_t frames = call.memory_frames;
  torch::stable::parallel_for(0, call.batch * bands * frames, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(memory_scratch_bytes(call, rows));
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t m = (piece + frames - 1) % frames, first = piece / frames % bands * rows;
      table.backward_memory(call, piece / (frames * bands), m, first, std::min(first + rows, call.height),
                            tap_gradients.get(), scratch.get());
    }
  });
  return {grad_query, grad_memory, grad_offset};
}

}  // namespace
}  // namespace sifa::cpu

STABLE_TORCH_LIBRARY_IMPL(sifa, CPU, library) {
  library.impl("inter_frame_attention", TORCH_BOX(&sifa::cpu::inter_frame_attention));
  library.impl("inter_frame_attention_backward", TORCH_BOX(&sifa::cpu::inter_frame_attention_backward));
}
