// In which order the CUDA kernels go through the pixels of a clip, so that blocks of threads work on
// neighbours: frame by frame, in strips of kStrip columns, row by row within a strip.
//
// `Index` is uint32_t where all numbers have at most 31 bits, as allows_packs() of
// inter_frame_attention.cuh sees to, else uint64_t.
#pragma once

#include <cstdint>

#include "../clip.h"

namespace sifa::cuda {

constexpr int kStrip = 8;

// Divides by a number that is known before the launch; numbers of 31 bits without a division.
template <typename Index>
class Divisor {
 public:
  explicit Divisor(int64_t divisor) : divisor_(static_cast<Index>(divisor)) {
    while ((uint64_t(1) << shift_) < divisor_) ++shift_;
    shift_ += 31;
    // Rounded up by less than 1, which moves the quotient of a number of 31 bits by less than 1 / divisor.
    if (sizeof(Index) == 4) {
      multiplier_ = static_cast<uint32_t>(((uint64_t(1) << shift_) + divisor_ - 1) / divisor_);
    }
  }

  // Replaces `number` by its quotient and returns the remainder.
  __device__ __forceinline__ Index split(Index& number) const {
    const Index whole = number;
    if constexpr (sizeof(Index) == 4) {
      number = static_cast<uint32_t>(static_cast<uint64_t>(whole) * multiplier_ >> shift_);
    } else {
      number = whole / divisor_;
    }
    return whole - number * divisor_;
  }

  __device__ __forceinline__ Index times(Index number) const { return number * divisor_; }

 private:
  Index divisor_;
  uint32_t multiplier_ = 0, shift_ = 0;
};

// A unit: one group of channels of one pixel. `index` is its place in a dense tensor (N, T, H, W, groups).
template <typename Index>
struct Unit {
  Index batch, t, y, x, group, index;
};

template <typename Index>
class Walk {
 public:
  int64_t units;

  Walk(int64_t batch, int64_t frames, int64_t height, int64_t width, int64_t groups)
      : units(batch * frames * height * width * groups),
        width_(static_cast<Index>(width)),
        full_strips_(static_cast<Index>(width / kStrip)),
        groups_(groups),
        frames_(frames > 0 ? frames : 1),
        pixels_(height * width),
        strip_(height * kStrip),
        last_width_(width % kStrip == 0 ? 1 : width % kStrip) {}

  // The unit that comes at `place`, 0 to units - 1.
  __device__ __forceinline__ Unit<Index> unit_at(Index place) const {
    Unit<Index> unit;
    unit.group = groups_.split(place);
    const Index pixel = pixels_.split(place);
    const Index frame = place;
    Index strip = pixel;
    Index row = strip_.split(strip);
    if (strip < full_strips_) {
      unit.x = row % kStrip;
      row /= kStrip;
    } else {
      unit.x = last_width_.split(row);
    }
    unit.y = row;
    unit.x += strip * kStrip;
    unit.t = frames_.split(place);
    unit.batch = place;
    unit.index = groups_.times(pixels_.times(frame) + unit.y * width_ + unit.x) + unit.group;
    return unit;
  }

 private:
  Index width_, full_strips_;  // of kStrip columns; the columns left over are one more
  Divisor<Index> groups_, frames_, pixels_, strip_, last_width_;
};

}  // namespace sifa::cuda
