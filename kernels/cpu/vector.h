// Vectors of the compiler's own kind (GCC and Clang vector extensions), just wide enough for the kernels:
// load, store, sum, and a loop over channels. Included only by the *_kernels.cpp, once per instruction set,
// hence in an unnamed namespace: nothing in it may be shared between objects compiled for different
// processors.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define SIFA_INLINE inline __attribute__((always_inline))

namespace sifa::cpu {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that values of T are computed and accumulated in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;  // that hold vectors
#else
constexpr int kRegisters = 16;
#endif

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T, int kLanes>
struct VectorType {
  typedef T type __attribute__((vector_size(sizeof(T) * kLanes)));
};
template <typename T, int kLanes>
using Vector = typename VectorType<T, kLanes>::type;

template <typename V, typename W>
SIFA_INLINE V bit_cast(const W& value) {
  static_assert(sizeof(V) == sizeof(W), "same size");
  V result;
  std::memcpy(&result, &value, sizeof(V));
  return result;
}

template <typename V>
SIFA_INLINE V load_bits(const void* source) {
  V result;
  std::memcpy(&result, source, sizeof(V));
  return result;
}

template <typename Real>
constexpr int kWide = kVectorBytes / static_cast<int>(sizeof(Real));  // lanes of the processor's own vectors
template <typename Real>
constexpr int kNarrow = 16 / static_cast<int>(sizeof(Real));  // lanes of 16 bytes

// Two vectors of the processor's: what is loaded of bfloat16 at once.
template <typename V>
struct Pair {
  V first, second;

