// The CPU kernel of sifa::motion_offset: the 3x3 convolution of the motion saliency, which never leaves the
// caches. Compiled once per instruction set, like inter_frame_attention_kernels.cpp; see there.
//
// 18 outputs fill no vector well, so a lane is a place, not an output, and the convolution is Winograd's, of
// winograd.h: 36 products of matrices (outputs x channels) by (channels x tiles).
//
// Of a group of tiles, and kChannelsAtOnce channels at a time, the kernel computes
//   saliency   of the windows' pixels, as motion_strips.h lays it out
//   patches    B d B', [frequency][channel][place], a third of the 36 frequencies at a time
//   products   [frequency][output][place], summed over the channels in their order
// and at last the outputs. A place is where a tile stands in its group. Every lane does the same, so nothing
// depends on how tiles are grouped.
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
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kOutputs = 9, kVectors = 3;
#else
constexpr int kOutputs = 6, kVectors = 2;
#endif
// Half or twice the places took 3 to 8 % longer.
constexpr int64_t kPlacesAtOnce = 112;
// Channels whose patches are written and multiplied at once, and whose sum is added to the others as one:
// long sums of products that then cancel are where nearly all of the rounding errors come from. Of 128
// channels this leaves half of the error.
constexpr int kChannelsSummed = 16;

// Sizes of the scratch, in elements, every one of them whole vectors.
template <typename Real>
struct Layout {
  static constexpr int64_t kLanes = kWide<Real>;
  int64_t saliency_size;
  int64_t places;  // distance between the channels of the patches, and between those of the products
  int64_t blocks;  // of outputs

  Layout(const MotionOffset& call, const Strips& strips, int64_t saliency_size)
      : saliency_size(saliency_size), blocks(divide_up(call.outputs, kOutputs)) {
    const int64_t most = smaller(strips.at_once(), strips.count(call));
    // An odd number of vectors: powers of two would fall on the same lines of the cache.
    places = (divide_up(most * strips.tiles, kLanes) | 1) * kLanes;
  }

  SIFA_INLINE int64_t patch_size() const { return kChannelsSummed * places; }      // of one frequency
  SIFA_INLINE int64_t product_size() const { return blocks * kOutputs * places; }  // of one frequency
  SIFA_INLINE int64_t size() const {
    return saliency_size + kPatches * patch_size() + kFrequencies * product_size();
  }
};

// [frequency][block of outputs][channel][output of the block]
template <typename Real>
SIFA_INLINE Real* weight_at(Real* weights, const MotionOffset& call, int64_t blocks, int frequency,
                            int64_t block, int64_t c) {
  return weights + ((frequency * blocks + block) * call.channels + c) * kOutputs;
}

// G times a column of g, for the outputs of a block.
template <typename Real>
SIFA_INLINE void transform_block(const Real (*g)[kOutputs], Real (*result)[kOutputs]) {
  for (int o = 0; o < kOutputs; ++o) {
    const Real column[3] = {g[0][o], g[1][o], g[2][o]};
    Real transformed[kWindow];
    transform_weight<Real>(column, transformed);
    for (int i = 0; i < kWindow; ++i) result[i][o] = transformed[i];
  }
}

template <typename T, typename Real = Accumulator<T>>
void transform_weights_of(const MotionOffset& call, int64_t begin, int64_t end, Real* weights) {
  const int64_t blocks = divide_up(call.outputs, kOutputs);
  const WeightStrides& strides = call.weight_strides;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t count = smaller(kOutputs, call.outputs - block * kOutputs);
    for (int64_t c = begin; c < end; ++c) {
      Real g[3][3][kOutputs] = {}, half[3][kWindow][kOutputs], across[kWindow][3][kOutputs],
           transformed[kWindow][kOutputs];
      for (int64_t o = 0; o < count; ++o) {
        const T* source = static_cast<const T*>(call.weight) + (block * kOutputs + o) * strides.output +
                          c * strides.channel;
        for (int i = 0; i < 3; ++i) {
          for (int j = 0; j < 3; ++j) g[j][i][o] = load_one(source + i * strides.row + j * strides.column);
        }
      }
      for (int j = 0; j < 3; ++j) transform_block<Real>(g[j], half[j]);
      for (int row = 0; row < kWindow; ++row) {
        for (int j = 0; j < 3; ++j) std::memcpy(across[row][j], half[j][row], sizeof(half[j][row]));
        transform_block<Real>(across[row], transformed);
        for (int column = 0; column < kWindow; ++column) {
          std::memcpy(weight_at(weights, call, blocks, row * kWindow + column, block, c), transformed[column],
                      sizeof(transformed[column]));
        }
      }
    }
  }
}

