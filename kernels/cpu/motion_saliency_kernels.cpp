// The CPU kernels of sifa::motion_saliency and its backward, vectorised over channels. Compiled once per
// instruction set, like inter_frame_attention_kernels.cpp; see there.
#include <cstdint>
#include <cstring>

#include "motion_kernels.h"
#include "saliency.h"
#include "table.h"
#include "vector.h"

namespace sifa::cpu {
namespace {

template <typename T>
SIFA_INLINE const T* row_of(const void* data, const PixelStrides& strides, int64_t n, int64_t t, int64_t y) {
  return static_cast<const T*>(data) + n * strides.batch + t * strides.frame + y * strides.row;
}

template <typename T, typename Real = Accumulator<T>>
void forward_rows(const MotionSaliency& call, int64_t begin, int64_t end) {
  const int64_t row_size = call.width * call.channels;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t frame = index / call.height, y = index % call.height;
    const int64_t n = frame / call.frames, t = frame % call.frames, m = neighbour_frame(call, t);
    T* output = static_cast<T*>(call.output) + index * row_size;
    if (m < 0) {
      std::memset(output, 0, static_cast<size_t>(row_size) * sizeof(T));
      continue;
    }
    const T* query = row_of<T>(call.query, call.query_strides, n, t, y);
    const T* memory = row_of<T>(call.memory, call.memory_strides, n, m, y);
    for (int64_t x = 0; x < call.width; ++x, output += call.channels) {
      const T* f = query + x * call.query_strides.column;
      const T* neighbour = memory + x * call.memory_strides.column;
      for_channels<Real>(call.channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
        constexpr int kLanes = decltype(lanes)::value;
        store<kLanes>(output + c, saliency<kLanes, Real>(load<kLanes>(f + c), load<kLanes>(neighbour + c),
                                                         call.residual));
      });
    }
  }
}

// Both gradients at once, frame of the memory by frame of the memory: every sigmoid is computed once, and
// where query and memory are one clip, a frame is still in the caches when it is read the second time.
template <typename T, typename Real = Accumulator<T>>
void backward_pixels(const MotionSaliencyBackward& call, int64_t begin, int64_t end) {
  const int64_t frame_size = call.height * call.width * call.channels;
  for (int64_t index = begin, width = 0; index < end; index += width) {  // by rows, or pieces of them
    const int64_t n = index / (call.height * call.width), pixel = index % (call.height * call.width);
    const int64_t y = pixel / call.width, left = pixel % call.width;
    width = end - index < call.width - left ? end - index : call.width - left;
    // In the first frame; the others are at t or m times a distance.
    const T* query = row_of<T>(call.query, call.query_strides, n, 0, y) + left * call.query_strides.column;
    const T* gradient = row_of<T>(call.grad_output, call.grad_output_strides, n, 0, y) +
                        left * call.grad_output_strides.column;
    T* of_query = static_cast<T*>(call.grad_query) + n * call.frames * frame_size + pixel * call.channels;
    for (int64_t t = 0; t < call.frames; ++t) {
      if (neighbour_frame(call, t) >= 0) continue;
      std::memset(of_query + t * frame_size, 0, static_cast<size_t>(width * call.channels) * sizeof(T));
    }
    for (int64_t m = 0; m < call.memory_frames; ++m) {
      const FrameRange readers = readers_of(call, m);
      const T* memory =
          row_of<T>(call.memory, call.memory_strides, n, m, y) + left * call.memory_strides.column;
      T* of_memory = static_cast<T*>(call.grad_memory) + (n * call.memory_frames + m) * frame_size +
                     pixel * call.channels;
      for (int64_t x = 0; x < width; ++x) {
        const T* f = query + x * call.query_strides.column;
        const T* neighbour = memory + x * call.memory_strides.column;
        const T* g = gradient + x * call.grad_output_strides.column;
        for_channels<Real>(call.channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
          constexpr int kLanes = decltype(lanes)::value;
          const auto value = load<kLanes>(neighbour + c);
          Vector<Real, kLanes> sum{};
          for (int64_t t = readers.begin; t < readers.end; ++t) {
            const auto slopes = saliency_slopes<kLanes, Real>(
                load<kLanes>(f + t * call.query_strides.frame + c), value, call.residual);
            const auto of_output = load<kLanes>(g + t * call.grad_output_strides.frame + c);
            store<kLanes>(of_query + t * frame_size + x * call.channels + c, of_output * slopes.query);
            sum += of_output * slopes.memory;
          }
          store<kLanes>(of_memory + x * call.channels + c, sum);
        });
      }
    }
  }
}

void forward(const MotionSaliency& call, int64_t begin, int64_t end) {
  for_feature_type(call.features, [&](auto type) { forward_rows<decltype(type)>(call, begin, end); });
}

void backward(const MotionSaliencyBackward& call, int64_t begin, int64_t end) {
  for_feature_type(call.features, [&](auto type) { backward_pixels<decltype(type)>(call, begin, end); });
}

}  // namespace

#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _motion_saliency_kernels)

extern const MotionSaliencyKernels SIFA_TABLE;
const MotionSaliencyKernels SIFA_TABLE = {forward, backward};

}  // namespace sifa::cpu