  SIFA_INLINE Pair& operator+=(const Pair& other) {
    first += other.first;
    second += other.second;
    return *this;
  }
  SIFA_INLINE friend Pair operator+(const Pair& a, const Pair& b) {
    return {a.first + b.first, a.second + b.second};
  }
  SIFA_INLINE friend Pair operator*(const Pair& a, const Pair& b) {
    return {a.first * b.first, a.second * b.second};
  }
  template <typename Real>
  SIFA_INLINE friend Pair operator*(const Pair& a, Real factor) {
    return {a.first * factor, a.second * factor};
  }
};

// kLanes values in the type that they are computed in.
template <typename Real, int kLanes, bool kTwo = (kLanes > kWide<Real>)>
struct BlockType {
  using type = Vector<Real, kLanes>;
};
template <typename Real, int kLanes>
struct BlockType<Real, kLanes, true> {
  using type = Pair<Vector<Real, kLanes / 2>>;
};
template <typename Real, int kLanes>
using Block = typename BlockType<Real, kLanes>::type;

// load and store of kLanes adjacent elements. A pair of bfloat16 holds the even elements first and the odd
// ones second; every load and store of a pair is paired alike, so sums over channels need no other order.
template <int kLanes>
SIFA_INLINE Block<float, kLanes> load(const float* source) {
  if constexpr (kLanes >
                kWide<float>) {  // vector by vector: copied whole, a pair would pass through the stack
    using One = Vector<float, kLanes / 2>;
    return {load_bits<One>(source), load_bits<One>(source + kLanes / 2)};
  } else {
    return load_bits<Vector<float, kLanes>>(source);
  }
}
template <int kLanes>
SIFA_INLINE Vector<double, kLanes> load(const double* source) {
  return load_bits<Vector<double, kLanes>>(source);
}
template <int kLanes>
SIFA_INLINE void store(float* target, const Block<float, kLanes>& value) {
  if constexpr (kLanes > kWide<float>) {
    std::memcpy(target, &value.first, sizeof(value.first));
    std::memcpy(target + kLanes / 2, &value.second, sizeof(value.second));
  } else {
    std::memcpy(target, &value, sizeof(value));
  }
}
template <int kLanes>
SIFA_INLINE void store(double* target, const Vector<double, kLanes>& value) {
  std::memcpy(target, &value, sizeof(value));
}

// bfloat16 is the upper half of a float32. Stores round to nearest, ties to even; a NaN stays one.
template <int kLanes>
SIFA_INLINE Vector<uint32_t, kLanes> bfloat16_in_upper_half(Vector<float, kLanes> value) {
  using Words = Vector<uint32_t, kLanes>;
  const auto bits = bit_cast<Words>(value);
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Words is_nan = bit_cast<Words>((bits & 0x7fffffffu) > 0x7f800000u);
  return (is_nan & (bits | 0x400000u)) | (~is_nan & rounded);
}
// By pairs there is nothing to widen: one load, and an instruction for each of its two vectors.
template <int kLanes>
SIFA_INLINE Block<float, kLanes> load(const BFloat16* source) {
  if constexpr (kLanes > kWide<float>) {
    const auto words = load_bits<Vector<uint32_t, kLanes / 2>>(source);
    return {bit_cast<Vector<float, kLanes / 2>>(words << 16),
            bit_cast<Vector<float, kLanes / 2>>(words & 0xffff0000u)};
  } else {
    const auto half_words = load_bits<Vector<uint16_t, kLanes>>(source);
    return bit_cast<Vector<float, kLanes>>(__builtin_convertvector(half_words, Vector<uint32_t, kLanes>)
                                           << 16);
  }
}
template <int kLanes>
SIFA_INLINE void store(BFloat16* target, const Block<float, kLanes>& value) {
  if constexpr (kLanes > kWide<float>) {
    const auto words = (bfloat16_in_upper_half<kLanes / 2>(value.first) >> 16) |
                       (bfloat16_in_upper_half<kLanes / 2>(value.second) & 0xffff0000u);
    std::memcpy(target, &words, sizeof(words));
  } else {
    const auto half_words =
        __builtin_convertvector(bfloat16_in_upper_half<kLanes>(value) >> 16, Vector<uint16_t, kLanes>);
    std::memcpy(target, &half_words, sizeof(half_words));
  }
}

// float16 by integer arithmetic, for processors and widths without an instruction for it. A subnormal half is
// n * 2^-24, read off as (0.5 + n * 2^-24) - 0.5, which is exact and does not pass through subnormal floats.
template <int kLanes>
SIFA_INLINE Vector<float, kLanes> half_to_float(Vector<uint16_t, kLanes> half) {
  using Words = Vector<uint32_t, kLanes>;
  using Floats = Vector<float, kLanes>;
  const Words bits = __builtin_convertvector(half, Words);
  const Words sign = (bits & 0x8000u) << 16;
  const Words magnitude = bits & 0x7fffu;
  const Words is_subnormal = bit_cast<Words>(magnitude < 0x400u);
  const Words is_special = bit_cast<Words>(magnitude >= 0x7c00u);
  const Words normal = (magnitude << 13) + 0x38000000u + (is_special & 0x38000000u);
  const Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude | 0x3f000000u) - 0.5f);
  return bit_cast<Floats>(sign | (is_subnormal & subnormal) | (~is_subnormal & normal));
}
template <int kLanes>
SIFA_INLINE Vector<uint16_t, kLanes> float_to_half(Vector<float, kLanes> value) {
  using Words = Vector<uint32_t, kLanes>;
  using Floats = Vector<float, kLanes>;
  const auto bits = bit_cast<Words>(value);
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is subnormal: adding 0.5 leaves it, rounded by the addition, in the low bits.
  const Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  const Words normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words is_subnormal = bit_cast<Words>(magnitude < 0x38800000u);
  const Words is_infinite = bit_cast<Words>(magnitude >= 0x477ff000u);  // 65520 and above, infinity
  const Words is_nan = bit_cast<Words>(magnitude > 0x7f800000u);
  Words result = (is_subnormal & subnormal) | (~is_subnormal & normal);
  result = (is_infinite & 0x7c00u) | (~is_infinite & result);
  result = (is_nan & 0x7e00u) | (~is_nan & result);
  return __builtin_convertvector(sign | result, Vector<uint16_t, kLanes>);
}

