// The CUDA kernels of sifa::inter_frame_attention, over the parameter structs of ../inter_frame_attention.h.
// Knows nothing of torch, and uses so little of CUDA that tests/cpp/test_cuda_arithmetic.cpp runs these very
// kernels on a processor.
//
// Who does what: a *unit* is one group of channels of one pixel. A *team* of lanes (a power of two, within
// one warp as far as 256 channels, else several whole warps) works on one unit; each lane holds up to
// kChannelsPerLane channels in registers, moved in packs of V elements: 16 bytes, or a single element where
// channels or addresses do not allow that.
//
// Indices into tensors are 64-bit everywhere. They cost little here: the address of a tap is computed once
// per unit, by one lane, and the others read it from shared memory; so there is no second, 32-bit build of
// each kernel.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../inter_frame_attention.h"
#include "pack.cuh"

namespace sifa::cuda {

constexpr int kWarp = 32;
constexpr int kChannelsPerLane = 8;
constexpr int kMaxTeam = 512;   // hence at most 4096 channels in a group
constexpr int kTapsAtOnce = 9;  // taps of a unit held in shared memory at a time: all of a 3x3 window
constexpr int kMaxSums = 6;     // values that Team::sum adds up at a time
constexpr int kMaxTeams = 64;   // in a block, so that their taps fit in the 48 KiB every GPU gives unasked

// -------------------------------------------------------------------------------------------------- packs

// Adds weight * values to memory that other threads add to as well. From compute capability 9.0 on, four
// floats at once.
template <int V, typename Real>
__device__ __forceinline__ void add_pack(Real* address, const Real* values, Real weight) {
  if (weight == Real(0)) return;  // a corner outside the frame, among others
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<Real, float> && V % 4 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      atomicAdd(reinterpret_cast<float4*>(address + i),
                make_float4(weight * values[i], weight * values[i + 1], weight * values[i + 2],
                            weight * values[i + 3]));
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < V; ++i) atomicAdd(address + i, weight * values[i]);
  }
}

// -------------------------------------------------------------------------------------------------- teams

// One lane's place. Teams of a block advance in step: `size` is the same for all, and every lane reaches
// every sync() and sum(), whether its unit exists or not.
struct Team {
  int size, lane;

  __device__ __forceinline__ void sync() const {
    if (size > kWarp) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Replaces each lane's values by their sum over the team; every lane gets the same bits. `scratch` is
  // needed by teams of several warps: two buffers of kMaxSums values per warp of the block, used in `turn`,
  // so that one barrier per sum is enough (a warp still reading one buffer holds the others back at the
  // barrier of the next).
  template <int N, typename Real>
  __device__ __forceinline__ void sum(Real (&values)[N], Real* scratch, int& turn) const {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      if (step < size) {
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
      }
    }
    if (size > kWarp) {
      static_assert(N <= kMaxSums, "the buffers hold kMaxSums values per warp");
      Real* const buffer = scratch + turn * (blockDim.x / kWarp) * kMaxSums;
      turn ^= 1;
      if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int i = 0; i < N; ++i) buffer[threadIdx.x / kWarp * N + i] = values[i];
      }
      __syncthreads();
      const Real* const mine = buffer + (threadIdx.x - lane) / kWarp * N;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        values[i] = mine[i];
        for (int warp = 1; warp < size / kWarp; ++warp) values[i] += mine[warp * N + i];
      }
    }
  }
};

// The channels of a group that one lane holds: pack r starts at channel (r * team + lane) * V, so that
// neighbouring lanes read neighbouring packs. Channels past the end of the group are zeros and are never read
// or written.
template <int V>
struct Lane {
  static constexpr int kPacks = kChannelsPerLane / V;
  int team, lane, channels;

  __device__ __forceinline__ int channel(int pack) const { return (pack * team + lane) * V; }

  template <typename T, typename Real>
  __device__ __forceinline__ void load(const T* group, Real (&values)[kChannelsPerLane]) const {
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      if (channel(r) < channels) {
        load_pack<V>(group + channel(r), values + r * V);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) values[r * V + i] = Real(0);
      }
    }
  }

  template <typename T, typename Real>
  __device__ __forceinline__ void store(T* group, const Real (&values)[kChannelsPerLane]) const {
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      if (channel(r) < channels) store_pack<V>(group + channel(r), values + r * V);
    }
  }
};

