// The CPU kernels of sifa::motion_offset's backward: neither the saliency nor its gradient is ever written to
// memory. Compiled once per instruction set, like inter_frame_attention_kernels.cpp; see there.
//
// Both gradients are convolutions of 3x3, too, and taken by Winograd's F(4x4, 3x3), of winograd.h:
//
//   of the saliency   A [sum_o (G g G') * (B d B')] A', d the 6x6 window of grad_output, g the weights with
//                     rows and columns in reverse
//   of the weights    G' [sum over tiles (A' y A) * (B d B')] G, the transpose of the forward: y is a tile of
//                     grad_output, d the 6x6 window of the saliency
//
// The sums are matrix products, in which a lane is a channel: `multiply`.
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "motion_kernels.h"
#include "motion_strips.h"
#include "table.h"
#include "vector.h"
#include "winograd.h"

namespace sifa::cpu {
namespace {

// The block of sums that the inner loop keeps in registers, of 32 or of 16.
constexpr int kRows = 6, kVectors = kRegisters / 8;
// Tiles whose gradients of the saliency are computed together: five blocks of kRows.
constexpr int64_t kTilesAtOnce = 30;
// Outputs whose products are one sum: shorter chains of additions err less. Of 98 outputs this leaves three
// fifths of the error, and takes no time.
constexpr int64_t kOutputsSummed = 18;
// Tiles of a group of strips whose products are added to the gradient of the weights as one sum.
constexpr int64_t kTilesSummed = 56;
// Parts of the gradient of the weights, of all chunks of channels together, beyond which it is not cut
// further: every part occupies a thread, and costs a transform and the memory of a gradient.
constexpr int64_t kParts = 16;

// The factors of a matrix product, sums[i][j] = sum over k of a[i][k] b[k][j], j the lanes of channels.
template <typename Real>
struct Factors {
  const Real* a;
  int64_t row_stride, stride;  // between elements of a: along i, along k
  const Real* b;
  int64_t pitch;  // between rows of b, and between rows of the sums
  int64_t count;  // of k
};

template <int kBlock, int kWidth, typename Real>
SIFA_INLINE void multiply_block(const Factors<Real>& f, bool add, int64_t row, int64_t vector, Real* sums) {
  constexpr int kLanes = kWide<Real>;
  using Lanes = Vector<Real, kLanes>;
  const Real* a = f.a + row * f.row_stride;
  const Real* b = f.b + vector * kLanes;
  Lanes block[kBlock][kWidth] = {};
  for (int64_t k = 0; k < f.count; ++k) {
    Lanes factors[kWidth];
    for (int v = 0; v < kWidth; ++v) factors[v] = load<kLanes>(b + k * f.pitch + v * kLanes);
    for (int i = 0; i < kBlock; ++i) {
      for (int v = 0; v < kWidth; ++v) block[i][v] += factors[v] * a[i * f.row_stride + k * f.stride];
    }
  }
  for (int i = 0; i < kBlock; ++i) {
    for (int v = 0; v < kWidth; ++v) {
      Real* target = sums + (row + i) * f.pitch + (vector + v) * kLanes;
      store<kLanes>(target, add ? load<kLanes>(target) + block[i][v] : block[i][v]);
    }
  }
}

template <int kWidth, typename Real>
SIFA_INLINE void multiply_column(const Factors<Real>& f, bool add, int64_t rows, int64_t vector, Real* sums) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) multiply_block<kRows, kWidth>(f, add, row, vector, sums);
  for (; row + 2 <= rows; row += 2) multiply_block<2, kWidth>(f, add, row, vector, sums);
  for (; row < rows; ++row) multiply_block<1, kWidth>(f, add, row, vector, sums);
}

// Writes, or adds to, `rows` sums of so many vectors.
template <typename Real>
SIFA_INLINE void multiply(const Factors<Real>& f, bool add, int64_t rows, int64_t vectors, Real* sums) {
  int64_t vector = 0;
  for (; vector + kVectors <= vectors; vector += kVectors)
    multiply_column<kVectors>(f, add, rows, vector, sums);
  for (; vector < vectors; ++vector) multiply_column<1>(f, add, rows, vector, sums);
}

// Channels are done in chunks: of kChannelsAtOnce, or of all there are, in whole vectors.
template <typename Real>
struct Chunks {
  int64_t width;
  int64_t count;

