// The CPU kernels of inter-frame attention, vectorised over channels. Compiled once per instruction set, with
// the compiler flags and the SIFA_CPU_CAPABILITY (which names the table it defines) that
// kernels/CMakeLists.txt gives it. Everything but that table is in an unnamed namespace and includes no
// function of the standard library that could be emitted out of line: see SIFA_HOST_DEVICE.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "table.h"
#include "vector.h"

namespace sifa::cpu {
namespace {

constexpr int kMaxTaps = 81;  // kernel_size 9
constexpr int kTilePixels = kTileSize * kTileSize;
// Room for loops over taps to run past the last one, to a multiple of 4.
constexpr int kTapRoom = 84;

SIFA_INLINE float exponential(float x) { return __builtin_expf(x); }
SIFA_INLINE double exponential(double x) { return __builtin_exp(x); }

template <typename T>
SIFA_INLINE const T* pixel(const void* data, const PixelStrides& strides, int64_t n, int64_t t, int64_t y,
                           int64_t x) {
  return static_cast<const T*>(data) + n * strides.batch + t * strides.frame + y * strides.row +
         x * strides.column;
}

SIFA_INLINE int64_t dense_pixel(const InterFrameAttention& call, int64_t frames, int64_t n, int64_t t,
                                int64_t y, int64_t x) {
  return ((n * frames + t) * call.height + y) * call.width + x;
}

// Calls body(Lanes<number>) if `number` is in 1 to kMost.
template <int kMost, typename Body>
SIFA_INLINE bool with_constant(int64_t number, const Body& body) {
  if constexpr (kMost > 0) {
    if (number == kMost) {
      body(Lanes<kMost>{});
      return true;
    }
    return with_constant<kMost - 1>(number, body);
  }
  return false;
}

// The frame of the memory that the index-th frame of all attends to; null if there is none.
template <typename T>
SIFA_INLINE const T* memory_of(const InterFrameAttention& call, int64_t index) {
  if (index >= call.batch * call.frames) return nullptr;
  const int64_t m = neighbour_frame(call, index % call.frames);
  return m < 0 ? nullptr : pixel<T>(call.memory, call.memory_strides, index / call.frames, m, 0, 0);
}

// Fetches `count` adjacent values ahead of their use: the first 1024 bytes, or with a kLocality of 2 all of
// them into the second-level cache. An invalid address is ignored.
template <int kLocality = 3, typename T>
SIFA_INLINE void fetch(const T* values, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T)), kMost = 16 * kLine;
  if (kLocality == 3 && count > kMost) count = kMost;
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(values + i, 0, kLocality);
}

// Where a tile lies: its first pixel, and how many of its rows and columns are inside the frame.
struct Tile {
  int64_t n, t, y, x;
  int64_t rows, columns;

  SIFA_INLINE Tile(const InterFrameAttention& call, int64_t index) {
    const int64_t across = (call.width + kTileSize - 1) / kTileSize, frame = index / tiles_per_frame(call);
    n = frame / call.frames;
    t = frame % call.frames;
    y = index % tiles_per_frame(call) / across * kTileSize;
    x = index % across * kTileSize;
    rows = call.height - y < kTileSize ? call.height - y : kTileSize;
    columns = call.width - x < kTileSize ? call.width - x : kTileSize;
  }

  // The row, or column, of the frame at one of the tile: what lies outside the frame is not used, and the
  // nearest one inside takes its place.
  SIFA_INLINE int64_t row_inside(int64_t row) const { return y + (row < rows ? row : rows - 1); }
  SIFA_INLINE int64_t column_inside(int64_t column) const {
    return x + (column < columns ? column : columns - 1);
  }

  // Fetches the channels at at(y, x) for the pixel that for_pixels comes to next, or one nearby: a tile's
  // rows are too short for the processor to foresee more than the rest of a pixel. At 128 channels a quarter
  // to a third of the backward's time; at 256 the second 512 bytes up to as much again.
  template <typename At>
  SIFA_INLINE void fetch_next(const InterFrameAttention& call, int64_t row, int64_t column,
                              const At& at) const {
    if (++column == x + columns) {
      column = x;
      if (row + 1 < call.height) ++row;
    }
    fetch(at(row, column), call.channels);
  }

  // Fetches into the second-level cache the pixel of the memory that the tiles below a pixel read first: from
  // farther away, or from the next frame, it came too late. At 128 channels a sixth to a quarter of the
  // forward's time, and a fifteenth of that of both.
  template <typename T>
  SIFA_INLINE void fetch_below(const InterFrameAttention& call, const T* memory, const T* next_memory,
                               int64_t row, int64_t column) const {
    row += kTileSize + call.dilation * (call.kernel_size / 2) + 1;
    if (row >= call.height) {
      memory = next_memory;
      row -= call.height;
    }
    if (memory == nullptr || row >= call.height) return;
    fetch<2>(memory + row * call.memory_strides.row + column * call.memory_strides.column, call.channels);
  }

  // Calls body(y, x, lane) for the pixels inside the frame.
  template <typename Body>
  SIFA_INLINE void for_pixels(const Body& body) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        body(y + row, x + column, static_cast<int>(row * kTileSize + column));
      }
    }
  }
};

// Taps of a pixel, in ascending order.
struct TapList {
  const int* taps;
  int count;
};

// The taps of a tile: a pixel in each lane, so that they are located together.
template <typename T, typename Real = Accumulator<T>>
class Taps {
 public:
  // Of the low corner of each tap along y and x. Outside the frame it is -1.
  int32_t top[kMaxTaps][kTilePixels], left[kMaxTaps][kTilePixels];
  // Whether the tap contributes, and which of its rows and columns lie in the frame: kTop to kRight.
  int32_t flags[kMaxTaps][kTilePixels];
  static constexpr int32_t kContributes = 1, kTop = 2, kBottom = 4, kLeft = 8, kRight = 16;
  // Weights of the low and the high row and column, 0 outside the frame: see AxisSample.
  Real y_weight[kMaxTaps][2][kTilePixels], x_weight[kMaxTaps][2][kTilePixels];

  explicit Taps(const InterFrameAttention& call)
      : call_(call), number_(static_cast<int>(call.kernel_size * call.kernel_size)) {
    for (int p = 0; p < kMaxTaps; ++p) all_[p] = p;
  }

  SIFA_INLINE int number() const { return number_; }

