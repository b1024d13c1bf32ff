// The motion saliency of a vector of features, with an exponential of our own: libm's works on one number at
// a time and would cost more than all the rest. Included once per instruction set, like vector.h.
#pragma once

#include <cstdint>

#include "vector.h"

namespace sifa::cpu {
namespace {

// exp(-x) for x >= -88, within two units in the last place; from 87 up, exp(-87). NaN stays NaN.
// Below -88 the result is anything.
template <int kLanes>
SIFA_INLINE Vector<float, kLanes> exponential_of_negative(Vector<float, kLanes> x) {
  using Floats = Vector<float, kLanes>;
  using Words = Vector<uint32_t, kLanes>;
  const Floats high = Floats{} + 87.f;
  x = x > high ? high : x;
  // -x = n ln 2 - r. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, and 127 more make
  // it the exponent of 2^n.
  constexpr float kShift = 12582912.f + 127.f;
  const Floats shifted = x * -1.44269504f + kShift;
  const Floats n = shifted - kShift;
  const Floats r = (x + n * 0.693359375f) - n * 2.12194440e-4f;
  const Floats power = bit_cast<Floats>(bit_cast<Words>(shifted) << 23);
  // exp(-r) for |r| <= ln 2 / 2: of the polynomials of degree 6 that begin like its series the one whose
  // relative error is the least, 4e-9.
  Floats polynomial = r * 1.386378077e-3f - 8.367482573e-3f;
  polynomial = polynomial * r + 4.166723788e-2f;
  polynomial = polynomial * r - 1.666653454e-1f;
  polynomial = polynomial * r + 0.5f;
  polynomial = polynomial * r - 1.f;
  return (polynomial * r + 1.f) * power;
}

// 1 / x, within a unit in the last place, for 2^-126 < x < 2^126. NaN stays NaN.
template <int kLanes>
SIFA_INLINE Vector<float, kLanes> reciprocal(Vector<float, kLanes> x) {
#if defined(__AVX512F__)
  // A division takes as long as the rest of the sigmoid. One step of Newton's method from 14 bits.
  if constexpr (kLanes == 16) {
    const auto guess = bit_cast<Vector<float, 16>>(_mm512_rcp14_ps(bit_cast<__m512>(x)));
    return guess + guess * (1.f - x * guess);
  }
#endif
  return 1.f / x;
}

// 1 / (1 + exp(-x)), in [0, 1] for every x but NaN, which stays NaN.
template <int kLanes>
SIFA_INLINE Vector<float, kLanes> sigmoid(Vector<float, kLanes> x) {
  using Floats = Vector<float, kLanes>;
  const Floats value = reciprocal<kLanes>(exponential_of_negative<kLanes>(x) + 1.f);
  return x < Floats{} - 87.3f ? Floats{} : value;  // where it is about the smallest normal number
}
template <int kLanes>
SIFA_INLINE Vector<double, kLanes> sigmoid(Vector<double, kLanes> x) {
  Vector<double, kLanes> powers;
  for (int i = 0; i < kLanes; ++i) powers[i] = __builtin_exp(-x[i]);
  return 1. / (powers + 1.);
}

// m of ../motion.h, of query features f and neighbours n.
template <int kLanes, typename Real>
SIFA_INLINE Vector<Real, kLanes> saliency(Vector<Real, kLanes> f, Vector<Real, kLanes> n, bool residual) {
  const auto product = sigmoid<kLanes>(n - f) * n;
  return residual ? product + n : product;
}

// With s = sigmoid(n - f), the derivatives of m = s n (+ n) are
//   dm/df = -s (1 - s) n        dm/dn = s (1 - s) n + s (+ 1)
template <typename Lanes>
struct SaliencySlopes {
  Lanes query, memory;
};
template <int kLanes, typename Real>
SIFA_INLINE SaliencySlopes<Vector<Real, kLanes>> saliency_slopes(Vector<Real, kLanes> f,
                                                                 Vector<Real, kLanes> n, bool residual) {
  const auto s = sigmoid<kLanes>(n - f);
  const auto slope = s * (Real(1) - s) * n;
  return {-slope, slope + s + (residual ? Real(1) : Real(0))};
}

}  // namespace
}  // namespace sifa::cpu