template <typename Real>
__device__ __forceinline__ Real dot(const Real (&a)[kChannelsPerLane], const Real (&b)[kChannelsPerLane]) {
  Real sum = 0;
#pragma unroll
  for (int i = 0; i < kChannelsPerLane; ++i) sum += a[i] * b[i];
  return sum;
}

// --------------------------------------------------------------------------------------------------- taps

// Where one unit is. `frame` is the memory frame it attends to, or -1.
struct Unit {
  int64_t batch, t, y, x, pixel, group, frame;
};

__device__ __forceinline__ Unit unit_at(const InterFrameAttention& call, int64_t index, int64_t groups) {
  Unit unit;
  unit.pixel = index / groups;
  unit.group = index - unit.pixel * groups;
  const int64_t row = unit.pixel / call.width;
  unit.x = unit.pixel - row * call.width;
  const int64_t frame = row / call.height;
  unit.y = row - frame * call.height;
  unit.batch = frame / call.frames;
  unit.t = frame - unit.batch * call.frames;
  unit.frame = neighbour_frame(call, unit.t);
  return unit;
}

// The first channel of the unit's pixel in a tensor that has the frames of the query.
template <typename T>
__device__ __forceinline__ const T* pixel_of(const void* tensor, const PixelStrides& strides,
                                             const Unit& unit) {
  return static_cast<const T*>(tensor) + unit.batch * strides.batch + unit.t * strides.frame +
         unit.y * strides.row + unit.x * strides.column;
}

// The memory frame of a unit. Without one every tap is dropped, so where it would be does not matter.
template <typename T>
__device__ __forceinline__ const T* frame_of(const InterFrameAttention& call, const Unit& unit) {
  const int64_t frame = unit.frame < 0 ? 0 : unit.frame;
  return static_cast<const T*>(call.memory) + unit.batch * call.memory_strides.batch +
         frame * call.memory_strides.frame;
}

template <typename T, typename Real>
__device__ __forceinline__ Real offset_at(const InterFrameAttention& call, int64_t index) {
  if (call.offsets == ScalarKind::kFloat32) {
    return static_cast<Real>(__ldg(static_cast<const float*>(call.offset) + index));
  }
  return static_cast<Real>(__ldg(static_cast<const T*>(call.offset) + index));
}

// The rows and columns that tap p of a pixel reads; false if the tap is dropped.
template <typename T, typename Real = Accumulator<T>>
__device__ __forceinline__ bool locate_tap(const InterFrameAttention& call, const Unit& unit, int kernel_size,
                                           int p, AxisSample<Real>& rows, AxisSample<Real>& columns) {
  const OffsetStrides& strides = call.offset_strides;
  const int64_t dy = unit.batch * strides.batch + unit.t * strides.frame + unit.y * strides.row +
                     unit.x * strides.column + 2 * p * strides.channel;
  const int64_t dx = dy + strides.channel;
  const int i = p / kernel_size;
  const int j = p - i * kernel_size;
  return locate(tap_position(unit.y, i, kernel_size, call.dilation, offset_at<T, Real>(call, dy)),
                call.height, rows) &&
         locate(tap_position(unit.x, j, kernel_size, call.dilation, offset_at<T, Real>(call, dx)), call.width,
                columns);
}

// One tap of a unit as its lanes read it: bilinear weights, and where the four corners are in the memory
// frame.
template <typename Real>
struct alignas(16) Tap {
  Real weight_y[2], weight_x[2];
  int64_t corner;  // of the low row and low column, in elements from the first pixel of the memory frame
  int32_t inside;  // bits 0 to 3: the low row, high row, low column, high column is in the frame; 0: dropped

  // Only such a corner may be read: 0 times infinity is not 0.
  __device__ __forceinline__ bool has_corner(int y, int x) const {
    return (inside >> y & 1) != 0 && (inside >> (2 + x) & 1) != 0;
  }

  // From the low corner to the high one. Where one of them is outside, both are the other one (see
  // AxisSample).
  __device__ __forceinline__ int64_t row_step(const PixelStrides& strides) const {
    return (inside & 3) == 3 ? strides.row : 0;
  }
  __device__ __forceinline__ int64_t column_step(const PixelStrides& strides) const {
    return (inside & 12) == 12 ? strides.column : 0;
  }
};