  SIFA_INLINE void locate(const Tile& tile) {
    if (call_.offsets == ScalarKind::kFloat32) {
      locate(tile, static_cast<const float*>(call_.offset));
    } else {
      locate(tile, static_cast<const T*>(call_.offset));
    }
  }

  // The taps of a pixel that contribute; good until they are asked for again. Mostly all do, and are not
  // listed one by one: 2 to 6 % of the forward's time.
  SIFA_INLINE TapList contributing(int lane) {
    if (complete_[lane] != 0) return {all_, number_};
    int count = 0;
    for (int p = 0; p < number_; ++p) {
      some_[count] = p;
      count += flags[p][lane] & kContributes;
    }
    return {some_, count};
  }

 private:
  template <typename Offset>
  SIFA_INLINE void locate(const Tile& tile, const Offset* offset) {
    load_offsets(tile, offset);
    int32_t rows[kTilePixels], columns[kTilePixels];
    for (int lane = 0; lane < kTilePixels; ++lane) {
      rows[lane] = static_cast<int32_t>(tile.row_inside(lane / kTileSize));
      columns[lane] = static_cast<int32_t>(tile.column_inside(lane % kTileSize));
    }
    const int32_t size = static_cast<int32_t>(call_.kernel_size);
    const int32_t dilation = static_cast<int32_t>(call_.dilation);
    for (int p = 0; p < number_; ++p) {
      const int32_t i = p / size, j = p % size;
      for (int lane = 0; lane < kTilePixels; ++lane) {
        AxisSample<Real> y, x;
        const bool inside =
            sifa::locate(tap_position(rows[lane], i, size, dilation, dy_[p][lane]), call_.height, y) &
            sifa::locate(tap_position(columns[lane], j, size, dilation, dx_[p][lane]), call_.width, x);
        const int32_t has_top = y.slope_low != 0, has_left = x.slope_low != 0;
        const int32_t has_bottom = y.slope_high != 0, has_right = x.slope_high != 0;
        top[p][lane] = y.low - 1 + has_top;
        left[p][lane] = x.low - 1 + has_left;
        flags[p][lane] = inside * kContributes + has_top * kTop + has_bottom * kBottom + has_left * kLeft +
                         has_right * kRight;
        y_weight[p][0][lane] = y.weight_low;
        y_weight[p][1][lane] = y.weight_high;
        x_weight[p][0][lane] = x.weight_low;
        x_weight[p][1][lane] = x.weight_high;
      }
    }
    for (int lane = 0; lane < kTilePixels; ++lane) complete_[lane] = kContributes;
    for (int p = 0; p < number_; ++p) {
      for (int lane = 0; lane < kTilePixels; ++lane) complete_[lane] &= flags[p][lane];
    }
  }

  // By vectors if it can be. Then those of the tile below, or of one at the top of the next frame, are
  // fetched ahead: a tile's rows are too short for the processor to foresee them. Up to a tenth of the time,
  // forward and backward, at 64 and 128 channels.
  template <typename Offset>
  SIFA_INLINE void load_offsets(const Tile& tile, const Offset* offset) {
    static_assert(kTileSize == 4, "a row of the tile fills a vector of four");
    const OffsetStrides& strides = call_.offset_strides;
    int64_t below = kTileSize * strides.row;
    if (tile.y + kTileSize >= call_.height) {
      const bool last = tile.t + 1 == call_.frames;
      below = (last ? strides.batch - tile.t * strides.frame : strides.frame) - tile.y * strides.row;
    }
    offset += tile.n * strides.batch + tile.t * strides.frame;
    if (strides.channel == 1) {
      for (int row = 0; row < kTileSize; ++row) load_pixels(tile, offset, below, row);
    } else if (strides.column == 1 && tile.columns == kTileSize) {
      for (int row = 0; row < kTileSize; ++row) load_planes(tile, offset, below, row);
    } else {
      for (int row = 0; row < kTileSize; ++row) load_one_by_one(tile, offset, row);
    }
  }

  // The offsets of float64 may be float32.
  template <typename Offset>
  SIFA_INLINE static Vector<Real, 4> load_four(const Offset* offset) {
    return __builtin_convertvector(load<4>(offset), Vector<Real, 4>);
  }

  // A row of the tile in planes of channels, where its offsets along an axis are adjacent.
  template <typename Offset>
  SIFA_INLINE void load_planes(const Tile& tile, const Offset* offset, int64_t below, int row) {
    offset += tile.row_inside(row) * call_.offset_strides.row + tile.x;
    const int64_t channel = call_.offset_strides.channel;
    for (int p = 0; p < number_; ++p, offset += 2 * channel) {
      store<4>(dy_[p] + row * 4, load_four(offset));
      store<4>(dx_[p] + row * 4, load_four(offset + channel));
      fetch(offset + below, 1);
      fetch(offset + below + channel, 1);
    }
  }

  // A row of the tile in channels-last memory, where a pixel's offsets are adjacent: those of two taps are
  // transposed at a time. A fifteenth of the time, forward and backward, at 64 and 128 channels.
  template <typename Offset>
  SIFA_INLINE void load_pixels(const Tile& tile, const Offset* offset, int64_t below, int row) {
    using Four = Vector<Real, 4>;
    using From = Vector<Integer<Real>, 4>;
    offset += tile.row_inside(row) * call_.offset_strides.row;
    const Offset* pixels[4];
    for (int column = 0; column < 4; ++column) {
      pixels[column] = offset + tile.column_inside(column) * call_.offset_strides.column;
      fetch(pixels[column] + below, 2 * number_);
    }
    int p = 0;
    for (; p + 1 < number_; p += 2) {
      const Four a = load_four(pixels[0] + 2 * p), b = load_four(pixels[1] + 2 * p);
      const Four c = load_four(pixels[2] + 2 * p), d = load_four(pixels[3] + 2 * p);
      constexpr From kFirst = {0, 4, 1, 5}, kSecond = {2, 6, 3, 7};
      const Four ac = shuffle<4, Real>(a, c, kFirst), bd = shuffle<4, Real>(b, d, kFirst);
      store<4>(dy_[p] + row * 4, shuffle<4, Real>(ac, bd, kFirst));
      store<4>(dx_[p] + row * 4, shuffle<4, Real>(ac, bd, kSecond));
      const Four next_ac = shuffle<4, Real>(a, c, kSecond), next_bd = shuffle<4, Real>(b, d, kSecond);
      store<4>(dy_[p + 1] + row * 4, shuffle<4, Real>(next_ac, next_bd, kFirst));
      store<4>(dx_[p + 1] + row * 4, shuffle<4, Real>(next_ac, next_bd, kSecond));
    }
    for (int column = 0; column < 4 && p < number_; ++column) {  // the last tap: they are odd in number
      dy_[p][row * 4 + column] = load_one(pixels[column] + 2 * p);
      dx_[p][row * 4 + column] = load_one(pixels[column] + 2 * p + 1);
    }
  }