// 16 bytes of every kNarrow-th of kLanes vectors in memory, the first of which are at `source`.
template <int kLanes, typename Real>
SIFA_INLINE Vector<Real, kLanes> load_chunks(const Real* source) {
#if defined(__AVX2__)
  const auto at = [&](int i) __attribute__((always_inline)) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(source + i * kNarrow<Real> * kLanes));
  };
  const auto two = [&](int i) __attribute__((always_inline)) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(at(i)), at(i + 1), 1);
  };
#if defined(__AVX512F__)
  return bit_cast<Vector<Real, kLanes>>(_mm512_insertf32x8(_mm512_castps256_ps512(two(0)), two(2), 1));
#else
  return bit_cast<Vector<Real, kLanes>>(two(0));
#endif
#else
  static_assert(kLanes == kNarrow<Real>, "vectors of 16 bytes");
  return load<kLanes>(source);
#endif
}

// Calls store(i, lane i of every vector) for `count` lanes of kLanes vectors in memory. Most of the way is
// made by loads, only the rest, within 16 bytes, by shuffles, of which the processor does one at a time:
// three times as fast as perfect shuffles of registers.
template <typename Real, typename Store>
SIFA_INLINE void transpose(const Vector<Real, kWide<Real>>* vectors, int64_t count, const Store& store) {
  constexpr int kLanes = kWide<Real>, kChunk = kNarrow<Real>;
  const Real* source = reinterpret_cast<const Real*>(vectors);
  for (int i = 0; i < count; i += kChunk, source += kChunk) {
    Vector<Real, kLanes> chunks[kChunk], result[kChunk];
    for (int j = 0; j < kChunk; ++j) chunks[j] = load_chunks<kLanes>(source + j * kLanes);
    if constexpr (kChunk == 2) {
      result[0] = interleave<0, 1, kLanes, Real>(chunks[0], chunks[1]);
      result[1] = interleave<1, 1, kLanes, Real>(chunks[0], chunks[1]);
    } else {
      const auto a = interleave<0, 1, kLanes, Real>(chunks[0], chunks[1]);
      const auto b = interleave<1, 1, kLanes, Real>(chunks[0], chunks[1]);
      const auto c = interleave<0, 1, kLanes, Real>(chunks[2], chunks[3]);
      const auto d = interleave<1, 1, kLanes, Real>(chunks[2], chunks[3]);
      result[0] = interleave<0, 2, kLanes, Real>(a, c);
      result[1] = interleave<1, 2, kLanes, Real>(a, c);
      result[2] = interleave<0, 2, kLanes, Real>(b, d);
      result[3] = interleave<1, 2, kLanes, Real>(b, d);
    }
    for (int j = 0; j < kChunk && i + j < count; ++j) store(i + j, result[j]);
  }
}

template <typename T, typename Real = Accumulator<T>>
class Kernel {
 public:
  Kernel(const MotionOffset& call, const void* weights, void* scratch)
      : call_(call),
        strips_(call, kPlacesAtOnce),
        strip_saliency_(call, strips_),
        layout_(call, strips_, strip_saliency_.group_size()),
        weights_(static_cast<const Real*>(weights)),
        saliency_(static_cast<Real*>(scratch)),
        patches_(saliency_ + layout_.saliency_size),
        products_(patches_ + kPatches * layout_.patch_size()) {}

  void forward(int64_t begin, int64_t end) {
    const int64_t most = strips_.at_once();
    for (; begin < end; begin += most) group(begin, smaller(begin + most, end));
  }

 private:
  static constexpr int kLanes = kWide<Real>;
  using Lanes = Vector<Real, kLanes>;

  // A tile: the first pixel of its window, its first output, and how many of its rows and columns are inside
  // the frame.
  struct Place {
    const Real* window;
    T* target;
    int64_t rows, columns;
  };

  void group(int64_t begin, int64_t end) {
    number_ = 0;
    const Real* saliency = saliency_;
    for_runs(call_, strips_, begin, end, [&](const Run& run) {
      add_places(run, saliency);
      saliency += strip_saliency_.run_size(run);
    });
    for (int64_t channel = 0; channel < call_.channels; channel += kChannelsAtOnce) {
      const int64_t count = smaller(kChannelsAtOnce, call_.channels - channel);
      if (channel + count == call_.channels) fetch_output();
      strip_saliency_.write(begin, end, channel, count, saliency_);
      for (int64_t first = 0; first < count; first += kChannelsSummed) {
        const int64_t summed = smaller(kChannelsSummed, count - first);
        write_patches<0>(first, summed);
        multiply(0, channel + first, summed);
        write_patches<1>(first, summed);
        multiply(1, channel + first, summed);
        write_patches<2>(first, summed);
        multiply(2, channel + first, summed);
      }
    }
    write_output();
  }

