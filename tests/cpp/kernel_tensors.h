// What the tests of the CPU kernels compare with: values of every element type, tensors of exactly their
// size, and how near a sum must come.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "../../kernels/clip.h"
#include "kernels.h"

namespace sifa {

// --- Values of every element type, as plain as possible --------------------------------------------------

inline int64_t bytes_of(ScalarKind kind) {
  return kind == ScalarKind::kFloat64 ? 8 : kind == ScalarKind::kFloat32 ? 4 : 2;
}

inline const char* name_of(ScalarKind kind) {
  const char* const names[] = {"float32", "float64", "float16", "bfloat16"};
  return names[static_cast<int>(kind)];
}

// Bits of the fraction, counting the leading one.
inline int precision_of(ScalarKind kind) {
  const int digits[] = {24, 53, 11, 8};
  return digits[static_cast<int>(kind)];
}

inline double half_value(uint16_t bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(fraction, -24) : sign * std::ldexp(1024 + fraction, exponent - 25);
}

inline double bfloat16_value(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// The 16-bit pattern whose value is nearest, ties to the even pattern. Both formats are ordered as integers.
template <typename Value>
uint16_t nearest_bits(double x, uint16_t infinity, Value value) {
  if (std::isnan(x)) return infinity + 1;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  uint16_t low = 0, high = infinity;
  while (high - low > 1) {
    const uint16_t middle = low + (high - low) / 2;
    (value(middle) <= x ? low : high) = middle;
  }
  // What would follow the largest finite value decides when it rounds to infinity.
  const double next = high == infinity ? 2 * value(low) - value(low - 1) : value(high);
  const double below = x - value(low), above = next - x;
  const bool up = x >= next || above < below || (above == below && (low & 1));
  return sign | (up ? high : low);
}

inline void write(void* data, ScalarKind kind, int64_t index, double value) {
  switch (kind) {
    case ScalarKind::kFloat32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      return;
    case ScalarKind::kFloat64:
      static_cast<double*>(data)[index] = value;
      return;
    case ScalarKind::kFloat16:
      static_cast<uint16_t*>(data)[index] = nearest_bits(value, 0x7c00, half_value);
      return;
    case ScalarKind::kBFloat16:
      static_cast<uint16_t*>(data)[index] = nearest_bits(value, 0x7f80, bfloat16_value);
      return;
  }
}

inline double read(const void* data, ScalarKind kind, int64_t index) {
  switch (kind) {
    case ScalarKind::kFloat32:
      return static_cast<const float*>(data)[index];
    case ScalarKind::kFloat64:
      return static_cast<const double*>(data)[index];
    case ScalarKind::kFloat16:
      return half_value(static_cast<const uint16_t*>(data)[index]);
    case ScalarKind::kBFloat16:
      return bfloat16_value(static_cast<const uint16_t*>(data)[index]);
  }
  return 0;
}

// A tensor (N, frames, height, width, channels) in memory of exactly its size, so that the address sanitizer
// sees a step outside. With `padding`, there are NaNs between the pixels, and nothing may read them.
struct Tensor {
  ScalarKind kind;
  int64_t shape[5];
  PixelStrides strides;
  int64_t channel_stride = 1;
  std::unique_ptr<unsigned char[]> data;

  Tensor(ScalarKind kind, int64_t n, int64_t t, int64_t h, int64_t w, int64_t c, int64_t padding = 0)
      : kind(kind), shape{n, t, h, w, c}, strides(dense_strides(c + padding, t, h, w)) {
    const int64_t size =
        std::max<int64_t>(0, n * t * h * w * (c + padding) - (n * t * h * w > 0 ? padding : 0));
    data.reset(new unsigned char[static_cast<size_t>(size * bytes_of(kind))]);
    for (int64_t i = 0; i < size; ++i) write(data.get(), kind, i, std::numeric_limits<double>::quiet_NaN());
  }

  // In planes of channels instead, as (N, C, T, H, W); of one without padding, before it is filled.
  void arrange_in_planes() {
    const auto [n, t, h, w, c] = shape;
    strides = {c * t * h * w, h * w, w, 1};
    channel_stride = t * h * w;
  }

  // The same with neither channels nor columns adjacent, as (N, C, H, W, T).
  void arrange_by_frames() {
    const auto [n, t, h, w, c] = shape;
    strides = {c * t * h * w, 1, w * t, t};
    channel_stride = t * h * w;
  }

  int64_t index(int64_t n, int64_t t, int64_t y, int64_t x, int64_t c) const {
    return n * strides.batch + t * strides.frame + y * strides.row + x * strides.column + c * channel_stride;
  }
  double at(int64_t n, int64_t t, int64_t y, int64_t x, int64_t c) const {
    return read(data.get(), kind, index(n, t, y, x, c));
  }
  int64_t bytes() const { return shape[0] * shape[1] * shape[2] * shape[3] * shape[4] * bytes_of(kind); }

  template <typename Value>
  void fill(Value value) {
    for (int64_t n = 0; n < shape[0]; ++n)
      for (int64_t t = 0; t < shape[1]; ++t)
        for (int64_t y = 0; y < shape[2]; ++y)
          for (int64_t x = 0; x < shape[3]; ++x)
            for (int64_t c = 0; c < shape[4]; ++c) write(data.get(), kind, index(n, t, y, x, c), value());
  }
};

// Storing may round by half a unit of the stored type; summing may lose some units of the type it sums in, of
// values that are larger than the result where they cancel.
inline void expect_near(const Tensor& actual, const std::vector<double>& expected, ScalarKind features,
                        const char* what) {
  double largest = 1;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  const double summed = std::ldexp(largest, features == ScalarKind::kFloat64 ? -44 : -16);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = read(actual.data.get(), actual.kind, static_cast<int64_t>(i));
    const double stored = std::ldexp(std::fabs(expected[i]) + summed, -precision_of(actual.kind));
    // Not EXPECT_NEAR: it would pass a NaN.
    ASSERT_TRUE(std::fabs(value - expected[i]) <= summed + stored)
        << what << "[" << i << "] is " << value << ", expected " << expected[i];
  }
}

inline void expect_same_bits(const Tensor& a, const Tensor& b, const char* what) {
  EXPECT_EQ(std::memcmp(a.data.get(), b.data.get(), static_cast<size_t>(a.bytes())), 0) << what;
}

}  // namespace sifa