  template <typename Offset>
  SIFA_INLINE void load_one_by_one(const Tile& tile, const Offset* offset, int row) {
    const OffsetStrides& strides = call_.offset_strides;
    offset += tile.row_inside(row) * strides.row;
    for (int p = 0; p < number_; ++p, offset += 2 * strides.channel) {
      for (int column = 0; column < 4; ++column) {
        const Offset* at = offset + tile.column_inside(column) * strides.column;
        dy_[p][row * 4 + column] = load_one(at);
        dx_[p][row * 4 + column] = load_one(at + strides.channel);
      }
    }
  }

  const InterFrameAttention& call_;
  const int number_;
  Real dy_[kMaxTaps][kTilePixels], dx_[kMaxTaps][kTilePixels];
  int32_t complete_[kTilePixels];       // not 0 if all taps contribute
  int all_[kMaxTaps], some_[kMaxTaps];  // 0, 1, 2, …; those listed last
};

// The four pixels of each sample of a tile, in the order (low, low), (low, high), (high, low), (high, high)
// of (y, x), and their bilinear weights. A corner outside the frame is `zeros`, as many as there are
// channels: not another pixel with weight 0, because 0 times infinity is not 0.
template <typename T, typename Real = Accumulator<T>>
class Corners {
 public:
  SIFA_INLINE void find(const Taps<T>& taps, const T* frame, const PixelStrides& strides, const T* zeros) {
    // Addresses as integers, which are computed for several pixels at once.
    const int64_t row = strides.row * static_cast<int64_t>(sizeof(T));
    const int64_t column = strides.column * static_cast<int64_t>(sizeof(T));
    const int64_t base = reinterpret_cast<int64_t>(frame), none = reinterpret_cast<int64_t>(zeros);
    for (int p = 0; p < taps.number(); ++p) {
      for (int lane = 0; lane < kTilePixels; ++lane) {
        const int64_t first = base + taps.top[p][lane] * row + taps.left[p][lane] * column;
        const int32_t flags = taps.flags[p][lane];
        const bool top = flags & Taps<T>::kTop, bottom = flags & Taps<T>::kBottom;
        const bool left = flags & Taps<T>::kLeft, right = flags & Taps<T>::kRight;
        at_[p][0][lane] = top & left ? first : none;
        at_[p][1][lane] = top & right ? first + column : none;
        at_[p][2][lane] = bottom & left ? first + row : none;
        at_[p][3][lane] = bottom & right ? first + row + column : none;
      }
      for (int lane = 0; lane < kTilePixels; ++lane) {
        const Real top = taps.y_weight[p][0][lane], bottom = taps.y_weight[p][1][lane];
        const Real left = taps.x_weight[p][0][lane], right = taps.x_weight[p][1][lane];
        weight_[p][0][lane] = top * left;
        weight_[p][1][lane] = top * right;
        weight_[p][2][lane] = bottom * left;
        weight_[p][3][lane] = bottom * right;
      }
    }
  }

  SIFA_INLINE const T* at(int p, int corner, int lane) const {
    return reinterpret_cast<const T*>(at_[p][corner][lane]);
  }
  SIFA_INLINE Real weight(int p, int corner, int lane) const { return weight_[p][corner][lane]; }

 private:
  int64_t at_[kMaxTaps][4][kTilePixels];
  Real weight_[kMaxTaps][4][kTilePixels];
};

// The scratch of a pixel: a row of zeros to read in place of corners outside the frame, then the samples of
// one group.
template <typename T>
SIFA_INLINE const T* clear_zeros(const InterFrameAttention& call, void* scratch) {
  std::memset(scratch, 0, static_cast<size_t>(call.channels) * sizeof(T));
  return static_cast<const T*>(scratch);
}

template <typename T>
SIFA_INLINE Accumulator<T>* samples_of(const InterFrameAttention& call, void* scratch) {
  return reinterpret_cast<Accumulator<T>*>(static_cast<char*>(scratch) + zeros_bytes(call));
}

// The pixels of the memory that the taps of a pixel read, for what is needed once per pixel and not once per
// tap: taps have corners in common, and of the 36 of 3x3 taps with offsets of about a pixel 22 are different.
//
// Each is listed once where all lie in a window of kWindow x kWindow pixels, as they mostly do; else tap by
// tap. Values of pixels are kept in arrays by *position*: in the window, or 4 per tap. Corners outside the
// frame are not listed, but have a position, too.
template <typename T, typename Real = Accumulator<T>>
class Footprint {
 public:
  static constexpr int kPositions = 4 * kMaxTaps;

  // What is listed: how far a pixel is from the first one of the frame, and its position.
  int count;
  int64_t distance[kPositions];
  int32_t position[kPositions];

  // `row` and `column`: the distances between neighbours.
  Footprint(int64_t row, int64_t column) : row_(row), column_(column) {
    for (int at = 0; at < kWindow * kWindow; ++at)
      in_window_[at] = at / kWindow * row + at % kWindow * column;
  }