  explicit Chunks(int64_t channels)
      : width(smaller(kChannelsAtOnce, divide_up(channels, kWide<Real>) * kWide<Real>)),
        count(divide_up(channels, width)) {}

  SIFA_INLINE int64_t channels() const { return count * width; }  // with those that fill the last vector
};

// Outputs are read as whole vectors; the last may begin within the one before. Of fewer outputs than a vector
// has lanes the rest are zeros.
template <typename Real>
SIFA_INLINE int64_t output_pitch(int64_t outputs) {
  return outputs < kWide<Real> ? kWide<Real> : outputs;
}
// Calls body(first, count) for each of the vectors.
template <typename Real, typename Body>
SIFA_INLINE void for_outputs(int64_t outputs, const Body& body) {
  constexpr int64_t kLanes = kWide<Real>;
  if (outputs < kLanes) return body(int64_t{0}, outputs);
  for (int64_t o = 0; o < outputs; o += kLanes) body(smaller(o, outputs - kLanes), kLanes);
}

template <typename T>
SIFA_INLINE const T* frame_of(const void* data, const PixelStrides& strides, int64_t n, int64_t t) {
  return static_cast<const T*>(data) + n * strides.batch + t * strides.frame;
}

// --- The gradients of query and memory -------------------------------------------------------------------

// [chunk of channels][frequency][output][channel]
template <typename T, typename Real = Accumulator<T>>
void transform_weights_of(const MotionOffsetBackward& call, int64_t begin, int64_t end, Real* weights) {
  constexpr int kLanes = kWide<Real>;
  using Lanes = Vector<Real, kLanes>;
  const Chunks<Real> chunks(call.channels);
  const WeightStrides& strides = call.weight_strides;
  for (int64_t o = begin; o < end; ++o) {
    for (int64_t c = 0; c < chunks.channels(); c += kLanes) {
      Lanes g[3][3] = {}, half[3][kWindow], across[kWindow][3], transformed[kWindow];
      for (int i = 0; i < smaller(kLanes, call.channels - c); ++i) {
        const T* source = static_cast<const T*>(call.weight) + o * strides.output + (c + i) * strides.channel;
        for (int row = 0; row < 3; ++row) {
          for (int column = 0; column < 3; ++column)
            g[column][row][i] = load_one(source + (2 - row) * strides.row + (2 - column) * strides.column);
        }
      }
      for (int column = 0; column < 3; ++column) {
        transform_weight<Real>(g[column], half[column]);
        for (int row = 0; row < kWindow; ++row) across[row][column] = half[column][row];
      }
      Real* target =
          weights + (c / chunks.width * kFrequencies * call.outputs + o) * chunks.width + c % chunks.width;
      for (int row = 0; row < kWindow; ++row) {
        transform_weight<Real>(across[row], transformed);
        for (int column = 0; column < kWindow; ++column)
          store<kLanes>(target + (row * kWindow + column) * call.outputs * chunks.width, transformed[column]);
      }
    }
  }
}

template <typename T, typename Real = Accumulator<T>>
class FeatureGradients {
 public:
  explicit FeatureGradients(const MotionOffsetBackward& call)
      : call_(call),
        chunks_(call.channels),
        rows_(divide_up(call.height, kTile)),
        columns_(divide_up(call.width, kTile)),
        pitch_(output_pitch<Real>(call.outputs)) {}

  int64_t scratch_bytes() const {
    return (windows_size() + products_size() + kTile * kTile * chunks_.channels()) *
           static_cast<int64_t>(sizeof(Real));
  }

  int64_t tiles() const { return call_.batch * rows_ * call_.memory_frames * columns_; }