  SIFA_INLINE void add_places(const Run& run, const Real* saliency) {
    for (int64_t row = 0; row < run.count; ++row) {
      for (int64_t column = 0; column < strips_.tiles; ++column) {
        const int64_t y = kTile * (run.first + row), x = kTile * (run.piece * strips_.tiles + column);
        const int64_t pixel = ((run.n * call_.frames + run.t) * call_.height + y) * call_.width + x;
        places_[number_++] = {
            saliency + strip_saliency_.window(row, column),
            static_cast<T*>(call_.output) + pixel * call_.outputs,
            smaller(kTile, call_.height - y),
            smaller(kTile, call_.width - x),
        };
      }
    }
  }

  // Fetches what the group writes into the second-level cache, while there is enough else to do: a fiftieth
  // of the time.
  SIFA_INLINE void fetch_output() const {
    for (int64_t i = 0; i < number_; ++i) {
      const Place& place = places_[i];
      const int64_t bytes = place.columns * call_.outputs * static_cast<int64_t>(sizeof(T));
      for (int64_t row = 0; row < place.rows; ++row) {
        const char* target = reinterpret_cast<const char*>(place.target + row * call_.width * call_.outputs);
        for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(target + byte, 1, 2);
      }
    }
  }

  SIFA_INLINE int64_t vectors() const { return divide_up(number_, kLanes); }

  // Two rows of B d B' of every tile of the group, of `count` of the channels in saliency_: computed with a
  // channel in each lane, then transposed.
  template <int kPass>
  void write_patches(int64_t channel, int64_t count) {
    const int64_t row = strip_saliency_.row_size();
    for (int64_t first = 0; first < number_; first += kLanes) {
      for (int64_t c = 0; c < count; c += kLanes) {
        Lanes patches[kPatches][kLanes];
        for (int i = 0; i < kLanes; ++i) {
          if (first + i >= number_) {  // numbers, rather than what was there before
            for (int k = 0; k < kPatches; ++k) patches[k][i] = Lanes{};
            continue;
          }
          const Real* window = places_[first + i].window + (channel + c) * strip_saliency_.columns();
          Lanes upper[kWindow], lower[kWindow];
          for (int column = 0; column < kWindow; ++column, window += kLanes) {
            transform_window<kPass, Real>(
                [&](int y) __attribute__((always_inline)) { return load<kLanes>(window + y * row); },
                upper[column], lower[column]);
          }
          transform_row(upper, patches, i);
          transform_row(lower, patches + kWindow, i);
        }
        for (int k = 0; k < kPatches; ++k) {
          Real* target = patches_ + k * layout_.patch_size() + c * layout_.places + first;
          transpose<Real>(patches[k], smaller(kLanes, count - c),
                          [&](int64_t i, Lanes places) __attribute__((always_inline)) {
                            store<kLanes>(target + i * layout_.places, places);
                          });
        }
      }
    }
  }

  SIFA_INLINE void transform_row(const Lanes* row, Lanes (*patches)[kLanes], int i) {
    Lanes transformed[kWindow];
    transform_window<Real>([&](int x) __attribute__((always_inline)) { return row[x]; }, transformed);
    for (int k = 0; k < kWindow; ++k) patches[k][i] = transformed[k];
  }

  // Adds the products of `count` channels from `channel` on to the frequencies of a pass.
  void multiply(int pass, int64_t channel, int64_t count) {
    for (int k = 0; k < kPatches; ++k) {
      const int frequency = frequency_of(pass, k / kWindow) * kWindow + k % kWindow;
      const Real* patches = patches_ + k * layout_.patch_size();
      for (int64_t block = 0; block < layout_.blocks; ++block) {
        const Real* weights = weight_at(weights_, call_, layout_.blocks, frequency, block, channel);
        Real* products = products_ + frequency * layout_.product_size() + block * kOutputs * layout_.places;
        const int64_t all = vectors();
        int64_t done = 0;
        // Rather 2 + 2 than 3 + 1 at the end: a block of one vector is loads more than products.
        for (; all - done >= kVectors && all - done != kVectors + 1; done += kVectors)
          multiply_block<kVectors>(weights, patches + done * kLanes, count, channel == 0,
                                   products + done * kLanes);
        for (; all - done >= 2; done += 2)
          multiply_block<2>(weights, patches + done * kLanes, count, channel == 0, products + done * kLanes);
        for (; done < all; ++done)
          multiply_block<1>(weights, patches + done * kLanes, count, channel == 0, products + done * kLanes);
      }
    }
  }