  // For the pixels of a tile, in their lanes, and the rows that any of them reads.
  SIFA_INLINE void find_windows(const Taps<T>& taps) {
    int32_t bottom[kTilePixels], right[kTilePixels];
    for (int lane = 0; lane < kTilePixels; ++lane) {
      top_[lane] = left_[lane] = kFar;
      bottom[lane] = right[lane] = -kFar;
      present_[lane] = 0;
    }
    for (int p = 0; p < taps.number(); ++p) {
      for (int lane = 0; lane < kTilePixels; ++lane) {
        const bool counts = taps.flags[p][lane] & Taps<T>::kContributes;
        const int32_t top = taps.top[p][lane], left = taps.left[p][lane];
        top_[lane] = counts && top < top_[lane] ? top : top_[lane];
        left_[lane] = counts && left < left_[lane] ? left : left_[lane];
        bottom[lane] = counts && top > bottom[lane] ? top : bottom[lane];
        right[lane] = counts && left > right[lane] ? left : right[lane];
      }
    }
    first_row_ = kFar;
    last_row_ = -kFar;
    for (int lane = 0; lane < kTilePixels; ++lane) {
      first_row_ = top_[lane] < first_row_ ? top_[lane] : first_row_;
      last_row_ = bottom[lane] + 1 > last_row_ ? bottom[lane] + 1 : last_row_;
    }
    for (int lane = 0; lane < kTilePixels; ++lane) {
      has_window_[lane] =
          (bottom[lane] - top_[lane] < kWindow - 1) & (right[lane] - left_[lane] < kWindow - 1);
      if (top_[lane] == kFar) top_[lane] = left_[lane] = 0;  // no tap contributes
    }
    for (int p = 0; p < taps.number(); ++p) {
      for (int lane = 0; lane < kTilePixels; ++lane) {
        const int32_t flags = taps.flags[p][lane];
        const int32_t first = (taps.top[p][lane] - top_[lane]) * kWindow + taps.left[p][lane] - left_[lane];
        // By arithmetic and a shift of one width: with branches it is not vectorised, and costs a twentieth
        // to a sixth of the backward's time.
        const int32_t contributes = (flags & Taps<T>::kContributes) != 0;
        const int32_t has_top = (flags & Taps<T>::kTop) != 0, has_left = (flags & Taps<T>::kLeft) != 0;
        const int32_t has_bottom = (flags & Taps<T>::kBottom) != 0,
                      has_right = (flags & Taps<T>::kRight) != 0;
        const int32_t corners = contributes * (has_top | has_bottom << kWindow) * (has_left | has_right << 1);
        present_[lane] |= static_cast<uint64_t>(corners) << static_cast<uint64_t>(first & 63);
        first_[p][lane] = first;
      }
    }
  }

  // Whether a pixel of the tile may read of the rows [begin, end).
  SIFA_INLINE bool reaches(int64_t begin, int64_t end) const {
    return first_row_ < end && last_row_ >= begin;
  }

  // Lists what a pixel's `num_taps` taps read of the rows [begin, end).
  SIFA_INLINE void list(const Taps<T>& taps, int lane, const int* contributing, int num_taps, int64_t begin,
                        int64_t end) {
    lane_ = lane;
    windowed_ = num_taps > 0 && has_window_[lane];
    count = num_groups_ = 0;
    if (windowed_) {
      const int64_t first = begin - top_[lane], last = end - top_[lane];  // rows of the window
      uint64_t left = first < kWindow && last > 0 ? present_[lane] : 0;
      if (first > 0) left &= ~uint64_t(0) << (first & 7) * kWindow;
      if (last < kWindow) left &= ~(~uint64_t(0) << (last & 7) * kWindow);
      const int64_t origin = top_[lane] * row_ + left_[lane] * column_;
      for (; left != 0; left &= left - 1) {
        const int at = __builtin_ctzll(left);
        position[count] = at;
        distance[count++] = origin + in_window_[at];
      }
      return;
    }
    for (int i = 0; i < num_taps; ++i) {
      const int p = contributing[i], before = count;
      const int32_t flags = taps.flags[p][lane];
      for (int corner = 0; corner < 4; ++corner) {
        const int32_t y = taps.top[p][lane] + corner / 2, x = taps.left[p][lane] + corner % 2;
        position[count] = 4 * i + corner;
        distance[count] = y * row_ + x * column_;
        count += (flags & (corner / 2 ? Taps<T>::kBottom : Taps<T>::kTop)) != 0 &&
                 (flags & (corner % 2 ? Taps<T>::kRight : Taps<T>::kLeft)) != 0 && y >= begin && y < end;
      }
      group_[num_groups_] = count - before;
      num_groups_ += count > before;
    }
  }

  // Calls body(first, Lanes<number>) for groups of 1 to 4 listed pixels that are all different.
  template <typename Body>
  SIFA_INLINE void for_groups(const Body& body) const {
    for (int n = 0, k = 0; n < count; ++k) {
      const int number = !windowed_ ? group_[k] : count - n < 4 ? count - n : 4;
      with_constant<4>(number, [&](auto constant) __attribute__((always_inline)) { body(n, constant); });
      n += number;
    }
  }

  // Sets an array by position to zero.
  template <typename Value>
  SIFA_INLINE void clear(Value* values, int num_taps) const {
    const int64_t number = windowed_ ? kWindow * kWindow : 4 * num_taps;
    std::memset(values, 0, static_cast<size_t>(number) * sizeof(Value));
  }

  // What of a tap's sample is, and its derivatives along y and x, from that of the pixels: numbers, or
  // several side by side.
  template <typename Value>
  struct Sampled {
    Value value, dy, dx;
  };
  template <typename Value>
  SIFA_INLINE Sampled<Value> sample(const Taps<T>& taps, int p, int i, const Value* values) const {
    int at[4];
    corners_of(p, i, at);
    const Value corner[4] = {values[at[0]], values[at[1]], values[at[2]], values[at[3]]};
    const Real top = taps.y_weight[p][0][lane_], bottom = taps.y_weight[p][1][lane_];
    const Real left = taps.x_weight[p][0][lane_], right = taps.x_weight[p][1][lane_];
    return {(corner[0] * left + corner[1] * right) * top + (corner[2] * left + corner[3] * right) * bottom,
            (corner[2] - corner[0]) * left + (corner[3] - corner[1]) * right,
            (corner[1] - corner[0]) * top + (corner[3] - corner[2]) * bottom};
  }

  // Adds `value` to the corners of a tap, times their bilinear weights.
  template <typename Value>
  SIFA_INLINE void spread(const Taps<T>& taps, int p, int i, Value value, Value* values) const {
    int at[4];
    corners_of(p, i, at);
    const Value top = taps.y_weight[p][0][lane_] * value, bottom = taps.y_weight[p][1][lane_] * value;
    const Real left = taps.x_weight[p][0][lane_], right = taps.x_weight[p][1][lane_];
    values[at[0]] += top * left;
    values[at[1]] += top * right;
    values[at[2]] += bottom * left;
    values[at[3]] += bottom * right;
  }

 private:
  // Where the four corners of tap p, the i-th that contributes, are in arrays by position.
  SIFA_INLINE void corners_of(int p, int i, int* positions) const {
    const int first = windowed_ ? first_[p][lane_] : 4 * i;
    const int row = windowed_ ? kWindow : 2;
    positions[0] = first;
    positions[1] = first + 1;
    positions[2] = first + row;
    positions[3] = first + row + 1;
  }

  static constexpr int kWindow = 8;         // 64 pixels: a bit each
  static constexpr int32_t kFar = 1 << 29;  // beyond any pixel

