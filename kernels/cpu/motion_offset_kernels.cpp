// The CPU kernel of sifa::motion_offset: the 3x3 convolution of the motion saliency, which never leaves the
// caches. Compiled once per instruction set, like inter_frame_attention_kernels.cpp; see there.
//
// 18 outputs fill no vector well, so a lane is a place, not an output, and the convolution is Winograd's
// F(2x2, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016): a tile of 2x2
// outputs sees 4x4 pixels d; with
//
//       | 1  0 -1  0 |       |  1    0    0  |       | 1  1  1  0 |
//   B = | 0  1  1  0 |   G = | 1/2  1/2  1/2 |   A = | 0  1 -1 -1 |
//       | 0 -1  1  0 |       | 1/2 -1/2  1/2 |
//       | 0  1  0 -1 |       |  0    0    1  |
//
// it is A [sum_c (G g G') * (B d B')] A', 16 products of matrices (outputs x channels) by (channels x tiles)
// that take 4 multiply-adds per output and channel instead of 9. B and A only add, and an output depends on
// no pixel outside its 3x3 window, so neither accuracy nor the reach of a NaN suffers.
//
// Of a group of tiles, and kChannelsAtOnce channels at a time, the kernel computes
//   saliency   [channel][place] of the pixels, in four planes: odd and even rows, odd and even columns. What
//              adjacent tiles read is adjacent there, and so lanes are tiles throughout.
//   patches    B d B', [frequency][channel][place], four of the 16 frequencies at a time
//   products   [frequency][output][place], summed over the channels in their order
// and at last the outputs. A row of tiles takes one place more than it has tiles, as its pixels have one more
// odd column. Every lane does the same, so nothing depends on how tiles are grouped.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "motion_kernels.h"
#include "saliency.h"
#include "table.h"
#include "vector.h"

namespace sifa::cpu {
namespace {

// The block of sums that the inner loop keeps in registers, of 32 or of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kOutputs = 9, kVectors = 3;
#else
constexpr int kOutputs = 6, kVectors = 2;
#endif
constexpr int kFrequencies = 16;
constexpr int kChannelsAtOnce = 64;
// So that saliency, patches and products together stay in 1 MiB of cache, in float32.
constexpr int64_t kPlacesAtOnce = 224;
// Pixels whose saliency is computed in the order of memory before it is rearranged, in the nearest cache.
constexpr int64_t kPixelsAtOnce = 112;

SIFA_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
SIFA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How the output is cut. A strip is a row of tiles, or a piece of one where rows are long. Strips are counted
// through (n, t, piece, row), so that adjacent strips share rows of pixels.
struct Strips {
  int64_t rows;     // of tiles in a frame
  int64_t columns;  // of tiles in a frame
  int64_t pieces;   // of a row of tiles
  int64_t tiles;    // in a strip; the last piece of a row may have tiles outside the frame
  int64_t places;   // of a strip: one more

  explicit Strips(const MotionOffset& call)
      : rows(divide_up(call.height, 2)), columns(divide_up(call.width, 2)) {
    pieces = divide_up(columns, kPlacesAtOnce - 1);
    tiles = divide_up(columns, pieces);
    places = tiles + 1;
  }

  SIFA_INLINE int64_t count(const MotionOffset& call) const {
    return call.batch * call.frames * pieces * rows;
  }
  // Strips in a group: whole frames where they fit.
  SIFA_INLINE int64_t at_once() const {
    const int64_t fitting = kPlacesAtOnce / places;
    return fitting > rows ? fitting - fitting % rows : fitting;
  }
  // Rows of tiles whose pixels are rearranged at once.
  SIFA_INLINE int64_t rows_at_once() const {
    const int64_t fitting = kPixelsAtOnce / (4 * places);
    return fitting > 0 ? fitting : 1;
  }
};

// Sizes of the scratch, in elements, every one of them whole vectors. Vectors may be read and written beyond
// the last place of a row.
template <typename Real>
struct Layout {
  static constexpr int64_t kLanes = kWide<Real>;
  int64_t pixels;      // distance between the channels of the saliency
  int64_t places;      // distance between the channels of the patches, and between those of the products
  int64_t blocks;      // of outputs
  int64_t rearranged;  // pixels rearranged at once

