// Winograd's F(4x4, 3x3), by which sifa::motion_offset and its backward take their 3x3 convolutions (Lavin
// and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). A tile Y of 4x4 outputs sees a
// window d of 6x6 pixels, and with g the 3x3 weights is
//
//   Y = A [sum_c (G g G') * (B d B')] A'
//
// with the matrices of polynomials evaluated at 0, a, -a, b, -b and infinity: 36 products of matrices that
// take 2.25 multiply-adds per output and channel instead of 9. The points +-3/4 and +-3/2 instead of the
// usual +-1 and +-2 cost nothing and leave a quarter of the error.
//
// The functions multiply a column, of scalars or of vectors, by one of the matrices. Included once per
// instruction set, like vector.h.
#pragma once

#include <cstdint>

#include "vector.h"

namespace sifa::cpu {
namespace {

constexpr int kTile = 4;    // pixels along a side of a tile
constexpr int kWindow = 6;  // and of what it sees
constexpr int kFrequencies = kWindow * kWindow;
// Two of the six rows of B d B' share most of their sums: the first and the last, those of a, and those of b.
constexpr int kPasses = 3;
constexpr int kPatches = kFrequencies / kPasses;  // frequencies of a pass

// Row of B d B', or column, that comes first or second in a pass.
SIFA_INLINE constexpr int frequency_of(int pass, int which) {
  return pass == 0 ? which * (kWindow - 1) : 2 * pass - 1 + which;
}

// The points a and b, and what the matrices are made of.
template <typename Real>
struct Points {
  static constexpr Real a = Real(0.75), b = Real(1.5);
  static constexpr Real aa = a * a, bb = b * b;  // exact, as a and b are
  static constexpr Real zero_weight = 1 / (aa * bb), a_weight = 1 / (2 * aa * (aa - bb)),
                        b_weight = 1 / (2 * bb * (bb - aa));
};

// Two of the six sums that B makes of d, those of a pass: the first and the last, or those of a point and of
// its negative. `at(i)` is d's element i.
template <int kPass, typename Real, typename Lanes, typename At>
SIFA_INLINE void transform_window(const At& at, Lanes& first, Lanes& second) {
  using P = Points<Real>;
  if constexpr (kPass == 0) {
    first = at(4) - (P::aa + P::bb) * at(2) + (P::aa * P::bb) * at(0);
    second = at(5) - (P::aa + P::bb) * at(3) + (P::aa * P::bb) * at(1);
  } else {
    constexpr Real kPoint = kPass == 1 ? P::a : P::b, kOther = kPass == 1 ? P::bb : P::aa;
    const Lanes even = at(4) - kOther * at(2), odd = at(3) - kOther * at(1);
    first = even + kPoint * odd;
    second = even - kPoint * odd;
  }
}

// B d: six of six.
template <typename Real, typename Lanes, typename At>
SIFA_INLINE void transform_window(const At& at, Lanes* result) {
  transform_window<0, Real>(at, result[0], result[5]);
  transform_window<1, Real>(at, result[1], result[2]);
  transform_window<2, Real>(at, result[3], result[4]);
}

// G g: six of three.
template <typename Real, typename Lanes>
SIFA_INLINE void transform_weight(const Lanes* g, Lanes* result) {
  using P = Points<Real>;
  const Lanes even_a = P::a_weight * g[0] + (P::a_weight * P::aa) * g[2], odd_a = (P::a_weight * P::a) * g[1];
  const Lanes even_b = P::b_weight * g[0] + (P::b_weight * P::bb) * g[2], odd_b = (P::b_weight * P::b) * g[1];
  result[0] = P::zero_weight * g[0];
  result[1] = even_a + odd_a;
  result[2] = even_a - odd_a;
  result[3] = even_b + odd_b;
  result[4] = even_b - odd_b;
  result[5] = g[2];
}

// G' p: three of six.
template <typename Real, typename Lanes>
SIFA_INLINE void transform_weight_back(const Lanes* p, Lanes* result) {
  using P = Points<Real>;
  const Lanes even_a = P::a_weight * (p[1] + p[2]), odd_a = P::a_weight * (p[1] - p[2]);
  const Lanes even_b = P::b_weight * (p[3] + p[4]), odd_b = P::b_weight * (p[3] - p[4]);
  result[0] = P::zero_weight * p[0] + even_a + even_b;
  result[1] = P::a * odd_a + P::b * odd_b;
  result[2] = P::aa * even_a + P::bb * even_b + p[5];
}

// A p: four of six.
template <typename Real, typename Lanes>
SIFA_INLINE void transform_products(const Lanes* p, Lanes* result) {
  using P = Points<Real>;
  const Lanes even_a = p[1] + p[2], odd_a = p[1] - p[2], even_b = p[3] + p[4], odd_b = p[3] - p[4];
  result[0] = p[0] + even_a + even_b;
  result[1] = P::a * odd_a + P::b * odd_b;
  result[2] = P::aa * even_a + P::bb * even_b;
  result[3] = p[5] + (P::aa * P::a) * odd_a + (P::bb * P::b) * odd_b;
}

// Two of the six sums that A' makes of four, those of a pass, as transform_window.
template <int kPass, typename Real, typename Lanes, typename At>
SIFA_INLINE void transform_output_back(const At& at, Lanes& first, Lanes& second) {
  using P = Points<Real>;
  if constexpr (kPass == 0) {
    first = at(0);
    second = at(3);
  } else {
    constexpr Real kPoint = kPass == 1 ? P::a : P::b, kSquare = kPoint * kPoint;
    const Lanes even = at(0) + kSquare * at(2), odd = kPoint * at(1) + (kSquare * kPoint) * at(3);
    first = even + odd;
    second = even - odd;
  }
}

// A' y: six of four.
template <typename Real, typename Lanes, typename At>
SIFA_INLINE void transform_output_back(const At& at, Lanes* result) {
  transform_output_back<0, Real>(at, result[0], result[5]);
  transform_output_back<1, Real>(at, result[1], result[2]);
  transform_output_back<2, Real>(at, result[3], result[4]);
}

}  // namespace
}  // namespace sifa::cpu