  const int64_t row_, column_;
  int64_t in_window_[kWindow * kWindow];  // the distances from its first pixel
  int32_t top_[kTilePixels], left_[kTilePixels], has_window_[kTilePixels];
  int32_t first_row_, last_row_;          // that corners of the tile's taps are in
  int32_t first_[kMaxTaps][kTilePixels];  // the position of a tap's (low, low) corner
  uint64_t present_[kTilePixels];         // which positions are read
  // Of the pixel whose taps are listed.
  int lane_, num_groups_;
  bool windowed_;
  int32_t group_[kMaxTaps];  // the groups' sizes, without a window
};

// The products of a vector with the listed pixels, by position, or of several, side by side. `zeros` stand in
// for a last few pixels.
template <int kVectors, typename Value, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void multiply(const T* const (&vectors)[kVectors], const T* frame, const T* zeros,
                          const Footprint<T>& footprint, int64_t channels, Value* products) {
  static_assert(sizeof(Value) == kVectors * sizeof(Real), "a product with each vector");
  constexpr int kPixels = 8 / kVectors;  // at a time: as many sums as registers hold beside what is loaded
  for (int n = 0; n < footprint.count; n += kPixels) {
    const T* at[kPixels];
    for (int j = 0; j < kPixels; ++j) {
      at[j] = n + j < footprint.count ? frame + footprint.distance[n + j] : zeros;
    }
    ChannelSum<T> sums[kPixels * kVectors];
    for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      constexpr int kLanes = decltype(lanes)::value;
      Block<Real, kLanes> vector[kVectors];
      for (int v = 0; v < kVectors; ++v) vector[v] = load<kLanes>(vectors[v] + c);
      for (int j = 0; j < kPixels; ++j) {
        auto pixel = load<kLanes>(at[j] + c);
        keep(pixel);
        for (int v = 0; v < kVectors; ++v) sums[j * kVectors + v].template add<kLanes>(vector[v] * pixel);
      }
    });
    Real totals[kPixels * kVectors];
    total<kPixels * kVectors>(sums, totals);
    for (int j = 0; j < kPixels && n + j < footprint.count; ++j) {
      std::memcpy(products + footprint.position[n + j], totals + j * kVectors, sizeof(Value));
    }
  }
}

// target = (residual +) the sum of the listed pixels times their shares, over the channels of a group.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void sum_pixels(const T* residual, const T* frame, const Footprint<T>& footprint,
                            const Real* shares, int64_t channels, T* target) {
  for_channel_blocks<T>(channels, [&](auto lanes, auto block, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value, kBlock = decltype(block)::value;
    Block<Real, kLanes> sums[kBlock] = {};
    if (residual != nullptr) {
      for (int b = 0; b < kBlock; ++b) sums[b] = load<kLanes>(residual + c + b * kLanes);
    }
    for (int n = 0; n < footprint.count; ++n) {
      const T* pixel = frame + footprint.distance[n] + c;
      const Real share = shares[footprint.position[n]];
      for (int b = 0; b < kBlock; ++b) sums[b] += load<kLanes>(pixel + b * kLanes) * share;
    }
    for (int b = 0; b < kBlock; ++b) store<kLanes>(target + c + b * kLanes, sums[b]);
  });
}

// Turns the logits of the contributing taps into weights: softmax over all k^2 taps, of which the dropped
// ones keep logit 0. Without softmax the weights are the logits.
template <typename Real>
SIFA_INLINE void normalise(const InterFrameAttention& call, int count, Real* weights) {
  if (!call.softmax) return;
  const int64_t dropped = call.kernel_size * call.kernel_size - count;
  Real largest = dropped > 0 || count == 0 ? Real(0) : weights[0];
  for (int i = 0; i < count; ++i) largest = weights[i] > largest ? weights[i] : largest;
  // Without dropped taps the largest may be so negative that exp(-largest) overflows.
  Real total = dropped > 0 ? static_cast<Real>(dropped) * exponential(-largest) : Real(0);
  for (int i = 0; i < count; ++i) {
    weights[i] = exponential(weights[i] - largest);
    total += weights[i];
  }
  for (int i = 0; i < count; ++i) weights[i] /= total;
}

// Samples kTaps taps of one group: writes each sample, and its product with the query.
template <int kTaps, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void sample_taps(const T* query, const Corners<T>& corners, const int* taps, int lane,
                             int64_t channel, int64_t channels, Real* samples, int64_t stride,
                             ChannelSum<T>* products) {
  // Copies of our own: the compiler cannot know that the samples are not written over them.
  const T* at[kTaps][4];
  Real weight[kTaps][4];
  for (int i = 0; i < kTaps; ++i) {
    for (int j = 0; j < 4; ++j) {
      at[i][j] = corners.at(taps[i], j, lane) + channel;
      weight[i][j] = corners.weight(taps[i], j, lane);
    }
  }
  ChannelSum<T> sums[kTaps];
  for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto q = load<kLanes>(query + c);
    for (int i = 0; i < kTaps; ++i) {
      auto value = load<kLanes>(at[i][0] + c) * weight[i][0];
      for (int j = 1; j < 4; ++j) value += load<kLanes>(at[i][j] + c) * weight[i][j];
      store<kLanes>(samples + i * stride + c, value);
      sums[i].template add<kLanes>(value * q);
    }
  });
  for (int i = 0; i < kTaps; ++i) products[i] = sums[i];
}

// target = (residual +) sum_i weights[i] * samples[i], over the channels of a group.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void weighted_sum(const T* residual, const Real* samples, int64_t stride, const Real* weights,
                              int count, int64_t channels, T* target) {
  for_channel_blocks<T>(channels, [&](auto lanes, auto block, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value, kBlock = decltype(block)::value;
    Block<Real, kLanes> sums[kBlock] = {};
    if (residual != nullptr) {
      for (int b = 0; b < kBlock; ++b) sums[b] = load<kLanes>(residual + c + b * kLanes);
    }
    for (int i = 0; i < count; ++i) {
      for (int b = 0; b < kBlock; ++b)
        sums[b] += load<kLanes>(samples + i * stride + c + b * kLanes) * weights[i];
    }
    for (int b = 0; b < kBlock; ++b) store<kLanes>(target + c + b * kLanes, sums[b]);
  });
}