template <int kLanes>
SIFA_INLINE Vector<float, kLanes> load(const Half* source) {
#if defined(__F16C__)
  if constexpr (kLanes == 4) {
    return bit_cast<Vector<float, 4>>(
        _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source))));
  } else if constexpr (kLanes == 8) {
    return bit_cast<Vector<float, 8>>(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
  }
#if defined(__AVX512F__)
  if constexpr (kLanes == 16) {
    return bit_cast<Vector<float, 16>>(
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
  }
#endif
#elif defined(__ARM_NEON) && defined(__aarch64__)
  if constexpr (kLanes == 4) {
    return bit_cast<Vector<float, 4>>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&source->bits))));
  }
#endif
  return half_to_float<kLanes>(load_bits<Vector<uint16_t, kLanes>>(source));
}
template <int kLanes>
SIFA_INLINE void store(Half* target, Vector<float, kLanes> value) {
#if defined(__F16C__)
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  if constexpr (kLanes == 4) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(target), _mm_cvtps_ph(bit_cast<__m128>(value), kNearest));
    return;
  } else if constexpr (kLanes == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(bit_cast<__m256>(value), kNearest));
    return;
  }
#if defined(__AVX512F__)
  if constexpr (kLanes == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        _mm512_cvtps_ph(bit_cast<__m512>(value), kNearest));
    return;
  }
#endif
#elif defined(__ARM_NEON) && defined(__aarch64__)
  if constexpr (kLanes == 4) {
    vst1_u16(&target->bits, vreinterpret_u16_f16(vcvt_f16_f32(bit_cast<float32x4_t>(value))));
    return;
  }
#endif
  const auto half_words = float_to_half<kLanes>(value);
  std::memcpy(target, &half_words, sizeof(half_words));
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

// Of 16 bytes of a and 16 of b, the first (kHalf 0) or the second halves, interleaved in units of kUnit
// lanes.
template <int kHalf, int kUnit, int kLanes, typename Real>
SIFA_INLINE Vector<Real, kLanes> interleave(Vector<Real, kLanes> a, Vector<Real, kLanes> b) {
  constexpr int kChunk = kNarrow<Real>;
  Vector<Integer<Real>, kLanes> from{};
  for (int i = 0; i < kLanes; ++i) {
    const int unit = i % kChunk / kUnit, lane = (kHalf * kChunk / kUnit / 2 + unit / 2) * kUnit + i % kUnit;
    from[i] = i / kChunk * kChunk + lane + unit % 2 * kLanes;
  }
  return shuffle<kLanes, Real>(a, b, from);
}

// Keeps a value that was loaded in a register: GCC would load it again for each of its uses.
template <typename V>
SIFA_INLINE void keep([[maybe_unused]] V& value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == kVectorBytes) asm("" : "+v"(value));
#elif defined(__x86_64__)
  if constexpr (sizeof(V) == kVectorBytes) asm("" : "+x"(value));
#endif
}

template <typename T>
SIFA_INLINE Accumulator<T> load_one(const T* source) {
  return load<1>(source)[0];
}
template <typename T>
SIFA_INLINE void store_one(T* target, Accumulator<T> value) {
  store<1>(target, Vector<Accumulator<T>, 1>{value});
}

template <int kCount>
struct Lanes {
  static constexpr int value = kCount;
};

// Channels are done in blocks as wide as the processor's vectors (bfloat16: two of them), then in vectors of
// 16 bytes, then one by one.
template <typename T>
constexpr int kWidest = kWide<Accumulator<T>>;
template <>
constexpr int kWidest<BFloat16> = 2 * kWide<float>;

template <typename T, typename Body>
SIFA_INLINE void for_channels(int64_t count, const Body& body) {
  constexpr int kShort = kNarrow<Accumulator<T>>;
  int64_t c = 0;
  for (; c + kWidest<T> <= count; c += kWidest<T>) body(Lanes<kWidest<T>>{}, c);
  if constexpr (kWidest<T> > kShort) {
    for (; c + kShort <= count; c += kShort) body(Lanes<kShort>{}, c);
  }
  for (; c < count; ++c) body(Lanes<1>{}, c);
}