  // Tiles are counted through (n, row, m, column): with a shift of 1 a frame has one reader, two or none, and
  // side by side they are shared evenly among threads; and where query and memory are one clip a row of it is
  // still in the caches when it is read the second time.
  void write(const void* weights, int64_t begin, int64_t end, void* scratch) {
    weights_ = static_cast<const Real*>(weights);
    windows_ = static_cast<Real*>(scratch);
    products_ = windows_ + windows_size();
    sums_ = products_ + products_size();
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile % columns_, row = tile / columns_ / call_.memory_frames;
      Place place{};
      place.m = tile / columns_ % call_.memory_frames;
      place.n = row / rows_;
      place.y = kTile * (row % rows_);
      place.x = kTile * column;
      place.rows = smaller(kTile, call_.height - place.y);
      place.columns = smaller(kTile, call_.width - place.x);
      if (place.m == 0) clear_unread(place);
      const FrameRange readers = readers_of(call_, place.m);
      if (readers.begin >= readers.end) clear(call_.grad_memory, call_.memory_frames, place.m, place);
      for (place.t = readers.begin; place.t < readers.end; ++place.t) {
        place.is_first = place.t == readers.begin;
        place.is_last = place.t + 1 == readers.end;
        places_[number_++] = place;
        if (number_ == kTilesAtOnce) group();
      }
    }
    group();
  }

 private:
  static constexpr int kLanes = kWide<Real>;
  using Lanes = Vector<Real, kLanes>;

  // A tile of frame m of the memory and of a query frame that reads it.
  struct Place {
    int64_t n, m, t, y, x;
    int64_t rows, columns;   // that are inside the frame
    bool is_first, is_last;  // of the query frames that read m
  };

  // Whole vectors each.
  SIFA_INLINE int64_t windows_size() const {
    return kFrequencies * divide_up(kTilesAtOnce * pitch_, kLanes) * kLanes;
  }
  SIFA_INLINE int64_t products_size() const { return kFrequencies * kTilesAtOnce * chunks_.width; }

  SIFA_INLINE T* gradient_at(void* data, int64_t frames, int64_t frame, const Place& place,
                             int64_t row) const {
    const int64_t pixel = ((place.n * frames + frame) * call_.height + place.y + row) * call_.width + place.x;
    return static_cast<T*>(data) + pixel * call_.channels;
  }

  void clear(void* data, int64_t frames, int64_t frame, const Place& place) const {
    for (int64_t row = 0; row < place.rows; ++row) {
      std::memset(gradient_at(data, frames, frame, place, row), 0,
                  static_cast<size_t>(place.columns * call_.channels) * sizeof(T));
    }
  }

  void clear_unread(const Place& place) const {
    for (int64_t t = 0; t < call_.frames; ++t) {
      if (neighbour_frame(call_, t) < 0) clear(call_.grad_query, call_.frames, t, place);
    }
  }

  void group() {
    for (int64_t i = 0; i < number_; ++i) {
      const Place& place = places_[i];
      const bool inside =
          place.y > 0 && place.x > 0 && place.y + kTile < call_.height && place.x + kTile < call_.width;
      if (inside) {
        write_window<true>(place, windows_ + i * pitch_);
      } else {
        write_window<false>(place, windows_ + i * pitch_);
      }
    }
    for (int64_t chunk = 0; number_ > 0 && chunk < chunks_.count; ++chunk) {
      const int64_t channel = chunk * chunks_.width;
      const int64_t count = smaller(chunks_.width, call_.channels - channel);
      for (int64_t k = 0; k < kFrequencies; ++k) {
        const Real* windows = windows_ + k * kTilesAtOnce * pitch_;
        const Real* weights = weights_ + (chunk * kFrequencies + k) * call_.outputs * chunks_.width;
        Real* products = products_ + k * kTilesAtOnce * chunks_.width;
        for (int64_t o = 0; o < call_.outputs; o += kOutputsSummed) {
          const Factors<Real> factors{windows + o,
                                      pitch_,
                                      1,
                                      weights + o * chunks_.width,
                                      chunks_.width,
                                      smaller(kOutputsSummed, call_.outputs - o)};
          multiply(factors, o > 0, number_, divide_up(count, kLanes), products);
        }
      }
      for (int64_t i = 0; i < number_; ++i) write_gradients(i, channel, count);
    }
    number_ = 0;
  }

  // B d B' of grad_output, [frequency][tile][output]. Inside the frame no pixel asks whether it is (4 % of
  // all of the time, 9 % of that of large maps, with what is fetched ahead).
  template <bool kInside>
  SIFA_INLINE void write_window(const Place& place, Real* target) const {
    const T* frame = frame_of<T>(call_.grad_output, call_.grad_output_strides, place.n, place.t);
    fetch_next_window(place, frame);
    for_outputs<Real>(call_.outputs, [&](int64_t first, int64_t count) __attribute__((always_inline)) {
      Lanes half[kWindow][kWindow];
      for (int column = 0; column < kWindow; ++column) {
        const int64_t x = place.x - 1 + column;
        Lanes transformed[kWindow];
        transform_window<Real>(
            [&](int row) __attribute__((always_inline)) {
              const int64_t y = place.y - 1 + row;
              if (!kInside && (x < 0 || x >= call_.width || y < 0 || y >= call_.height)) return Lanes{};
              return load_some(
                  frame + y * call_.grad_output_strides.row + x * call_.grad_output_strides.column + first,
                  count);
            },
            transformed);
        for (int row = 0; row < kWindow; ++row) half[row][column] = transformed[row];
      }
      for (int row = 0; row < kWindow; ++row) {
        Lanes transformed[kWindow];
        transform_window<Real>([&](int column) __attribute__((always_inline)) { return half[row][column]; },
                               transformed);
        for (int column = 0; column < kWindow; ++column)
          store<kLanes>(target + (row * kWindow + column) * kTilesAtOnce * pitch_ + first,
                        transformed[column]);
      }
    });
  }

  // What the window of the tile to the right adds to this one.
  SIFA_INLINE void fetch_next_window(const Place& place, const T* frame) const {
    const int64_t bytes = call_.outputs * static_cast<int64_t>(sizeof(T));
    const int64_t begin = place.x + kTile + 1, end = smaller(begin + kTile, call_.width);
    for (int64_t y = place.y > 0 ? place.y - 1 : 0; y < smaller(place.y + kTile + 1, call_.height); ++y) {
      for (int64_t x = begin; x < end; ++x) {
        const char* pixel = reinterpret_cast<const char*>(frame + y * call_.grad_output_strides.row +
                                                          x * call_.grad_output_strides.column);
        for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(pixel + byte);
      }
    }
  }

  // The gradient of the saliency of a tile, and what it adds to the gradients of query and memory.
  void write_gradients(int64_t i, int64_t channel, int64_t count) {
    const Place& place = places_[i];
    const T* query = frame_of<T>(call_.query, call_.query_strides, place.n, place.t) +
                     place.y * call_.query_strides.row + place.x * call_.query_strides.column + channel;
    const T* memory = frame_of<T>(call_.memory, call_.memory_strides, place.n, place.m) +
                      place.y * call_.memory_strides.row + place.x * call_.memory_strides.column + channel;
    for (int64_t c = 0; c < count; c += kLanes) {
      Lanes of_saliency[kTile][kTile];
      inverse(products_ + i * chunks_.width + c, of_saliency);
      for (int64_t row = 0; row < place.rows; ++row) {
        const T* f = query + row * call_.query_strides.row + c;
        const T* n = memory + row * call_.memory_strides.row + c;
        T* of_query = gradient_at(call_.grad_query, call_.frames, place.t, place, row) + channel + c;
        T* of_memory = gradient_at(call_.grad_memory, call_.memory_frames, place.m, place, row) + channel + c;
        Real* sums = sums_ + row * kTile * chunks_.channels() + channel + c;
        for (int64_t column = 0; column < place.columns; ++column) {
          const auto slopes =
              saliency_slopes<kLanes, Real>(load_some(f, count - c), load_some(n, count - c), call_.residual);
          store_some(of_query, of_saliency[row][column] * slopes.query, count - c);
          Lanes sum = of_saliency[row][column] * slopes.memory;
          if (!place.is_first) sum += load<kLanes>(sums);
          if (place.is_last) {
            store_some(of_memory, sum, count - c);
          } else {
            store<kLanes>(sums, sum);
          }
          f += call_.query_strides.column;
          n += call_.memory_strides.column;
          of_query += call_.channels;
          of_memory += call_.channels;
          sums += chunks_.channels();
        }
      }
    }
  }

  SIFA_INLINE void inverse(const Real* products, Lanes (*result)[kTile]) const {
    Lanes half[kTile][kWindow];
    for (int column = 0; column < kWindow; ++column) {
      Lanes p[kWindow], transformed[kTile];
      for (int row = 0; row < kWindow; ++row)
        p[row] = load<kLanes>(products + (row * kWindow + column) * kTilesAtOnce * chunks_.width);
      transform_products<Real>(p, transformed);
      for (int row = 0; row < kTile; ++row) half[row][column] = transformed[row];
    }
    for (int row = 0; row < kTile; ++row) transform_products<Real>(half[row], result[row]);
  }

  const MotionOffsetBackward& call_;
  const Chunks<Real> chunks_;
  const int64_t rows_, columns_;  // of tiles in a frame
  const int64_t pitch_;           // between the windows of two tiles
  const Real* weights_ = nullptr;
  Real* windows_ = nullptr;   // [frequency][tile][output]
  Real* products_ = nullptr;  // [frequency][tile][channel of a chunk]
  // [pixel][channel]: of the tile of the memory whose readers are not done yet, the only one, as its readers
  // follow one another.
  Real* sums_ = nullptr;
  Place places_[kTilesAtOnce];
  int64_t number_ = 0;  // of places
};