// The output of one pixel and group of kBlocks whole blocks of channels, without softmax: a tap's sample
// stays in registers between its weight and its part in the sum, and so does the sum. With kAll the taps are
// 0, 1, 2, … and their list is not read: up to 4 % of the forward's time.
template <int kBlocks, bool kAll, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void attend_in_registers(const T* query, bool residual, const Corners<T>& corners,
                                     const int* taps, int count, int lane, int64_t channel, Real scale,
                                     T* output) {
  constexpr int kLanes = kWidest<T>, kChains = kBlocks < 2 ? 1 : kBlocks < 4 ? 2 : 4;
  Block<Real, kLanes> q[kBlocks], sums[kBlocks] = {};
  for (int b = 0; b < kBlocks; ++b) q[b] = load<kLanes>(query + b * kLanes);
  if (residual) {
    for (int b = 0; b < kBlocks; ++b) sums[b] = q[b];
  }
  for (int b = 0; b < kBlocks; ++b) q[b] = q[b] * scale;
  for (int i = 0; i < count; ++i) {
    int p = kAll ? i : taps[i];
    // Opaque: of a p that it can follow GCC makes eight counters, the addresses of four corners and of four
    // weights, for which there are no registers left (7 % of bfloat16's time).
    asm("" : "+r"(p));
    Block<Real, kLanes> sample[kBlocks];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const T* at = corners.at(p, j, lane) + channel;
      const Real weight = corners.weight(p, j, lane);
      for (int b = 0; b < kBlocks; ++b) {
        const auto part = load<kLanes>(at + b * kLanes) * weight;
        sample[b] = j == 0 ? part : sample[b] + part;
      }
    }
    // What comes next waits for this sum: chains of additions side by side, and q is scaled before them.
    ChannelSum<T> products[kChains];
    for (int b = 0; b < kBlocks; ++b) products[b % kChains].template add<kLanes>(sample[b] * q[b]);
    for (int n = kChains / 2; n > 0; n /= 2) {
      for (int k = 0; k < n; ++k) products[k] = products[k] + products[k + n];
    }
    const Real weight = products[0].total();
    for (int b = 0; b < kBlocks; ++b) sums[b] += sample[b] * weight;
  }
  for (int b = 0; b < kBlocks; ++b) store<kLanes>(output + b * kLanes, sums[b]);
}

// The output of one pixel and group of any number of channels: all samples first, then their sum.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void attend_in_scratch(const InterFrameAttention& call, const T* query, const Corners<T>& corners,
                                   const int* taps, int count, int lane, int64_t channel, Real* samples,
                                   T* output) {
  const int64_t channels = call.channels / call.groups, stride = sample_stride(call);
  ChannelSum<T> products[kTapRoom];
  Real weights[kTapRoom];
  int i = 0;
  for (; i + 2 <= count; i += 2) {
    sample_taps<2>(query, corners, taps + i, lane, channel, channels, samples + i * stride, stride,
                   products + i);
  }
  if (i < count) {
    sample_taps<1>(query, corners, taps + i, lane, channel, channels, samples + i * stride, stride,
                   products + i);
  }
  for (i = 0; i < count; i += 4) total<4>(products + i, weights + i);
  for (i = 0; i < count; ++i) weights[i] *= static_cast<Real>(call.scale);
  normalise(call, count, weights);
  weighted_sum(call.residual ? query : nullptr, samples, stride, weights, count, channels, output);
}

// Whether the output is computed from the pixels of the footprint instead, which are read twice, and of which
// there are fewer than corners of taps. By vectors of 64 bytes 11, 23 and 40 % faster at 256, 512 and 1024
// channels; by those of 32 bytes 24 % slower, where reading again from the second-level cache costs more than
// is saved.
constexpr bool kByPixels = kVectorBytes == 64;

// That, for any number of channels.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void attend_to_pixels(const InterFrameAttention& call, const T* query, const T* frame,
                                  const T* zeros, const Taps<T>& located, const Footprint<T>& footprint,
                                  const int* taps, int count, T* output) {
  const int64_t channels = call.channels / call.groups;
  Real products[Footprint<T>::kPositions], shares[Footprint<T>::kPositions];
  Real weights[kMaxTaps];
  const T* const vectors[1] = {query};
  footprint.clear(products, count);
  multiply(vectors, frame, zeros, footprint, channels, products);
  for (int i = 0; i < count; ++i) {
    weights[i] = static_cast<Real>(call.scale) * footprint.sample(located, taps[i], i, products).value;
  }
  normalise(call, count, weights);
  footprint.clear(shares, count);
  for (int i = 0; i < count; ++i) footprint.spread(located, taps[i], i, weights[i], shares);
  sum_pixels(call.residual ? query : nullptr, frame, footprint, shares, channels, output);
}

// With kBlocks > 0 groups have as many whole blocks of channels, and there is no softmax.
template <int kBlocks, typename T, typename Real = Accumulator<T>>
void forward_tiles(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  constexpr bool kFootprint = kBlocks == 0 && kByPixels;
  const int64_t channels = kBlocks > 0 ? kBlocks * kWidest<T> : call.channels / call.groups;
  const Real scale = static_cast<Real>(call.scale);
  const T* zeros = clear_zeros<T>(call, scratch);
  Taps<T> located(call);
  Corners<T> corners;
  Footprint<T> footprint(call.memory_strides.row, call.memory_strides.column);

  for (int64_t index = begin; index < end; ++index) {
    const Tile tile(call, index);
    const int64_t m = neighbour_frame(call, tile.t);
    const T* frame = pixel<T>(call.memory, call.memory_strides, tile.n, m < 0 ? 0 : m, 0, 0);
    const T* next_frame = memory_of<T>(call, tile.n * call.frames + tile.t + 1);
    if (m >= 0) {
      located.locate(tile);
      if constexpr (kFootprint) {
        footprint.find_windows(located);
      } else {
        corners.find(located, frame, call.memory_strides, zeros);
      }
    }
    const auto query_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return pixel<T>(call.query, call.query_strides, tile.n, tile.t, y, x);
    };
    const auto output_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return static_cast<T*>(call.output) +
             dense_pixel(call, call.frames, tile.n, tile.t, y, x) * call.channels;
    };
    tile.for_pixels([&](int64_t y, int64_t x, int lane) __attribute__((always_inline)) {
      const TapList list = m < 0 ? TapList{} : located.contributing(lane);
      const int* const taps = list.taps;  // not a binding, which a lambda of C++17 could not capture
      const int count = list.count;
      const T* query = query_at(y, x);
      T* output = output_at(y, x);
      tile.fetch_next(call, y, x, query_at);
      tile.fetch_below(call, frame, next_frame, y, x);
      if constexpr (kFootprint) footprint.list(located, lane, taps, count, 0, call.height);
      for (int64_t channel = 0; channel < call.channels; channel += channels) {
        if constexpr (kBlocks > 0) {
          const auto attend = [&](auto all) __attribute__((always_inline)) {
            attend_in_registers<kBlocks, decltype(all)::value>(query + channel, call.residual, corners, taps,
                                                               count, lane, channel, scale, output + channel);
          };
          if (count == located.number()) {
            attend(std::true_type{});
          } else {
            attend(std::false_type{});
          }
        } else if constexpr (kFootprint) {
          attend_to_pixels(call, query + channel, frame + channel, zeros, located, footprint, taps, count,
                           output + channel);
        } else {
          attend_in_scratch(call, query + channel, corners, taps, count, lane, channel,
                            samples_of<T>(call, scratch), output + channel);
        }
      }
    });
  }
}