// for_channels with eight vectors at a time while there are as many, then with four: body(lanes, block, c)
// handles block * lanes channels.
template <typename T, typename Body>
SIFA_INLINE void for_channel_blocks(int64_t count, const Body& body) {
  constexpr int kFour = 4 * kWide<Accumulator<T>> / kWidest<T>;
  int64_t done = 0;
  for (; done + 2 * kFour * kWidest<T> <= count; done += 2 * kFour * kWidest<T>) {
    body(Lanes<kWidest<T>>{}, Lanes<2 * kFour>{}, done);
  }
  for (; done + kFour * kWidest<T> <= count; done += kFour * kWidest<T>) {
    body(Lanes<kWidest<T>>{}, Lanes<kFour>{}, done);
  }
  for_channels<T>(count - done, [&](auto lanes, int64_t c)
                                    __attribute__((always_inline)) { body(lanes, Lanes<1>{}, done + c); });
}

// The sum of the 16 bytes that a vector is made of.
template <typename Real, int kLanes>
SIFA_INLINE Vector<Real, kNarrow<Real>> fold(const Vector<Real, kLanes>& value) {
  if constexpr (kLanes == kNarrow<Real>) {
    return value;
  } else {
    Vector<Real, kLanes / 2> halves[2];
    static_assert(sizeof(halves) == sizeof(value), "two halves");
    std::memcpy(halves, &value, sizeof(value));
    return fold<Real, kLanes / 2>(halves[0] + halves[1]);
  }
}

// A sum over channels, taken in for_channels.
template <typename T, typename Real = Accumulator<T>>
class ChannelSum {
 public:
  template <int kLanes>
  SIFA_INLINE void add(const Block<Real, kLanes>& value) {
    if constexpr (kLanes > kWide<Real>) {
      sum_ += value.first;
      sum_ += value.second;
    } else if constexpr (kLanes == kWide<Real>) {
      sum_ += value;
    } else {
      Vector<Real, kWide<Real>> widened{};
      std::memcpy(&widened, &value, sizeof(value));
      sum_ += widened;
    }
  }

  SIFA_INLINE friend ChannelSum operator+(ChannelSum a, const ChannelSum& b) {
    a.sum_ += b.sum_;
    return a;
  }

  // The total of all lanes.
  SIFA_INLINE Real total() const {
    auto lanes = fold<Real, kWide<Real>>(sum_);
    if constexpr (kNarrow<Real> == 4)
      lanes += shuffle<4, Real>(lanes, lanes, Vector<Integer<Real>, 4>{2, 3, 0, 1});
    return lanes[0] + lanes[1];
  }

  SIFA_INLINE const Vector<Real, kWide<Real>>& lanes() const { return sum_; }

 private:
  Vector<Real, kWide<Real>> sum_{};
};

// The totals of kCount sums, so many at a time as 16 bytes hold: interleaved and added, not one by one.
template <int kCount, typename T, typename Real = Accumulator<T>>
SIFA_INLINE void total(const ChannelSum<T>* sums, Real* totals) {
  constexpr int kLanes = kWide<Real>, kAtOnce = kNarrow<Real>;
  static_assert(kCount % kAtOnce == 0, "whole vectors");
  const auto pair = [&](int i) __attribute__((always_inline)) {
    return interleave<0, 1, kLanes, Real>(sums[i].lanes(), sums[i + 1].lanes()) +
           interleave<1, 1, kLanes, Real>(sums[i].lanes(), sums[i + 1].lanes());
  };
  for (int i = 0; i < kCount; i += kAtOnce) {
    auto all = pair(i);
    if constexpr (kAtOnce == 4) {
      const auto next = pair(i + 2);
      all = interleave<0, 2, kLanes, Real>(all, next) + interleave<1, 2, kLanes, Real>(all, next);
    }
    const auto result = fold<Real, kLanes>(all);
    std::memcpy(totals + i, &result, sizeof(result));
  }
}

}  // namespace
}  // namespace sifa::cpu