template <typename T, typename Real = Accumulator<T>>
__device__ __forceinline__ Tap<Real> tap_of(const InterFrameAttention& call, const Unit& unit,
                                            int kernel_size, int p) {
  AxisSample<Real> rows, columns;
  Tap<Real> tap = {};
  if (unit.frame < 0 || !locate_tap<T>(call, unit, kernel_size, p, rows, columns)) return tap;
  tap.weight_y[0] = rows.weight_low;
  tap.weight_y[1] = rows.weight_high;
  tap.weight_x[0] = columns.weight_low;
  tap.weight_x[1] = columns.weight_high;
  tap.corner = rows.low * call.memory_strides.row + columns.low * call.memory_strides.column;
  tap.inside = (rows.slope_low != 0 ? 1 : 0) | (rows.slope_high != 0 ? 2 : 0) |
               (columns.slope_low != 0 ? 4 : 0) | (columns.slope_high != 0 ? 8 : 0);
  return tap;
}

extern __shared__ __align__(16) unsigned char shared_memory[];

// Shared memory of a block: the taps of each team, then the scratch of Team::sum.
template <typename Real>
size_t shared_bytes(int threads, int team) {
  return threads / team * kTapsAtOnce * sizeof(Tap<Real>) + 2 * (threads / kWarp) * kMaxSums * sizeof(Real);
}

// A thread's place in its block, for the kernels that work in teams.
template <typename Real, int V>
struct Place {
  int teams, slot;  // the teams of the block, and which of them this thread belongs to
  Team team;
  Lane<V> lane;
  Tap<Real>* taps;
  Real* scratch;

  __device__ __forceinline__ Place(const InterFrameAttention& call, int team_size)
      : teams(blockDim.x / team_size),
        slot(threadIdx.x / team_size),
        team{team_size, static_cast<int>(threadIdx.x) - slot * team_size},
        lane{team_size, team.lane, static_cast<int>(call.channels / call.groups)} {
    Tap<Real>* const all = reinterpret_cast<Tap<Real>*>(shared_memory);
    taps = all + slot * kTapsAtOnce;
    scratch = reinterpret_cast<Real*>(all + teams * kTapsAtOnce);
  }
};

// Calls body(p, tap) for every tap of the unit, all lanes of the team together, `Unroll` taps per step of the
// loop.
template <typename T, int Unroll, typename Body>
__device__ __forceinline__ void for_each_tap(const InterFrameAttention& call, const Unit& unit,
                                             int kernel_size, const Team& team, Tap<Accumulator<T>>* taps,
                                             const Body& body) {
  const int num_taps = kernel_size * kernel_size;
  for (int first = 0; first < num_taps; first += kTapsAtOnce) {
    const int count = num_taps - first < kTapsAtOnce ? num_taps - first : kTapsAtOnce;
    team.sync();  // the taps before these have been read
    for (int j = team.lane; j < count; j += team.size) {
      taps[j] = tap_of<T>(call, unit, kernel_size, first + j);
    }
    team.sync();
#pragma unroll Unroll
    for (int j = 0; j < count; ++j) {
      const Tap<Accumulator<T>> tap = taps[j];
      body(first + j, tap);
    }
  }
}

// The bilinear sample; zeros if the tap is dropped.
template <int V, typename T, typename Real>
__device__ __forceinline__ void gather(const Tap<Real>& tap, const PixelStrides& strides, const T* frame,
                                       const Lane<V>& lane, Real (&sample)[kChannelsPerLane]) {
#pragma unroll
  for (int i = 0; i < kChannelsPerLane; ++i) sample[i] = Real(0);
  if (!tap.inside) return;
  const T* row = frame + tap.corner;
  const int64_t column_step = tap.column_step(strides);
#pragma unroll
  for (int y = 0; y < 2; ++y) {
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      if (!tap.has_corner(y, x)) continue;
      const Real weight = tap.weight_y[y] * tap.weight_x[x];
      Real corner[kChannelsPerLane];
      lane.load(row + x * column_step, corner);
#pragma unroll
      for (int i = 0; i < kChannelsPerLane; ++i) sample[i] += weight * corner[i];
    }
    row += tap.row_step(strides);
  }
}