template <typename T, typename Real = Accumulator<T>>
void forward_of_type(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  // A block is held three times, in the query, a sample and the sum; the rest is for what is being added.
  constexpr int kMost = kRegisters / 4 * kWide<Real> / kWidest<T>;
  const int64_t channels = call.channels / call.groups;
  const bool done = !call.softmax && channels % kWidest<T> == 0 &&
                    with_constant<kMost>(channels / kWidest<T>, [&](auto blocks) {
                      forward_tiles<decltype(blocks)::value, T>(call, begin, end, scratch);
                    });
  if (!done) forward_tiles<0, T>(call, begin, end, scratch);
}

// Writes the offset gradients of one pixel, in the type of the offsets.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE void store_grad_offset(const InterFrameAttentionBackward& call, int64_t index, int64_t count,
                                   const Real* gradients) {
  if (call.offsets == ScalarKind::kFloat32) {
    float* target = static_cast<float*>(call.grad_offset) + index;
    for (int64_t i = 0; i < count; ++i) target[i] = static_cast<float>(gradients[i]);
  } else {
    T* target = static_cast<T*>(call.grad_offset) + index;
    for (int64_t i = 0; i < count; ++i) store_one(target + i, gradients[i]);
  }
}

// With G the gradient of the output, per group: the gradient of w_p is <G, s_p>; that of the product
// <q, s_p>, called the logit gradient, is scale times it, or, under softmax,
//   logit_p = scale * w_p (<G, s_p> - sum_j w_j <G, s_j>).
// Then
//   grad_query = (G +) sum_p logit_p s_p
//   grad s_p = w_p G + logit_p q
//   grad offset_p = <grad s_p, d s_p>
template <typename T, typename Real = Accumulator<T>>
void backward_query_tiles(const InterFrameAttentionBackward& call, int64_t begin, int64_t end,
                          void* tap_gradients, void* scratch) {
  const int64_t channels = call.channels / call.groups;
  const int64_t tap_count = call.kernel_size * call.kernel_size;
  const Real scale = static_cast<Real>(call.scale);
  const int64_t kept_size = tap_gradients_per_pixel(call);
  const auto kept_of = [&](int64_t position) __attribute__((always_inline)) {
    return static_cast<Real*>(tap_gradients) + position * kept_size;
  };
  const int64_t grad_offset_bytes =
      2 * tap_count * static_cast<int64_t>(call.offsets == ScalarKind::kFloat32 ? sizeof(float) : sizeof(T));
  const T* zeros = clear_zeros<T>(call, scratch);
  Taps<T> located(call);
  Footprint<T> footprint(call.memory_strides.row, call.memory_strides.column);
  // Products with pixels, and with samples and their derivatives: of G first, and beside it of the query. One
  // instruction for two saves 2 to 5 % of this, and as much or more of backward_memory_rows.
  using Two = Vector<Real, 2>;
  Two products[Footprint<T>::kPositions];
  typename Footprint<T>::template Sampled<Two> sampled[kMaxTaps];
  Real shares[Footprint<T>::kPositions];
  Real weights[kMaxTaps];
  Real offset_gradients[2 * kMaxTaps];

  for (int64_t index = begin; index < end; ++index) {
    const Tile tile(call, index);
    const int64_t m = neighbour_frame(call, tile.t);
    const T* frame = pixel<T>(call.memory, call.memory_strides, tile.n, m < 0 ? 0 : m, 0, 0);
    const T* next_frame = memory_of<T>(call, tile.n * call.frames + tile.t + 1);
    if (m >= 0) {
      located.locate(tile);
      footprint.find_windows(located);
    }
    const auto query_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return pixel<T>(call.query, call.query_strides, tile.n, tile.t, y, x);
    };
    const auto grad_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return pixel<T>(call.grad_output, call.grad_output_strides, tile.n, tile.t, y, x);
    };
    const auto position_of = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return dense_pixel(call, call.frames, tile.n, tile.t, y, x);
    };
    const auto target_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
      return static_cast<T*>(call.grad_query) + position_of(y, x) * call.channels;
    };
    tile.for_pixels([&](int64_t y, int64_t x, int lane) __attribute__((always_inline)) {
      tile.fetch_next(call, y, x, query_at);
      tile.fetch_next(call, y, x, grad_at);
      tile.fetch_next(call, y, x, target_at);
      tile.fetch_below(call, frame, next_frame, y, x);
      // What is written for the row below, in runs that are too short to be foreseen: a twentieth of the
      // time.
      const int64_t below = position_of(y + 1 < call.height ? y + 1 : y, x);
      fetch(kept_of(below), kept_size);
      fetch(static_cast<char*>(call.grad_offset) + below * grad_offset_bytes, grad_offset_bytes);
      const auto [taps, count] = m < 0 ? TapList{} : located.contributing(lane);
      const int64_t position = position_of(y, x);
      Real* kept = kept_of(position);
      for (int64_t i = 0; i < 2 * tap_count; ++i) offset_gradients[i] = 0;
      footprint.list(located, lane, taps, count, 0, call.height);

      for (int64_t group = 0; group < call.groups; ++group) {
        const int64_t channel = group * channels;
        const T *query = query_at(y, x) + channel, *grad = grad_at(y, x) + channel;
        footprint.clear(products, count);
        const T* const vectors[2] = {grad, query};
        multiply(vectors, frame + channel, zeros, footprint, channels, products);
        for (int i = 0; i < count; ++i) {
          sampled[i] = footprint.sample(located, taps[i], i, products);
          weights[i] = scale * sampled[i].value[1];
        }
        normalise(call, count, weights);

        Real mean = 0;
        for (int i = 0; i < count && call.softmax; ++i) mean += weights[i] * sampled[i].value[0];
        footprint.clear(shares, count);
        for (int i = 0; i < count; ++i) {
          const int64_t p = taps[i];
          const Real of_weight = sampled[i].value[0];
          const Real logit = call.softmax ? scale * weights[i] * (of_weight - mean) : scale * of_weight;
          footprint.spread(located, taps[i], i, logit, shares);
          const Two of_sample = {weights[i], logit};
          const Two dy = of_sample * sampled[i].dy, dx = of_sample * sampled[i].dx;
          offset_gradients[2 * p] += dy[0] + dy[1];
          offset_gradients[2 * p + 1] += dx[0] + dx[1];
          store<2>(kept + (p * call.groups + group) * 2, of_sample);
        }
        sum_pixels(call.residual ? grad : nullptr, frame + channel, footprint, shares, channels,
                   target_at(y, x) + channel);
      }
      store_grad_offset<T>(call, position * 2 * tap_count, 2 * tap_count, offset_gradients);
    });
  }
}

