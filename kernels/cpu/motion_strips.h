// How sifa::motion_offset and the gradient of its weight cut a clip into strips of tiles, and the saliency of
// the pixels that strips see. Included once per instruction set, like vector.h.
#pragma once

#include <cstdint>

#include "../motion.h"
#include "saliency.h"
#include "vector.h"
#include "winograd.h"

namespace sifa::cpu {
namespace {

// So that what is kept of a group of strips (saliency, transformed windows and products) stays in 1 MiB of
// cache, in float32: of 18 outputs. Half the channels took 3 to 8 % longer, forward.
constexpr int kChannelsAtOnce = 64;

SIFA_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
SIFA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The first `count` values, then zeros.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE Vector<Real, kWide<Real>> load_some(const T* source, int64_t count) {
  if (count >= kWide<Real>) return load<kWide<Real>>(source);
  Vector<Real, kWide<Real>> result{};
  for (int64_t i = 0; i < count; ++i) result[i] = load_one(source + i);
  return result;
}

template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void store_some(T* target, Vector<Real, kWide<Real>> values, int64_t count) {
  if (count >= kWide<Real>) return store<kWide<Real>>(target, values);
  for (int64_t i = 0; i < count; ++i) store_one(target + i, values[i]);
}

// A strip is a row of tiles, or a piece of one where rows are long. Strips are counted through (n, t, piece,
// row), so that adjacent strips share rows of pixels.
struct Strips {
  int64_t rows;    // of tiles in a frame
  int64_t pieces;  // of a row of tiles
  int64_t tiles;   // in a strip; the last piece of a row may have tiles outside the frame
  int64_t most;    // tiles in a group of strips

  Strips(const MotionSaliency& call, int64_t most) : rows(divide_up(call.height, kTile)), most(most) {
    const int64_t columns = divide_up(call.width, kTile);
    pieces = divide_up(columns, most);
    tiles = divide_up(columns, pieces);
  }

  SIFA_INLINE int64_t count(const MotionSaliency& call) const {
    return call.batch * call.frames * pieces * rows;
  }
  // Strips in a group, which may begin and end inside a frame: two rows of saliency are then computed twice,
  // which costs less than empty lanes (groups of whole frames of 28x28 took 5 % longer).
  SIFA_INLINE int64_t at_once() const { return most / tiles; }
};

// A run of strips of one piece of one frame: the rows [first, first + count) of tiles.
struct Run {
  int64_t n, t, piece, first, count;

  SIFA_INLINE int64_t pixel_rows() const { return kTile * count + 2; }  // that it sees
};

// Calls visit(run) for the runs that the strips [begin, end) are made of.
template <typename Visit>
SIFA_INLINE void for_runs(const MotionSaliency& call, const Strips& strips, int64_t begin, int64_t end,
                          const Visit& visit) {
  for (int64_t strip = begin; strip < end;) {
    const int64_t piece = strip / strips.rows, frame = piece / strips.pieces, first = strip % strips.rows;
    const Run run{frame / call.frames, frame % call.frames, piece % strips.pieces, first,
                  smaller(strips.rows - first, end - strip)};
    visit(run);
    strip += run.count;
  }
}

// Writes the saliency of the pixels that strips see, as [row][vector of channels][column]: in lines of a
// cache that adjoin.
template <typename T, typename Real = Accumulator<T>>
class StripSaliency {
 public:
  StripSaliency(const MotionSaliency& call, const Strips& strips) : call_(call), strips_(strips) {}

  SIFA_INLINE int64_t columns() const { return kTile * strips_.tiles + 2; }
  SIFA_INLINE int64_t row_size() const { return columns() * kChannelsAtOnce; }
  SIFA_INLINE int64_t run_size(const Run& run) const { return run.pixel_rows() * row_size(); }
  // Of the largest group.
  SIFA_INLINE int64_t group_size() const {
    const int64_t most = smaller(strips_.at_once(), strips_.count(call_));
    const int64_t runs = smaller(most, divide_up(most - 1, strips_.rows) + 1);  // of strips of one piece
    return (kTile * most + 2 * runs) * row_size();
  }
  // Where the window of a tile of a run begins: its first row, the first vector of channels.
  SIFA_INLINE int64_t window(int64_t row, int64_t column) const {
    return kTile * (row * row_size() + column * kLanes);
  }

  // Of `count` channels from `channel` on, of the strips [begin, end).
  SIFA_INLINE void write(int64_t begin, int64_t end, int64_t channel, int64_t count, Real* target) const {
    for_runs(call_, strips_, begin, end, [&](const Run& run) {
      for (int64_t i = 0; i < run.pixel_rows(); ++i, target += row_size())
        write_row(run, kTile * run.first - 1 + i, channel, count, target);
    });
  }

 private:
  static constexpr int kLanes = kWide<Real>;

  // Row y of the pixels of a run; zeros for those outside the frame.
  void write_row(const Run& run, int64_t y, int64_t channel, int64_t count, Real* target) const {
    const int64_t m = neighbour_frame(call_, run.t);
    if (m < 0 || y < 0 || y >= call_.height) return clear(target, 0, columns());
    const int64_t left = kTile * run.piece * strips_.tiles - 1;
    const int64_t begin = left < 0 ? 1 : 0, end = smaller(columns(), call_.width - left);
    clear(target, 0, begin);
    clear(target, end, columns());
    const T* query = static_cast<const T*>(call_.query) + run.n * call_.query_strides.batch +
                     run.t * call_.query_strides.frame + y * call_.query_strides.row + channel;
    const T* memory = static_cast<const T*>(call_.memory) + run.n * call_.memory_strides.batch +
                      m * call_.memory_strides.frame + y * call_.memory_strides.row + channel;
    for (int64_t x = begin; x < end; ++x) {
      const T* f = query + (left + x) * call_.query_strides.column;
      const T* n = memory + (left + x) * call_.memory_strides.column;
      // A part of a pixel's channels, then a gap: no pattern that the processor fetches ahead by itself.
      if (y + 1 < call_.height) {
        for (int64_t c = 0; c < count; c += 64 / static_cast<int64_t>(sizeof(T))) {
          __builtin_prefetch(f + call_.query_strides.row + c);
          __builtin_prefetch(n + call_.memory_strides.row + c);
        }
      }
      // A number known to the compiler: it unrolls the loop, and the processor takes the sigmoids side by
      // side, which hides their latency (a third of this function's time).
      Real* pixel = target + x * kLanes;
      if (count == kChannelsAtOnce) {
        write_pixel(f, n, kChannelsAtOnce, pixel);
      } else {
        write_pixel(f, n, count, pixel);
      }
    }
  }

  SIFA_INLINE void write_pixel(const T* f, const T* n, int64_t count, Real* pixel) const {
#pragma GCC unroll 8
    for (int64_t c = 0; c < count; c += kLanes) {
      const auto saliency = sifa::cpu::saliency<kLanes, Real>(load_some(f + c, count - c),
                                                              load_some(n + c, count - c), call_.residual);
      store<kLanes>(pixel + c * columns(), saliency);
    }
  }

  // The columns [begin, end) of a row of pixels.
  SIFA_INLINE void clear(Real* row, int64_t begin, int64_t end) const {
    for (int64_t c = 0; c < kChannelsAtOnce; c += kLanes) {
      for (int64_t x = begin; x < end; ++x)
        store<kLanes>(row + c * columns() + x * kLanes, Vector<Real, kLanes>{});
    }
  }

  const MotionSaliency& call_;
  const Strips strips_;
};

}  // namespace
}  // namespace sifa::cpu