// The running maximum and sum of a softmax over the taps, so that one pass over them suffices. `rescale` is
// what sums made so far must be multiplied by before the newest tap, weighted `newest`, is added. Starts at
// the lowest finite number, not at -infinity, so that a first logit of -infinity does not make a NaN of zero
// weight.
template <typename Real>
struct Softmax {
  static constexpr Real kLowest = std::numeric_limits<Real>::lowest();
  Real maximum = kLowest;
  Real sum = 0, rescale = 1, newest = 0;

  __device__ __forceinline__ void add(Real logit) {
    const Real raised = logit > maximum ? logit : maximum;
    rescale = exp(maximum - raised);
    newest = exp(logit - raised);
    sum = sum * rescale + newest;
    maximum = raised;
  }
};

// ------------------------------------------------------------------------------------------------ forward

// output = (query +) A (design section 3), one unit per team and turn. Each sample is read once: it stays in
// registers from its product with the query to the aggregate. `K` is the kernel size, or 0 for
// call.kernel_size.
template <typename T, int V, int K>
__global__ void __launch_bounds__(kMaxTeam) attend(const InterFrameAttention call, const int team_size) {
  using Real = Accumulator<T>;
  const int kernel_size = K > 0 ? K : static_cast<int>(call.kernel_size);
  const Place<Real, V> place(call, team_size);
  const Team& team = place.team;
  const Lane<V>& lane = place.lane;
  int turn = 0;

  const int64_t units = call.batch * call.frames * call.height * call.width * call.groups;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * place.teams; first < units;
       first += static_cast<int64_t>(gridDim.x) * place.teams) {
    // A team without a unit repeats the last one and stores nothing, to keep its warp whole.
    const bool exists = first + place.slot < units;
    const Unit unit = unit_at(call, exists ? first + place.slot : units - 1, call.groups);
    const int64_t channel = unit.group * lane.channels;
    const T* const frame = frame_of<T>(call, unit) + channel;

    Real query[kChannelsPerLane];
    lane.load(pixel_of<T>(call.query, call.query_strides, unit) + channel, query);
    Real aggregate[kChannelsPerLane] = {};
    Softmax<Real> softmax;
    for_each_tap<T, K == 3 ? 3 : 1>(
        call, unit, kernel_size, team, place.taps, [&](int, const Tap<Real>& tap) {
          Real sample[kChannelsPerLane];
          gather(tap, call.memory_strides, frame, lane, sample);
          Real sums[1] = {dot(query, sample)};
          team.sum(sums, place.scratch, turn);
          // A dropped tap has logit 0 even where the query is not finite.
          Real weight = tap.inside ? static_cast<Real>(call.scale) * sums[0] : Real(0);
          if (call.softmax) {
            softmax.add(weight);
            weight = softmax.newest;
#pragma unroll
            for (int i = 0; i < kChannelsPerLane; ++i) aggregate[i] *= softmax.rescale;
          }
#pragma unroll
          for (int i = 0; i < kChannelsPerLane; ++i) aggregate[i] += weight * sample[i];
        });
    if (exists) {
      const Real norm = call.softmax ? Real(1) / softmax.sum : Real(1);
#pragma unroll
      for (int i = 0; i < kChannelsPerLane; ++i) {
        aggregate[i] = norm * aggregate[i] + (call.residual ? query[i] : Real(0));
      }
      lane.store(static_cast<T*>(call.output) + unit.pixel * call.channels + channel, aggregate);
    }
  }
}

// ----------------------------------------------------------------------------------------------- backward
//
// With g = grad_output, a_p the weight of tap p and l_p = scale * <q, s_p> its logit, the gradients are
//
//   without softmax:  a_p = l_p              b_p = scale * <g, s_p>
//   with softmax:     a_p = softmax(l)_p     b_p = scale * a_p (<g, s_p> - sum_j a_j <g, s_j>)
//
//   grad_query = (g +) sum_p b_p s_p       grad s_p = a_p g + b_p q       grad offset_p = <grad s_p, d s_p>
//
// A first kernel computes what the query's pixels own and leaves a_p, b_p and the offset's gradient, per unit
// and tap, to two others: one spreads grad s_p over the pixels of the memory, one sums the offset's gradient
// over the groups.