  explicit Layout(const MotionOffset& call) : blocks(divide_up(call.outputs, kOutputs)) {
    const Strips strips(call);
    const int64_t most = strips.at_once();
    const int64_t runs = smaller(most, divide_up(most - 1, strips.rows) + 1);  // of strips of one piece
    pixels = spread(4 * ((most + runs) * strips.places + 2 * runs * kLanes) + 2 * kLanes);
    places = spread(most * strips.places + kLanes);
    rearranged = strips.rows_at_once() * 4 * strips.places;
  }

  // An odd number of vectors: powers of two would fall on the same lines of the cache.
  SIFA_INLINE static int64_t spread(int64_t count) { return (divide_up(count, kLanes) | 1) * kLanes; }

  SIFA_INLINE int64_t saliency_size() const { return kChannelsAtOnce * pixels; }
  SIFA_INLINE int64_t patch_size() const { return kChannelsAtOnce * places + kLanes; }  // of one frequency
  SIFA_INLINE int64_t product_size() const { return blocks * kOutputs * places; }       // of one frequency
  // One more for the pixels outside the frame.
  SIFA_INLINE int64_t pixel_size() const { return (rearranged + 1) * kChannelsAtOnce; }
  SIFA_INLINE int64_t size() const {
    return saliency_size() + 4 * patch_size() + kFrequencies * product_size() + pixel_size();
  }
};

// [frequency][block of outputs][channel][output of the block]
template <typename Real>
SIFA_INLINE Real* weight_at(Real* weights, const MotionOffset& call, int64_t blocks, int frequency,
                            int64_t block, int64_t c) {
  return weights + ((frequency * blocks + block) * call.channels + c) * kOutputs;
}

template <typename T, typename Real = Accumulator<T>>
void transform_weights_of(const MotionOffset& call, int64_t begin, int64_t end, Real* weights) {
  const int64_t blocks = divide_up(call.outputs, kOutputs);
  const WeightStrides& strides = call.weight_strides;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t c = begin; c < end; ++c) {
      Real transformed[kFrequencies][kOutputs] = {};
      const int64_t count = smaller(kOutputs, call.outputs - block * kOutputs);
      for (int64_t o = 0; o < count; ++o) {
        const T* g = static_cast<const T*>(call.weight) + (block * kOutputs + o) * strides.output +
                     c * strides.channel;
        Real half[4][3];
        for (int j = 0; j < 3; ++j) {
          const Real top = load_one(g + j * strides.column),
                     middle = load_one(g + strides.row + j * strides.column),
                     bottom = load_one(g + 2 * strides.row + j * strides.column);
          half[0][j] = top;
          half[1][j] = Real(0.5) * (top + bottom + middle);
          half[2][j] = Real(0.5) * (top + bottom - middle);
          half[3][j] = bottom;
        }
        for (int i = 0; i < 4; ++i) {
          const Real ends = half[i][0] + half[i][2];
          transformed[4 * i][o] = half[i][0];
          transformed[4 * i + 1][o] = Real(0.5) * (ends + half[i][1]);
          transformed[4 * i + 2][o] = Real(0.5) * (ends - half[i][1]);
          transformed[4 * i + 3][o] = half[i][2];
        }
      }
      for (int f = 0; f < kFrequencies; ++f) {
        std::memcpy(weight_at(weights, call, blocks, f, block, c), transformed[f], sizeof(transformed[f]));
      }
    }
  }
}

// A run of strips of one piece of one frame: the rows [first, first + count) of tiles.
struct Run {
  int64_t n, t, piece, first, count;
};