// --- The gradient of the weights -------------------------------------------------------------------------

template <typename T, typename Real = Accumulator<T>>
class WeightGradient {
 public:
  explicit WeightGradient(const MotionOffsetBackward& call)
      : call_(call),
        chunks_(call.channels),
        strips_(call, kTilesSummed),
        strip_saliency_(call, strips_),
        pitch_(output_pitch<Real>(call.outputs)) {}

  int64_t scratch_bytes() const {
    return (strip_saliency_.group_size() + windows_size() + tiles_size() + products_size()) *
           static_cast<int64_t>(sizeof(Real));
  }

  // Of all strips, as many pieces as chunks of channels leave parts, of two groups of strips at least.
  int64_t pieces() const {
    int64_t pieces = 1;
    while (pieces * chunks_.count < kParts && 4 * pieces * strips_.at_once() <= strips_.count(call_))
      pieces *= 2;
    return pieces;
  }
  int64_t parts() const { return pieces() * chunks_.count; }

  // [row and column of the weight][output][channel of the chunk]
  int64_t part_size() const { return 9 * call_.outputs * chunks_.width; }

  // Parts are counted through (piece, chunk).
  void write_part(int64_t part, Real* target, void* scratch) {
    saliency_ = static_cast<Real*>(scratch);
    windows_ = saliency_ + strip_saliency_.group_size();
    tiles_ = windows_ + windows_size();
    products_ = tiles_ + tiles_size();
    const int64_t count = strips_.count(call_), pieces = this->pieces();
    const int64_t piece = part / chunks_.count, channel = part % chunks_.count * chunks_.width;
    const int64_t begin = piece * count / pieces, end = (piece + 1) * count / pieces;
    const int64_t channels = smaller(chunks_.width, call_.channels - channel);
    std::memset(products_, 0, static_cast<size_t>(products_size()) * sizeof(Real));
    for (int64_t strip = begin; strip < end; strip += strips_.at_once())
      add_group(strip, smaller(strip + strips_.at_once(), end), channel, channels);
    transform_back(channels, target);
  }