template <typename Real>
struct alignas(16) TapGradient {
  Real weight, logit;  // a_p, b_p
  Real y, x;           // of the offset, from this group of channels
};

// grad_query, and `gradients[unit * kernel_size^2 + p]`.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxTeam)
    differentiate(const InterFrameAttentionBackward call, TapGradient<Accumulator<T>>* const gradients,
                  const int team_size) {
  using Real = Accumulator<T>;
  const int kernel_size = static_cast<int>(call.kernel_size);
  const Place<Real, V> place(call, team_size);
  const Team& team = place.team;
  const Lane<V>& lane = place.lane;
  const Real scale = static_cast<Real>(call.scale);
  const PixelStrides& strides = call.memory_strides;
  int turn = 0;

  const int64_t units = call.batch * call.frames * call.height * call.width * call.groups;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * place.teams; first < units;
       first += static_cast<int64_t>(gridDim.x) * place.teams) {
    const bool exists = first + place.slot < units;
    const int64_t index = exists ? first + place.slot : units - 1;
    const Unit unit = unit_at(call, index, call.groups);
    const int64_t channel = unit.group * lane.channels;
    const T* const frame = frame_of<T>(call, unit) + channel;

    Real query[kChannelsPerLane], grad[kChannelsPerLane];
    lane.load(pixel_of<T>(call.query, call.query_strides, unit) + channel, query);
    lane.load(pixel_of<T>(call.grad_output, call.grad_output_strides, unit) + channel, grad);

    Softmax<Real> softmax;
    Real mean = 0;  // sum_j a_j <g, s_j>
    if (call.softmax) {
      for_each_tap<T, 1>(call, unit, kernel_size, team, place.taps, [&](int, const Tap<Real>& tap) {
        Real sample[kChannelsPerLane];
        gather(tap, strides, frame, lane, sample);
        Real sums[2] = {dot(query, sample), dot(grad, sample)};
        team.sum(sums, place.scratch, turn);
        softmax.add(tap.inside ? scale * sums[0] : Real(0));
        mean = mean * softmax.rescale + (tap.inside ? softmax.newest * sums[1] : Real(0));
      });
      mean /= softmax.sum;
    }

    Real grad_query[kChannelsPerLane] = {};
    for_each_tap<T, 1>(call, unit, kernel_size, team, place.taps, [&](int p, const Tap<Real>& tap) {
      Real sample[kChannelsPerLane] = {};
      Real sums[6] = {};  // of query and grad with: the sample, its derivative along y, along x
      if (tap.inside) {
        const Real slope_y[2] = {Real(tap.inside & 1 ? -1 : 0), Real(tap.inside & 2 ? 1 : 0)};
        const Real slope_x[2] = {Real(tap.inside & 4 ? -1 : 0), Real(tap.inside & 8 ? 1 : 0)};
        const T* row = frame + tap.corner;
        const int64_t column_step = tap.column_step(strides);
#pragma unroll
        for (int y = 0; y < 2; ++y) {
#pragma unroll
          for (int x = 0; x < 2; ++x) {
            if (!tap.has_corner(y, x)) continue;
            const Real weight = tap.weight_y[y] * tap.weight_x[x];
            const Real along_y = slope_y[y] * tap.weight_x[x];
            const Real along_x = tap.weight_y[y] * slope_x[x];
            Real corner[kChannelsPerLane];
            lane.load(row + x * column_step, corner);
#pragma unroll
            for (int i = 0; i < kChannelsPerLane; ++i) sample[i] += weight * corner[i];
            const Real with_query = dot(query, corner);
            const Real with_grad = dot(grad, corner);
            sums[0] += weight * with_query;
            sums[1] += weight * with_grad;
            sums[2] += along_y * with_query;
            sums[3] += along_y * with_grad;
            sums[4] += along_x * with_query;
            sums[5] += along_x * with_grad;
          }
          row += tap.row_step(strides);
        }
      }
      team.sum(sums, place.scratch, turn);
      TapGradient<Real> gradient = {};  // a dropped tap has none, even where its weight is not a number
      if (tap.inside) {
        const Real logit = scale * sums[0];
        gradient.weight = call.softmax ? exp(logit - softmax.maximum) / softmax.sum : logit;
        gradient.logit = scale * (call.softmax ? gradient.weight * (sums[1] - mean) : sums[1]);
        gradient.y = gradient.logit * sums[2] + gradient.weight * sums[3];
        gradient.x = gradient.logit * sums[4] + gradient.weight * sums[5];
#pragma unroll
        for (int i = 0; i < kChannelsPerLane; ++i) grad_query[i] += gradient.logit * sample[i];
      }
      if (exists && team.lane == 0) gradients[index * (kernel_size * kernel_size) + p] = gradient;
    });
    if (exists) {
#pragma unroll
      for (int i = 0; i < kChannelsPerLane; ++i) grad_query[i] += call.residual ? grad[i] : Real(0);
      lane.store(static_cast<T*>(call.grad_query) + unit.pixel * call.channels + channel, grad_query);
    }
  }
}