// Adds its parts of G, and of the query, to kPixels listed pixels, different ones, from the n-th on.
template <int kPixels, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void scatter(const T* grad, const T* query, const Vector<Real, 2>* shares,
                         const Footprint<T>& footprint, int n, int64_t channels, Real* frame) {
  Real* targets[kPixels];
  Real grad_shares[kPixels], query_shares[kPixels];
  for (int j = 0; j < kPixels; ++j) {
    targets[j] = frame + footprint.distance[n + j];
    grad_shares[j] = shares[footprint.position[n + j]][0];
    query_shares[j] = shares[footprint.position[n + j]][1];
  }
  for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto g = load<kLanes>(grad + c), q = load<kLanes>(query + c);
    for (int j = 0; j < kPixels; ++j) {
      store<kLanes>(targets[j] + c, load<kLanes>(targets[j] + c) + g * grad_shares[j] + q * query_shares[j]);
    }
  });
}

template <typename T, typename Real = Accumulator<T>>
void backward_memory_rows(const InterFrameAttentionBackward& call, int64_t n, int64_t m, int64_t begin,
                          int64_t end, const void* tap_gradients, void* scratch) {
  constexpr bool kInPlace = sizeof(T) == sizeof(Real);
  const int64_t channels = call.channels / call.groups;
  const int64_t row_size = call.width * call.channels;
  T* target = static_cast<T*>(call.grad_memory) +
              dense_pixel(call, call.memory_frames, n, m, begin, 0) * call.channels;
  Real* sums;
  if constexpr (kInPlace) {
    sums = target;
  } else {
    sums = static_cast<Real*>(scratch);
  }
  std::memset(sums, 0, static_cast<size_t>((end - begin) * row_size) * sizeof(Real));

  Taps<T> located(call);
  Footprint<T> footprint(row_size, call.channels);
  Vector<Real, 2> shares[Footprint<T>::kPositions];  // of G, and of the query
  for (int64_t t = 0; t < call.frames; ++t) {
    if (neighbour_frame(call, t) != m) continue;
    const int64_t first_tile = (n * call.frames + t) * tiles_per_frame(call);
    for (int64_t index = first_tile; index < first_tile + tiles_per_frame(call); ++index) {
      const Tile tile(call, index);
      located.locate(tile);
      footprint.find_windows(located);
      if (!footprint.reaches(begin, end)) continue;
      const auto query_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
        return pixel<T>(call.query, call.query_strides, n, t, y, x);
      };
      const auto grad_at = [&](int64_t y, int64_t x) __attribute__((always_inline)) {
        return pixel<T>(call.grad_output, call.grad_output_strides, n, t, y, x);
      };
      tile.for_pixels([&](int64_t y, int64_t x, int lane) __attribute__((always_inline)) {
        tile.fetch_next(call, y, x, query_at);
        tile.fetch_next(call, y, x, grad_at);
        const auto [taps, count] = located.contributing(lane);
        const int64_t position = dense_pixel(call, call.frames, n, t, y, x);
        const Real* kept = static_cast<const Real*>(tap_gradients) + position * tap_gradients_per_pixel(call);
        const T *query = query_at(y, x), *grad = grad_at(y, x);
        footprint.list(located, lane, taps, count, begin, end);
        if (footprint.count == 0) return;
        for (int64_t group = 0; group < call.groups; ++group) {
          footprint.clear(shares, count);
          for (int i = 0; i < count; ++i) {
            const auto of_sample = load<2>(kept + (taps[i] * call.groups + group) * 2);
            footprint.spread(located, taps[i], i, of_sample, shares);
          }
          Real* first = sums - begin * row_size + group * channels;
          footprint.for_groups([&](int n, auto number) __attribute__((always_inline)) {
            scatter<decltype(number)::value>(grad + group * channels, query + group * channels, shares,
                                             footprint, n, channels, first);
          });
        }
      });
    }
  }
  if constexpr (!kInPlace) {
    // Group by group, as they were summed: blocks of channels may be in another order than channels.
    const int64_t groups = (end - begin) * call.width * call.groups;
    for (int64_t group = 0; group < groups; ++group, sums += channels, target += channels) {
      for_channels<T>(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
        constexpr int kLanes = decltype(lanes)::value;
        store<kLanes>(target + c, load<kLanes>(sums + c));
      });
    }
  }
}

void forward(const InterFrameAttention& call, int64_t begin, int64_t end, void* scratch) {
  for_feature_type(call.features,
                   [&](auto type) { forward_of_type<decltype(type)>(call, begin, end, scratch); });
}

void backward_query(const InterFrameAttentionBackward& call, int64_t begin, int64_t end, void* tap_gradients,
                    void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    backward_query_tiles<decltype(type)>(call, begin, end, tap_gradients, scratch);
  });
}

void backward_memory(const InterFrameAttentionBackward& call, int64_t n, int64_t m, int64_t begin,
                     int64_t end, const void* tap_gradients, void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    backward_memory_rows<decltype(type)>(call, n, m, begin, end, tap_gradients, scratch);
  });
}

}  // namespace

#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _kernels)

extern const Kernels SIFA_TABLE;
const Kernels SIFA_TABLE = {SIFA_STRING(SIFA_CPU_CAPABILITY), forward, backward_query, backward_memory};

}  // namespace sifa::cpu