  // Adds the parts of one output.
  void write_output(const Real* parts, int64_t o) const {
    const int64_t pieces = this->pieces();
    T* target = static_cast<T*>(call_.grad_weight) + o * call_.channels * 9;
    for (int64_t c = 0; c < call_.channels; c += kLanes) {
      const int64_t chunk = c / chunks_.width, count = smaller(kLanes, call_.channels - c);
      for (int64_t k = 0; k < 9; ++k) {
        Lanes sum{};
        for (int64_t piece = 0; piece < pieces; ++piece) {
          sum += load<kLanes>(parts + (piece * chunks_.count + chunk) * part_size() +
                              (k * call_.outputs + o) * chunks_.width + c % chunks_.width);
        }
        for (int64_t i = 0; i < count; ++i) store_one(target + (c + i) * 9 + k, sum[i]);
      }
    }
  }

 private:
  static constexpr int kLanes = kWide<Real>;
  using Lanes = Vector<Real, kLanes>;

  // A tile: where its window of the saliency begins, its pixels of grad_output, and how many rows and columns
  // of these are inside the frame.
  struct Place {
    const Real* window;
    const T* pixels;
    int64_t rows, columns;
  };

  SIFA_INLINE int64_t windows_size() const { return kPatches * kTilesSummed * chunks_.width; }
  SIFA_INLINE int64_t tiles_size() const {
    return kPatches * divide_up(kTilesSummed * pitch_, kLanes) * kLanes;
  }
  SIFA_INLINE int64_t products_size() const { return kFrequencies * call_.outputs * chunks_.width; }