// Adds the samples' gradients to `sums`, which has the shape of the memory, dense channels-last, and starts
// at zero. One thread adds one pack of channels of one query pixel. The order in which atomic additions
// happen is not fixed.
template <typename T, int V>
__global__ void __launch_bounds__(kBlock)
    scatter(const InterFrameAttentionBackward call, const TapGradient<Accumulator<T>>* const gradients,
            Accumulator<T>* const sums) {
  using Real = Accumulator<T>;
  const int kernel_size = static_cast<int>(call.kernel_size);
  const int num_taps = kernel_size * kernel_size;
  const int64_t channels = call.channels / call.groups;
  const PixelStrides strides = dense_strides(call.channels, call.memory_frames, call.height, call.width);
  const int64_t packs = call.channels / V;
  const int64_t threads = call.batch * call.frames * call.height * call.width * packs;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < threads;
       index += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const Unit unit = unit_at(call, index, packs);  // a pack of channels in place of a group
    if (unit.frame < 0) continue;
    const int64_t channel = unit.group * V;
    Real query[V], grad[V];
    load_pack<V>(pixel_of<T>(call.query, call.query_strides, unit) + channel, query);
    load_pack<V>(pixel_of<T>(call.grad_output, call.grad_output_strides, unit) + channel, grad);
    Real* const frame = sums + unit.batch * strides.batch + unit.frame * strides.frame + channel;
    const TapGradient<Real>* const mine =
        gradients + (unit.pixel * call.groups + channel / channels) * num_taps;
    for (int p = 0; p < num_taps; ++p) {
      AxisSample<Real> rows, columns;
      if (!locate_tap<T>(call, unit, kernel_size, p, rows, columns)) continue;
      const TapGradient<Real> gradient = mine[p];
      Real values[V];
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = gradient.weight * grad[i] + gradient.logit * query[i];
      Real* const low = frame + rows.low * strides.row;
      Real* const high = frame + rows.high * strides.row;
      const int64_t left = columns.low * strides.column;
      const int64_t right = columns.high * strides.column;
      const bool has_low = rows.slope_low != 0, has_high = rows.slope_high != 0;
      const bool has_left = columns.slope_low != 0, has_right = columns.slope_high != 0;
      if (has_low && has_left) add_pack<V>(low + left, values, rows.weight_low * columns.weight_low);
      if (has_low && has_right) add_pack<V>(low + right, values, rows.weight_low * columns.weight_high);
      if (has_high && has_left) add_pack<V>(high + left, values, rows.weight_high * columns.weight_low);
      if (has_high && has_right) add_pack<V>(high + right, values, rows.weight_high * columns.weight_high);
    }
  }
}