SIFA_INLINE Run run_at(const MotionOffset& call, const Strips& strips, int64_t strip, int64_t end) {
  const int64_t piece = strip / strips.rows, frame = piece / strips.pieces, first = strip % strips.rows;
  return {frame / call.frames, frame % call.frames, piece % strips.pieces, first,
          smaller(strips.rows - first, end - strip)};
}

// Elements of one of the four planes of the saliency of a run, in one channel. Rows that are rearranged after
// others start anywhere, and their last vector reaches further.
template <typename Real>
SIFA_INLINE int64_t plane_of(const Strips& strips, const Run& run) {
  const int64_t beyond = run.count + 1 > strips.rows_at_once() ? kWide<Real> : 0;
  return divide_up((run.count + 1) * strips.places + beyond, kWide<Real>) * kWide<Real>;
}

template <typename Real>
using Integer = std::conditional_t<sizeof(Real) == 8, int64_t, int32_t>;

// Lane i is lane from[i] of a and b, one after the other. `from` must be known to the compiler.
template <int kLanes, typename Real>
SIFA_INLINE Vector<Real, kLanes> shuffle(Vector<Real, kLanes> a, Vector<Real, kLanes> b,
                                         Vector<Integer<Real>, kLanes> from) {
#if defined(__clang__)
  Vector<Real, kLanes> result;
  for (int i = 0; i < kLanes; ++i) result[i] = from[i] < kLanes ? a[from[i]] : b[from[i] - kLanes];
  return result;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Lane 2i is lane i of the first (kHalf 0) or the second half of a, lane 2i + 1 that of b.
template <int kHalf, int kLanes, typename Real>
SIFA_INLINE Vector<Real, kLanes> interleave(Vector<Real, kLanes> a, Vector<Real, kLanes> b) {
  Vector<Integer<Real>, kLanes> from{};
  for (int i = 0; i < kLanes; ++i) from[i] = kHalf * kLanes / 2 + i / 2 + i % 2 * kLanes;
  return shuffle<kLanes, Real>(a, b, from);
}

// Lanes 1, 2, ... of a, then the first of b.
template <int kLanes, typename Real>
SIFA_INLINE Vector<Real, kLanes> shift(Vector<Real, kLanes> a, Vector<Real, kLanes> b) {
  Vector<Integer<Real>, kLanes> from{};
  for (int i = 0; i < kLanes; ++i) from[i] = i + 1;
  return shuffle<kLanes, Real>(a, b, from);
}

// Lane j of vector i becomes lane i of vector j, by perfect shuffles.
template <typename Real>
SIFA_INLINE void transpose(Vector<Real, kWide<Real>>* vectors) {
  constexpr int kLanes = kWide<Real>;
  for (int step = 1; step < kLanes; step *= 2) {
    Vector<Real, kLanes> shuffled[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffled[2 * i] = interleave<0, kLanes, Real>(vectors[i], vectors[i + kLanes / 2]);
      shuffled[2 * i + 1] = interleave<1, kLanes, Real>(vectors[i], vectors[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; ++i) vectors[i] = shuffled[i];
  }
}

// The first `count` channels, then zeros.
template <typename T, typename Real = Accumulator<T>>
SIFA_INLINE Vector<Real, kWide<Real>> load_some(const T* source, int64_t count) {
  if (count >= kWide<Real>) return load<kWide<Real>>(source);
  Vector<Real, kWide<Real>> result{};
  for (int64_t i = 0; i < count; ++i) result[i] = load_one(source + i);
  return result;
}

template <typename T, typename Real = Accumulator<T>>
class Kernel {
 public:
  Kernel(const MotionOffset& call, const void* weights, void* scratch)
      : call_(call),
        strips_(call),
        layout_(call),
        weights_(static_cast<const Real*>(weights)),
        saliency_(static_cast<Real*>(scratch)),
        patches_(saliency_ + layout_.saliency_size()),
        products_(patches_ + 4 * layout_.patch_size()),
        pixels_(products_ + kFrequencies * layout_.product_size()) {
    // Vectors reach places where nothing is ever written: numbers, rather than what was there before.
    std::memset(saliency_, 0,
                static_cast<size_t>(layout_.saliency_size() + 4 * layout_.patch_size()) * sizeof(Real));
    std::memset(outside(), 0, kChannelsAtOnce * sizeof(Real));
  }

  void forward(int64_t begin, int64_t end) {
    const int64_t most = strips_.at_once();
    for (; begin < end; begin += most) group(begin, smaller(begin + most, end));
  }

 private:
  static constexpr int kLanes = kWide<Real>;
  using Lanes = Vector<Real, kLanes>;

  void group(int64_t begin, int64_t end) {
    const int64_t vectors = divide_up((end - begin) * strips_.places, kLanes);
    for (int64_t channel = 0; channel < call_.channels; channel += kChannelsAtOnce) {
      const int64_t count = smaller(kChannelsAtOnce, call_.channels - channel);
      Real* saliency = saliency_;
      for (int64_t strip = begin; strip < end;) {
        const Run run = run_at(call_, strips_, strip, end);
        write_saliency(run, channel, count, saliency);
        saliency += 4 * plane_of<Real>(strips_, run);
        strip += run.count;
      }
      write_patches<0>(begin, end, count);
      multiply(0, channel, count, vectors);
      write_patches<1>(begin, end, count);
      multiply(1, channel, count, vectors);
      write_patches<2>(begin, end, count);
      multiply(2, channel, count, vectors);
      write_patches<3>(begin, end, count);
      multiply(3, channel, count, vectors);
    }
    write_output(begin, end);
  }

  SIFA_INLINE Real* outside() const { return pixels_ + layout_.rearranged * kChannelsAtOnce; }

  // Writes the saliency of `count` channels from `channel` on, of the pixels that a run reads: of each row of
  // tiles, and of one row more, the odd and the even row of pixels above and at its top.
  void write_saliency(const Run& run, int64_t channel, int64_t count, Real* target) {
    const int64_t at_once = strips_.rows_at_once(), plane = plane_of<Real>(strips_, run);
    for (int64_t first = 0; first <= run.count; first += at_once) {
      const int64_t rows = smaller(at_once, run.count + 1 - first);
      for (int64_t i = 0; i < 2 * rows; ++i)
        compute_row(run, 2 * (run.first + first) - 1 + i, channel, count, i);
      for (int odd_row = 0; odd_row < 2; ++odd_row) {
        for (int odd_column = 0; odd_column < 2; ++odd_column) {
          rearrange(run, first, rows, count, odd_row, odd_column,
                    target + (2 * odd_row + odd_column) * plane + first * strips_.places);
        }
      }
    }
  }

  // The columns of pixels of a run: from an odd one on, two per place, as far as they are inside the frame.
  SIFA_INLINE int64_t left_of(const Run& run) const { return 2 * run.piece * strips_.tiles - 1; }

  // Writes the saliency of row y to row i of pixels_, [pixel][channel]. Rows outside are not needed.
  SIFA_INLINE void compute_row(const Run& run, int64_t y, int64_t channel, int64_t count, int64_t i) {
    const int64_t m = neighbour_frame(call_, run.t), left = left_of(run);
    if (m < 0 || y < 0 || y >= call_.height) return;
    const T* query = static_cast<const T*>(call_.query) + run.n * call_.query_strides.batch +
                     run.t * call_.query_strides.frame + y * call_.query_strides.row + channel;
    const T* memory = static_cast<const T*>(call_.memory) + run.n * call_.memory_strides.batch +
                      m * call_.memory_strides.frame + y * call_.memory_strides.row + channel;
    const int64_t end = smaller(left + 2 * strips_.places, call_.width);
    for (int64_t x = left < 0 ? 0 : left; x < end; ++x) {
      const T* f = query + x * call_.query_strides.column;
      const T* n = memory + x * call_.memory_strides.column;
      Real* pixel = pixels_ + (i * 2 * strips_.places + x - left) * kChannelsAtOnce;
      // Half a pixel, then a gap: no pattern that the processor fetches ahead by itself.
      if (y + 1 < call_.height) {
        for (int64_t c = 0; c < count; c += 64 / static_cast<int64_t>(sizeof(T))) {
          __builtin_prefetch(f + call_.query_strides.row + c);
          __builtin_prefetch(n + call_.memory_strides.row + c);
        }
      }
      for (int64_t c = 0; c < count; c += kLanes) {
        store<kLanes>(pixel + c,
                      sifa::cpu::saliency<kLanes, Real>(load_some(f + c, count - c),
                                                        load_some(n + c, count - c), call_.residual));
      }
    }
  }

  // Moves every other pixel of every other row of pixels_ to [channel][place].
  SIFA_INLINE void rearrange(const Run& run, int64_t first, int64_t rows, int64_t count, int odd_row,
                             int odd_column, Real* target) {
    const bool has_neighbour = neighbour_frame(call_, run.t) >= 0;
    int64_t row = 0, column = 0;
    for (int64_t place = 0; place < rows * strips_.places; place += kLanes) {
      const Real* sources[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t y = 2 * (run.first + first + row) - 1 + odd_row,
                      x = left_of(run) + 2 * column + odd_column;
        const bool inside =
            has_neighbour && row < rows && y >= 0 && y < call_.height && x >= 0 && x < call_.width;
        const int64_t pixel = ((2 * row + odd_row) * strips_.places + column) * 2 + odd_column;
        sources[i] = inside ? pixels_ + pixel * kChannelsAtOnce : outside();
        if (++column == strips_.places) {
          column = 0;
          ++row;
        }
      }
      for (int64_t c = 0; c < count; c += kLanes) {
        Lanes pixels[kLanes];
        for (int i = 0; i < kLanes; ++i) pixels[i] = load<kLanes>(sources[i] + c);
        transpose<Real>(pixels);
        // In ascending order: what lies beyond the last place is written over by the next rows.
        for (int i = 0; i < kLanes && c + i < count; ++i)
          store<kLanes>(target + (c + i) * layout_.pixels + place, pixels[i]);
      }
    }
  }

  // Row kRow of B d B' of every tile of the group.
  template <int kRow>
  void write_patches(int64_t begin, int64_t end, int64_t count) {
    const Real* saliency = saliency_;
    Real* target = patches_;
    for (int64_t strip = begin; strip < end;) {
      const Run run = run_at(call_, strips_, strip, end);
      const int64_t plane = plane_of<Real>(strips_, run);
      for (int64_t c = 0; c < count; ++c) {
        // d's rows 0 to 3: an odd one above the tile, its two, and an even one below it.
        const Real* const above = saliency + c * layout_.pixels;
        const Real* const rows[4] = {above, above + 2 * plane, above + strips_.places,
                                     above + 2 * plane + strips_.places};
        Real* patch = target + c * layout_.places;
        // B's row, of the odd columns (`first` 0) or the even ones (`first` plane).
        const auto combine = [&](int64_t first) __attribute__((always_inline)) {
          const auto at = [&](int row)
                              __attribute__((always_inline)) { return load<kLanes>(rows[row] + first); };
          if constexpr (kRow == 0) {
            return at(0) - at(2);
          } else if constexpr (kRow == 1) {
            return at(1) + at(2);
          } else if constexpr (kRow == 2) {
            return at(2) - at(1);
          } else {
            return at(1) - at(3);
          }
        };
        Lanes d0 = combine(0), d1 = combine(plane);
        // In ascending order: what lies beyond the last place is written over by the next run.
        for (int64_t place = 0; place < run.count * strips_.places; place += kLanes) {
          const Lanes next0 = combine(place + kLanes), next1 = combine(plane + place + kLanes);
          const Lanes d2 = shift<kLanes, Real>(d0, next0), d3 = shift<kLanes, Real>(d1, next1);
          store<kLanes>(patch + place, d0 - d2);
          store<kLanes>(patch + layout_.patch_size() + place, d1 + d2);
          store<kLanes>(patch + 2 * layout_.patch_size() + place, d2 - d1);
          store<kLanes>(patch + 3 * layout_.patch_size() + place, d1 - d3);
          d0 = next0;
          d1 = next1;
        }
      }
      saliency += 4 * plane;
      target += run.count * strips_.places;
      strip += run.count;
    }
  }

  // Adds the products of `count` channels from `channel` on to four of the frequencies.
  void multiply(int row, int64_t channel, int64_t count, int64_t vectors) {
    for (int column = 0; column < 4; ++column) {
      const int frequency = 4 * row + column;
      const Real* patches = patches_ + column * layout_.patch_size();
      for (int64_t block = 0; block < layout_.blocks; ++block) {
        const Real* weights = weight_at(weights_, call_, layout_.blocks, frequency, block, channel);
        Real* products = products_ + frequency * layout_.product_size() + block * kOutputs * layout_.places;
        int64_t done = 0;
        // Rather 2 + 2 than 3 + 1 at the end: a block of one vector is loads more than products.
        for (; vectors - done >= kVectors && vectors - done != kVectors + 1; done += kVectors)
          multiply_block<kVectors>(weights, patches + done * kLanes, count, channel == 0,
                                   products + done * kLanes);
        for (; vectors - done >= 2; done += 2)
          multiply_block<2>(weights, patches + done * kLanes, count, channel == 0, products + done * kLanes);
        for (; done < vectors; ++done)
          multiply_block<1>(weights, patches + done * kLanes, count, channel == 0, products + done * kLanes);
      }
    }
  }

  template <int kBlock>
  SIFA_INLINE void multiply_block(const Real* weights, const Real* patches, int64_t count, bool first,
                                  Real* products) {
    const int64_t pitch = layout_.places;
    Lanes sums[kOutputs][kBlock];
    for (int o = 0; o < kOutputs; ++o) {
      for (int v = 0; v < kBlock; ++v) {
        sums[o][v] = first ? Lanes{} : load<kLanes>(products + o * pitch + v * kLanes);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      Lanes patch[kBlock];
      for (int v = 0; v < kBlock; ++v) patch[v] = load<kLanes>(patches + c * pitch + v * kLanes);
      for (int o = 0; o < kOutputs; ++o) {
        for (int v = 0; v < kBlock; ++v) sums[o][v] += patch[v] * weights[c * kOutputs + o];
      }
    }
    for (int o = 0; o < kOutputs; ++o) {
      for (int v = 0; v < kBlock; ++v) store<kLanes>(products + o * pitch + v * kLanes, sums[o][v]);
    }
  }

  // A P A' of every tile, and from outputs by tiles to pixels of adjacent outputs.
  void write_output(int64_t begin, int64_t end) {
    const int64_t places = (end - begin) * strips_.places;
    for (int64_t first = 0; first < places; first += kLanes) {
      T* targets[kLanes][4];
      for (int64_t i = 0; i < kLanes; ++i) find_targets(begin, first + i, places, targets[i]);
      for (int64_t o = 0; o < call_.outputs; o += kLanes) {
        const int64_t count = smaller(kLanes, call_.outputs - o);
        Lanes values[4][kLanes] = {};
        for (int64_t i = 0; i < count; ++i) inverse(products_ + (o + i) * layout_.places + first, values, i);
        for (int pixel = 0; pixel < 4; ++pixel) {
          if (count > kLanes / 4) {
            transpose<Real>(values[pixel]);
            for (int i = 0; i < kLanes; ++i) {
              if (targets[i][pixel] != nullptr) store_some(targets[i][pixel] + o, values[pixel][i], count);
            }
          } else {  // the last two of 18, say, one at a time
            for (int i = 0; i < kLanes; ++i) {
              if (targets[i][pixel] == nullptr) continue;
              for (int64_t k = 0; k < count; ++k) store_one(targets[i][pixel] + o + k, values[pixel][k][i]);
            }
          }
        }
      }
    }
  }

  SIFA_INLINE void inverse(const Real* products, Lanes (*values)[kLanes], int64_t i) {
    Lanes above[4], below[4];
    for (int column = 0; column < 4; ++column) {
      Lanes p[4];
      for (int row = 0; row < 4; ++row)
        p[row] = load<kLanes>(products + (4 * row + column) * layout_.product_size());
      above[column] = p[0] + p[1] + p[2];
      below[column] = p[1] - p[2] - p[3];
    }
    values[0][i] = above[0] + above[1] + above[2];
    values[1][i] = above[1] - above[2] - above[3];
    values[2][i] = below[0] + below[1] + below[2];
    values[3][i] = below[1] - below[2] - below[3];
  }

  // The pixels of a tile in the output, row by row; null for those outside the frame.
  SIFA_INLINE void find_targets(int64_t begin, int64_t place, int64_t places, T** targets) {
    const int64_t strip = begin + place / strips_.places, tile = place % strips_.places;
    const Run run = run_at(call_, strips_, strip, strip + 1);
    const int64_t column = run.piece * strips_.tiles + tile;
    for (int i = 0; i < 4; ++i) {
      const int64_t y = 2 * run.first + i / 2, x = 2 * column + i % 2;
      const bool inside = place < places && tile < strips_.tiles && y < call_.height && x < call_.width;
      const int64_t pixel = ((run.n * call_.frames + run.t) * call_.height + y) * call_.width + x;
      targets[i] = inside ? static_cast<T*>(call_.output) + pixel * call_.outputs : nullptr;
    }
  }

  SIFA_INLINE void store_some(T* target, Lanes values, int64_t count) {
    if (count == kLanes) return store<kLanes>(target, values);
    for (int64_t i = 0; i < count; ++i) store_one(target + i, values[i]);
  }

  const MotionOffset& call_;
  const Strips strips_;
  const Layout<Real> layout_;
  const Real* const weights_;
  Real* const saliency_;
  Real* const patches_;
  Real* const products_;
  Real* const pixels_;
};

int64_t weight_bytes(const MotionOffset& call) {
  const int64_t count = kFrequencies * divide_up(call.outputs, kOutputs) * kOutputs * call.channels;
  return count * (call.features == ScalarKind::kFloat64 ? 8 : 4);
}

int64_t scratch_bytes(const MotionOffset& call) {
  return call.features == ScalarKind::kFloat64 ? Layout<double>(call).size() * 8
                                               : Layout<float>(call).size() * 4;
}

void transform_weights(const MotionOffset& call, int64_t begin, int64_t end, void* weights) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    transform_weights_of<T>(call, begin, end, static_cast<Accumulator<T>*>(weights));
  });
}

int64_t strips(const MotionOffset& call) { return Strips(call).count(call); }

void forward(const MotionOffset& call, const void* weights, int64_t begin, int64_t end, void* scratch) {
  for_feature_type(call.features,
                   [&](auto type) { Kernel<decltype(type)>(call, weights, scratch).forward(begin, end); });
}

}  // namespace

#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _motion_offset_kernels)

extern const MotionOffsetKernels SIFA_TABLE;
const MotionOffsetKernels SIFA_TABLE = {weight_bytes, scratch_bytes, transform_weights, strips, forward};

}  // namespace sifa::cpu