  void add_group(int64_t begin, int64_t end, int64_t channel, int64_t count) {
    number_ = 0;
    const Real* saliency = saliency_;
    for_runs(call_, strips_, begin, end, [&](const Run& run) {
      add_places(run, saliency);
      saliency += strip_saliency_.run_size(run);
    });
    strip_saliency_.write(begin, end, channel, count, saliency_);
    add_pass<0>(count);
    add_pass<1>(count);
    add_pass<2>(count);
  }

  SIFA_INLINE void add_places(const Run& run, const Real* saliency) {
    const T* frame = frame_of<T>(call_.grad_output, call_.grad_output_strides, run.n, run.t);
    for (int64_t row = 0; row < run.count; ++row) {
      for (int64_t column = 0; column < strips_.tiles; ++column) {
        const int64_t y = kTile * (run.first + row), x = kTile * (run.piece * strips_.tiles + column);
        if (x >= call_.width) break;
        places_[number_++] = {
            saliency + strip_saliency_.window(row, column),
            frame + y * call_.grad_output_strides.row + x * call_.grad_output_strides.column,
            smaller(kTile, call_.height - y),
            smaller(kTile, call_.width - x),
        };
      }
    }
  }

  // The products of two rows of frequencies.
  template <int kPass>
  void add_pass(int64_t count) {
    for (int64_t i = 0; i < number_; ++i) {
      for (int64_t c = 0; c < count; c += kLanes)
        write_window<kPass>(places_[i].window + c * strip_saliency_.columns(),
                            windows_ + i * chunks_.width + c);
      write_tile<kPass>(places_[i], tiles_ + i * pitch_);
    }
    for (int k = 0; k < kPatches; ++k) {
      const int64_t frequency = frequency_of(kPass, k / kWindow) * kWindow + k % kWindow;
      const Factors<Real> factors{tiles_ + k * kTilesSummed * pitch_,
                                  1,
                                  pitch_,
                                  windows_ + k * kTilesSummed * chunks_.width,
                                  chunks_.width,
                                  number_};
      multiply(factors, true, call_.outputs, divide_up(count, kLanes),
               products_ + frequency * call_.outputs * chunks_.width);
    }
  }

  // Two rows of B d B' of the saliency, [frequency][tile][channel].
  template <int kPass>
  SIFA_INLINE void write_window(const Real* window, Real* target) const {
    const int64_t row_size = strip_saliency_.row_size();
    Lanes rows[2][kWindow];
    for (int column = 0; column < kWindow; ++column, window += kLanes) {
      transform_window<kPass, Real>(
          [&](int row) __attribute__((always_inline)) { return load<kLanes>(window + row * row_size); },
          rows[0][column], rows[1][column]);
    }
    for (int which = 0; which < 2; ++which) {
      Lanes transformed[kWindow];
      transform_window<Real>([&](int column) __attribute__((always_inline)) { return rows[which][column]; },
                             transformed);
      for (int k = 0; k < kWindow; ++k)
        store<kLanes>(target + (which * kWindow + k) * kTilesSummed * chunks_.width, transformed[k]);
    }
  }

  // Two rows of A' y A of grad_output, [frequency][tile][output].
  template <int kPass>
  SIFA_INLINE void write_tile(const Place& place, Real* target) const {
    for_outputs<Real>(call_.outputs, [&](int64_t first, int64_t count) __attribute__((always_inline)) {
      Lanes rows[2][kTile];
      for (int column = 0; column < kTile; ++column) {
        transform_output_back<kPass, Real>(
            [&](int row) __attribute__((always_inline)) {
              if (row >= place.rows || column >= place.columns) return Lanes{};
              return load_some(place.pixels + row * call_.grad_output_strides.row +
                                   column * call_.grad_output_strides.column + first,
                               count);
            },
            rows[0][column], rows[1][column]);
      }
      for (int which = 0; which < 2; ++which) {
        Lanes transformed[kWindow];
        transform_output_back<Real>(
            [&](int column) __attribute__((always_inline)) { return rows[which][column]; }, transformed);
        for (int k = 0; k < kWindow; ++k)
          store<kLanes>(target + (which * kWindow + k) * kTilesSummed * pitch_ + first, transformed[k]);
      }
    });
  }