// The same sums in an order that never changes: one thread owns one channel of one row of one memory frame,
// and goes through every tap of every query frame that attends to it. Slow, and simple enough to be sure of.
template <typename T>
__global__ void __launch_bounds__(kBlock, 6)  // left to itself, the compiler spills registers for more blocks
    scatter_in_order(const InterFrameAttentionBackward call,
                     const TapGradient<Accumulator<T>>* const gradients, Accumulator<T>* const sums) {
  using Real = Accumulator<T>;
  const int kernel_size = static_cast<int>(call.kernel_size);
  const int num_taps = kernel_size * kernel_size;
  const PixelStrides strides = dense_strides(call.channels, call.memory_frames, call.height, call.width);
  const int64_t threads = call.batch * call.memory_frames * call.height * call.channels;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < threads;
       index += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = index / call.channels;  // of all rows of all frames of all clips
    const int64_t channel = index - row * call.channels;
    const int64_t frame = row / call.height;
    const int64_t y = row - frame * call.height;
    const int64_t batch = frame / call.memory_frames;
    Unit unit;
    unit.batch = batch;
    unit.frame = frame - batch * call.memory_frames;
    unit.group = channel / (call.channels / call.groups);
    Real* const owned = sums + row * strides.row + channel;
    for (unit.t = 0; unit.t < call.frames; ++unit.t) {
      if (neighbour_frame(call, unit.t) != unit.frame) continue;
      for (unit.y = 0; unit.y < call.height; ++unit.y) {
        for (unit.x = 0; unit.x < call.width; ++unit.x) {
          unit.pixel = ((batch * call.frames + unit.t) * call.height + unit.y) * call.width + unit.x;
          const T* const query = pixel_of<T>(call.query, call.query_strides, unit) + channel;
          const T* const grad = pixel_of<T>(call.grad_output, call.grad_output_strides, unit) + channel;
          for (int p = 0; p < num_taps; ++p) {
            AxisSample<Real> rows, columns;
            if (!locate_tap<T>(call, unit, kernel_size, p, rows, columns)) continue;
            // A corner outside the frame has the index of the other one and weight 0.
            const Real weight_y =
                (rows.low == y ? rows.weight_low : Real(0)) + (rows.high == y ? rows.weight_high : Real(0));
            if (weight_y == Real(0)) continue;
            const TapGradient<Real> gradient =
                gradients[(unit.pixel * call.groups + unit.group) * num_taps + p];
            const Real value = gradient.weight * static_cast<Real>(__ldg(grad)) +
                               gradient.logit * static_cast<Real>(__ldg(query));
            if (columns.weight_low != Real(0))
              owned[columns.low * strides.column] += weight_y * columns.weight_low * value;
            if (columns.weight_high != Real(0))
              owned[columns.high * strides.column] += weight_y * columns.weight_high * value;
          }
        }
      }
    }
  }
}

// grad_offset: summed over the groups, which share the offsets.
template <typename Real, typename Offset>
__global__ void __launch_bounds__(kBlock)
    sum_groups(const InterFrameAttentionBackward call, const TapGradient<Real>* const gradients) {
  const int64_t num_taps = call.kernel_size * call.kernel_size;
  const int64_t threads = call.batch * call.frames * call.height * call.width * num_taps;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < threads;
       index += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t pixel = index / num_taps;
    const int64_t p = index - pixel * num_taps;
    Real sums[2] = {};  // along y, along x
    for (int64_t group = 0; group < call.groups; ++group) {
      const TapGradient<Real> gradient = gradients[(pixel * call.groups + group) * num_taps + p];
      sums[0] += gradient.y;
      sums[1] += gradient.x;
    }
    store_pack<2>(static_cast<Offset*>(call.grad_offset) + 2 * index, sums);
  }
}

// ---------------------------------------------------------------------------------------------- launching

// The lanes that one unit needs; more than kMaxTeam if its channels are too many.
inline int team_for(const InterFrameAttention& call) {
  const int64_t lanes = (call.channels / call.groups + kChannelsPerLane - 1) / kChannelsPerLane;
  int team = 1;
  while (team < lanes && team <= kMaxTeam) team *= 2;
  return team;
}

inline int block_for(int team) {
  if (team > kBlock) return team;
  return team * kMaxTeams < kBlock ? team * kMaxTeams : kBlock;
}

// Whether packs of `pack` elements fit the groups and the addresses.
inline bool allows_packs(const InterFrameAttention& call, int64_t pack) {
  return call.channels / call.groups % pack == 0 &&
         allows_packs(call.query, call.query_strides, call, call.frames, pack) &&
         allows_packs(call.memory, call.memory_strides, call, call.memory_frames, pack);
}

inline bool allows_packs(const InterFrameAttentionBackward& call, int64_t pack) {
  return allows_packs(static_cast<const InterFrameAttention&>(call), pack) &&
         allows_packs(call.grad_output, call.grad_output_strides, call, call.frames, pack);
}

}  // namespace sifa::cuda