  template <int kBlock>
  SIFA_INLINE void multiply_block(const Real* weights, const Real* patches, int64_t count, bool first,
                                  Real* products) {
    const int64_t pitch = layout_.places;
    Lanes sums[kOutputs][kBlock] = {};
    for (int64_t c = 0; c < count; ++c) {
      Lanes patch[kBlock];
      for (int v = 0; v < kBlock; ++v) patch[v] = load<kLanes>(patches + c * pitch + v * kLanes);
      for (int o = 0; o < kOutputs; ++o) {
        for (int v = 0; v < kBlock; ++v) sums[o][v] += patch[v] * weights[c * kOutputs + o];
      }
    }
    for (int o = 0; o < kOutputs; ++o) {
      for (int v = 0; v < kBlock; ++v) {
        Real* product = products + o * pitch + v * kLanes;
        store<kLanes>(product, first ? sums[o][v] : load<kLanes>(product) + sums[o][v]);
      }
    }
  }

  // A P A' of every tile, and from outputs by tiles to pixels of adjacent outputs: whole vectors of them, and
  // with the last of these a few more, the last two of 18, say.
  void write_output() {
    constexpr int64_t kMore = kLanes / 4;
    for (int64_t first = 0; first < number_; first += kLanes) {
      const int64_t tiles = smaller(kLanes, number_ - first);
      for (int64_t o = 0; o < call_.outputs;) {
        const int64_t left = call_.outputs - o, count = left > kLanes + kMore ? kLanes : left;
        Lanes values[kTile * kTile][kLanes + kMore] = {};
        for (int64_t i = 0; i < count; ++i) inverse(products_ + (o + i) * layout_.places + first, values, i);
        for (int pixel = 0; pixel < kTile * kTile; ++pixel) {
          const int64_t row = pixel / kTile, column = pixel % kTile;
          transpose<Real>(values[pixel], tiles, [&](int64_t i, Lanes outputs) __attribute__((always_inline)) {
            const Place& place = places_[first + i];
            if (row >= place.rows || column >= place.columns) return;
            T* target = place.target + (row * call_.width + column) * call_.outputs + o;
            store_some(target, outputs, count);
            for (int64_t k = kLanes; k < count; ++k) store_one(target + k, values[pixel][k][i]);
          });
        }
        o += count;
      }
    }
  }

  SIFA_INLINE void inverse(const Real* products, Lanes (*values)[kLanes + kLanes / 4], int64_t i) {
    Lanes half[kTile][kWindow];
    for (int column = 0; column < kWindow; ++column) {
      Lanes p[kWindow], transformed[kTile];
      for (int row = 0; row < kWindow; ++row)
        p[row] = load<kLanes>(products + (row * kWindow + column) * layout_.product_size());
      transform_products<Real>(p, transformed);
      for (int row = 0; row < kTile; ++row) half[row][column] = transformed[row];
    }
    for (int row = 0; row < kTile; ++row) {
      Lanes transformed[kTile];
      transform_products<Real>(half[row], transformed);
      for (int column = 0; column < kTile; ++column) values[row * kTile + column][i] = transformed[column];
    }
  }

  const MotionOffset& call_;
  const Strips strips_;
  const StripSaliency<T> strip_saliency_;
  const Layout<Real> layout_;
  const Real* const weights_;
  Real* const saliency_;
  Real* const patches_;
  Real* const products_;
  Place places_[kPlacesAtOnce];
  int64_t number_ = 0;  // of places
};

int64_t weight_bytes(const MotionOffset& call) {
  const int64_t count = kFrequencies * divide_up(call.outputs, kOutputs) * kOutputs * call.channels;
  return count * (call.features == ScalarKind::kFloat64 ? 8 : 4);
}

int64_t scratch_bytes(const MotionOffset& call) {
  return for_feature_type(call.features, [&](auto type) {
    using Real = Accumulator<decltype(type)>;
    const Strips strips(call, kPlacesAtOnce);
    const int64_t saliency_size = StripSaliency<decltype(type)>(call, strips).group_size();
    return Layout<Real>(call, strips, saliency_size).size() * static_cast<int64_t>(sizeof(Real));
  });
}

void transform_weights(const MotionOffset& call, int64_t begin, int64_t end, void* weights) {
  for_feature_type(call.features, [&](auto type) {
    using T = decltype(type);
    transform_weights_of<T>(call, begin, end, static_cast<Accumulator<T>*>(weights));
  });
}

int64_t strips(const MotionOffset& call) { return Strips(call, kPlacesAtOnce).count(call); }

void forward(const MotionOffset& call, const void* weights, int64_t begin, int64_t end, void* scratch) {
  for_feature_type(call.features,
                   [&](auto type) { Kernel<decltype(type)>(call, weights, scratch).forward(begin, end); });
}

}  // namespace

#define SIFA_TABLE SIFA_JOIN(SIFA_CPU_CAPABILITY, _motion_offset_kernels)

extern const MotionOffsetKernels SIFA_TABLE;
const MotionOffsetKernels SIFA_TABLE = {weight_bytes, scratch_bytes, transform_weights, strips, forward};

}  // namespace sifa::cpu