  // G' P G.
  void transform_back(int64_t count, Real* target) const {
    const int64_t pitch = call_.outputs * chunks_.width;  // between frequencies, and between weights
    for (int64_t o = 0; o < call_.outputs; ++o) {
      for (int64_t c = 0; c < count; c += kLanes) {
        const Real* products = products_ + o * chunks_.width + c;
        Lanes half[3][kWindow];
        for (int column = 0; column < kWindow; ++column) {
          Lanes p[kWindow], transformed[3];
          for (int row = 0; row < kWindow; ++row)
            p[row] = load<kLanes>(products + (row * kWindow + column) * pitch);
          transform_weight_back<Real>(p, transformed);
          for (int row = 0; row < 3; ++row) half[row][column] = transformed[row];
        }
        for (int row = 0; row < 3; ++row) {
          Lanes transformed[3];
          transform_weight_back<Real>(half[row], transformed);
          for (int column = 0; column < 3; ++column)
            store<kLanes>(target + (row * 3 + column) * pitch + o * chunks_.width + c, transformed[column]);
        }
      }
    }
  }

  const MotionOffsetBackward& call_;
  const Chunks<Real> chunks_;
  const Strips strips_;
  const StripSaliency<T> strip_saliency_;
  const int64_t pitch_;  // between two tiles of grad_output
  Real* saliency_ = nullptr;
  Real* windows_ = nullptr;   // [frequency][tile][channel], of a pass
  Real* tiles_ = nullptr;     // [frequency][tile][output], of a pass
  Real* products_ = nullptr;  // [frequency][output][channel]
  Place places_[kTilesSummed];
  int64_t number_ = 0;  // of places
};

// --- The table -------------------------------------------------------------------------------------------

int64_t real_bytes(const MotionOffsetBackward& call) {
  return call.features == ScalarKind::kFloat64 ? sizeof(double) : sizeof(float);
}

int64_t weight_bytes(const MotionOffsetBackward& call) {
  const int64_t channels = for_feature_type(call.features, [&](auto type) {
    return Chunks<Accumulator<decltype(type)>>(call.channels).channels();
  });
  return kFrequencies * call.outputs * channels * real_bytes(call);
}

int64_t feature_scratch_bytes(const MotionOffsetBackward& call) {
  return for_feature_type(call.features,
                          [&](auto type) { return FeatureGradients<decltype(type)>(call).scratch_bytes(); });
}

void transform_weights(const MotionOffsetBackward& call, int64_t begin, int64_t end, void* weights) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    transform_weights_of<T>(call, begin, end, static_cast<Accumulator<T>*>(weights));
  });
}

int64_t tiles(const MotionOffsetBackward& call) {
  return for_feature_type(call.features,
                          [&](auto type) { return FeatureGradients<decltype(type)>(call).tiles(); });
}

void features(const MotionOffsetBackward& call, const void* weights, int64_t begin, int64_t end,
              void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    FeatureGradients<decltype(type)>(call).write(weights, begin, end, scratch);
  });
}

int64_t parts(const MotionOffsetBackward& call) {
  return for_feature_type(call.features,
                          [&](auto type) { return WeightGradient<decltype(type)>(call).parts(); });
}

int64_t part_bytes(const MotionOffsetBackward& call) {
  return for_feature_type(call.features, [&](auto type) {
    const WeightGradient<decltype(type)> gradient(call);
    return gradient.parts() * gradient.part_size() * real_bytes(call);
  });
}

int64_t weight_scratch_bytes(const MotionOffsetBackward& call) {
  return for_feature_type(call.features,
                          [&](auto type) { return WeightGradient<decltype(type)>(call).scratch_bytes(); });
}

void weight_parts(const MotionOffsetBackward& call, int64_t begin, int64_t end, void* parts, void* scratch) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    WeightGradient<T> gradient(call);
    for (int64_t part = begin; part < end; ++part)
      gradient.write_part(part, static_cast<Accumulator<T>*>(parts) + part * gradient.part_size(), scratch);
  });
}

void weight(const MotionOffsetBackward& call, const void* parts, int64_t begin, int64_t end) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    const WeightGradient<T> gradient(call);
    for (int64_t o = begin; o < end; ++o) gradient.write_output(static_cast<const Accumulator<T>*>(parts), o);
  });
}

}  // namespace

#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _motion_offset_backward_kernels)

extern const MotionOffsetBackwardKernels SIFA_TABLE;
const MotionOffsetBackwardKernels SIFA_TABLE = {
    weight_bytes, feature_scratch_bytes, transform_weights, tiles, features, parts,
    part_bytes,   weight_scratch_bytes,  weight_parts,      weight};

}  // namespace sifa::cpu
