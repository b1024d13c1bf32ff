// The CUDA kernels of sifa::inter_frame_attention, over the parameter structs of ../inter_frame_attention.h.
// Knows nothing of torch, and uses so little of CUDA that tests/cpp/test_cuda_arithmetic.cpp runs these very
// kernels on a processor.
//
// Who does what: a *unit* is one group of channels of one pixel. A *team* of lanes (a power of two, within
// one warp or several whole warps) works on one unit; each lane holds some packs of channels in registers. A
// pack is 16 bytes, V elements, or a single one where channels or addresses do not allow that. A block works
// on neighbouring units, whose windows overlap in the first-level cache, in turns. Where a unit's taps are is
// computed once, by whichever threads of the block, and read by its team from shared memory.
//
// All distances in tensors are counted in packs, so that 32 bits suffice for any tensor that fits a GPU.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../inter_frame_attention.h"
#include "pack.cuh"
#include "walk.cuh"

namespace sifa::cuda {

constexpr int kWarp = 32;
constexpr int kMaxChannels = 4096;  // in a group
constexpr int kMaxThreads = 512;    // in a block
constexpr int kTapsAtOnce = 9;      // taps of a unit held in shared memory at a time: all of a 3x3 window
constexpr int kMaxSums = 6;         // values that Team::sum adds up at a time
constexpr int kMaxTurns = 4;
constexpr int64_t kManyBlocks = 1024;    // a launch of fewer does not fill a large GPU
constexpr int kSharedBytes = 48 * 1024;  // what every GPU gives a block unasked

// Channels that a lane holds. More of them share one computation of addresses and one sum over the team;
// fewer leave registers for more warps. Measured on a GPU of compute capability 9.0.
constexpr int kFewChannels = 8;  // attend, in groups of up to kSmallGroup channels
constexpr int kSmallGroup = 64;
template <typename T, int V>
constexpr int kManyChannels = sizeof(T) == 8 || V == 1 ? 8 : 16;  // attend beyond, and differentiate
template <typename T>
constexpr int kGatherChannels = sizeof(T) == 2 ? 16 : 8;
// Terms whose loads gather() has in flight.
template <typename T>
constexpr int kGatherUnroll = sizeof(T) == 2 ? 2 : 4;

// Counts packs, taps and units. See allows_packs() for when 32 bits suffice.
template <int V>
using Index = std::conditional_t<V == 1, unsigned long long, unsigned int>;

template <int V>
constexpr Index<V> kNone = ~Index<V>(0);

// ------------------------------------------------------------------------------------------------ geometry

template <typename I>
struct Strides {
  I batch, frame, row, column;

  __device__ __forceinline__ I frame_at(I n, I t) const { return n * batch + t * frame; }
  __device__ __forceinline__ I pixel_at(I y, I x) const { return y * row + x * column; }
};

template <int V>
Strides<Index<V>> in_packs(const PixelStrides& strides) {
  using I = Index<V>;
  return {static_cast<I>(strides.batch / V), static_cast<I>(strides.frame / V),
          static_cast<I>(strides.row / V), static_cast<I>(strides.column / V)};
}

// A call as the kernels need it.
template <typename T, int V>
struct Plan {
  using I = Index<V>;
  Walk<I> walk;  // of the query
  Strides<I> query, memory, grad;
  Strides<I> offset;  // this one in elements
  I offset_channel;
  I packs;         // of a group
  I cells_in_row;  // see Contribution
  I cells_in_frame;
  int kernel_size;
  Divisor<uint32_t> kernel_columns;
  Accumulator<T> scale;

  explicit Plan(const InterFrameAttention& call, const PixelStrides& grad_strides = {})
      : walk(call.batch, call.frames, call.height, call.width, call.groups),
        query(in_packs<V>(call.query_strides)),
        memory(in_packs<V>(call.memory_strides)),
        grad(in_packs<V>(grad_strides)),
        offset{static_cast<I>(call.offset_strides.batch), static_cast<I>(call.offset_strides.frame),
               static_cast<I>(call.offset_strides.row), static_cast<I>(call.offset_strides.column)},
        offset_channel(static_cast<I>(call.offset_strides.channel)),
        packs(static_cast<I>(call.channels / call.groups / V)),
        cells_in_row(static_cast<I>((call.width + 1) * call.groups)),
        cells_in_frame(static_cast<I>((call.height + 1) * (call.width + 1) * call.groups)),
        kernel_size(static_cast<int>(call.kernel_size)),
        kernel_columns(call.kernel_size),
        scale(static_cast<Accumulator<T>>(call.scale)) {}
};

// Packs `distance` on from `address`.
template <int V, typename T>
__device__ __forceinline__ T* advance(T* address, Index<V> distance) {
  using Packs = std::conditional_t<std::is_const_v<T>, const Pack<std::remove_const_t<T>, V>, Pack<T, V>>;
  return reinterpret_cast<T*>(reinterpret_cast<Packs*>(address) + distance);
}

// -------------------------------------------------------------------------------------------------- teams

// One lane's place. Teams of a block advance in step: the size is the same for all, and every lane reaches
// every sum(), whether its unit exists or not. `Size` is 0 where it is only known at run time.
template <int Size>
struct Team {
  int lane, slot;  // slot: which of the teams of the block
  int any_size;

  __device__ __forceinline__ explicit Team(int team_size)
      : lane(static_cast<int>(threadIdx.x) % (Size ? Size : team_size)),
        slot(static_cast<int>(threadIdx.x) / (Size ? Size : team_size)),
        any_size(team_size) {}

  __device__ __forceinline__ int size() const { return Size ? Size : any_size; }

  // Replaces each lane's values by their sum over the team; every lane gets the same bits. `scratch` is
  // needed by teams of several warps: two buffers of kMaxSums values per warp of the block, used in `turn`,
  // so that one barrier per sum is enough (a warp still reading one buffer holds the others back at the
  // barrier of the next).
  template <int N, typename Real>
  __device__ __forceinline__ void sum(Real (&values)[N], Real* scratch, int& turn) const {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      if (step < size()) {
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
      }
    }
    if (size() > kWarp) {
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
        for (int warp = 1; warp < size() / kWarp; ++warp) values[i] += mine[warp * N + i];
      }
    }
  }
};

// The C channels of a group that one lane holds: its packs are lane, lane + team and so on, so that
// neighbouring lanes read neighbouring packs. A pack past the end of the group is idle: it reads the first
// pack in its place, and is never written or summed.
template <int V, int C>
struct Lane {
  static constexpr int kPacks = C / V;
  Index<V> pack[kPacks];
  bool active[kPacks];

  __device__ __forceinline__ Lane(Index<V> packs, int first, int team) {
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      pack[r] = static_cast<Index<V>>(r * team + first);
      active[r] = pack[r] < packs;
      if (!active[r]) pack[r] = 0;
    }
  }

  // Where its packs are, in a group that starts at `group`.
  template <typename T>
  __device__ __forceinline__ void find(T* group, T* (&addresses)[kPacks]) const {
#pragma unroll
    for (int r = 0; r < kPacks; ++r) addresses[r] = advance<V>(group, pack[r]);
  }

  template <typename T, typename Real>
  __device__ __forceinline__ void store(T* group, const Real (&values)[C]) const {
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      if (active[r]) store_pack<V>(advance<V>(group, pack[r]), values + r * V);
    }
  }

  // Without the idle packs, whatever they hold.
  template <typename Real>
  __device__ __forceinline__ Real dot(const Real (&a)[C], const Real (&b)[C]) const {
    Real sum = 0;
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      Real part = a[r * V] * b[r * V];
#pragma unroll
      for (int i = r * V + 1; i < (r + 1) * V; ++i) part += a[i] * b[i];
      part = active[r] ? part : Real(0);
      sum = r == 0 ? part : sum + part;
    }
    return sum;
  }
};

// What is `distance` packs on from each of the addresses.
template <int V, int C, typename T, typename Real>
__device__ __forceinline__ void load(const T* const (&addresses)[C / V], Index<V> distance,
                                     Real (&values)[C]) {
#pragma unroll
  for (int r = 0; r < C / V; ++r) load_pack<V>(advance<V>(addresses[r], distance), values + r * V);
}

// --------------------------------------------------------------------------------------------------- taps

template <typename T, typename Real, typename I>
__device__ __forceinline__ Real offset_at(const InterFrameAttention& call, I index) {
  if (call.offsets == ScalarKind::kFloat32) {
    return static_cast<Real>(__ldg(static_cast<const float*>(call.offset) + index));
  }
  return static_cast<Real>(__ldg(static_cast<const T*>(call.offset) + index));
}

// The rows and columns that tap p of pixel (y, x) reads, whose offsets start at element `offset`; false if
// the tap is dropped.
template <typename T, int V, typename Real = Accumulator<T>>
__device__ __forceinline__ bool locate_tap(const InterFrameAttention& call, const Plan<T, V>& plan,
                                           Index<V> offset, int y, int x, uint32_t p, AxisSample<Real>& rows,
                                           AxisSample<Real>& columns) {
  const Index<V> dy = offset + 2 * p * plan.offset_channel;
  uint32_t i = p;
  const uint32_t j = plan.kernel_columns.split(i);
  const int dilation = static_cast<int>(call.dilation);
  const Real at_y =
      tap_position(y, static_cast<int>(i), plan.kernel_size, dilation, offset_at<T, Real>(call, dy));
  const Real at_x = tap_position(x, static_cast<int>(j), plan.kernel_size, dilation,
                                 offset_at<T, Real>(call, dy + plan.offset_channel));
  return locate(at_y, call.height, rows) & locate(at_x, call.width, columns);
}

// Where only one of the two rows (or columns) of a sample is in the frame, both stand for it, with half of
// its weight and slope each. So all four corners may be read, and what is outside the frame is not, not even
// times 0, which is not 0 for what is infinite.
template <typename Real>
__device__ __forceinline__ void share(AxisSample<Real>& axis) {
  if (axis.slope_low != 0 && axis.slope_high != 0) return;
  axis.weight_low = axis.weight_high = Real(0.5) * (axis.weight_low + axis.weight_high);
  axis.slope_low = axis.slope_high = Real(0.5) * (axis.slope_low + axis.slope_high);
}

// What a team reads for one tap: its corners (low, low), (low, high), (high, low), (high, high), in packs
// from the first pixel of the memory frame, and what it multiplies them by. A dropped tap has corners that
// may be read, but not used.
template <typename Real, int V>
struct alignas(16) Tap {
  Index<V> corner[4];
  Real weight[4];

  __device__ __forceinline__ void set(const AxisSample<Real>& rows, const AxisSample<Real>& columns,
                                      bool contributes) {
    weight[0] = contributes ? rows.weight_low * columns.weight_low : Real(-1);
    weight[1] = rows.weight_low * columns.weight_high;
    weight[2] = rows.weight_high * columns.weight_low;
    weight[3] = rows.weight_high * columns.weight_high;
  }
  __device__ __forceinline__ bool dropped() const { return weight[0] < 0; }
};

// The same for the backward, which needs the axes apart.
template <typename Real, int V>
struct alignas(16) TapSlopes {
  Index<V> corner[4];
  Real weight_y[2], weight_x[2], slope_y[2], slope_x[2];

  __device__ __forceinline__ void set(const AxisSample<Real>& rows, const AxisSample<Real>& columns,
                                      bool contributes) {
    weight_y[0] = contributes ? rows.weight_low : Real(-1);
    weight_y[1] = rows.weight_high;
    weight_x[0] = columns.weight_low;
    weight_x[1] = columns.weight_high;
    slope_y[0] = rows.slope_low;
    slope_y[1] = rows.slope_high;
    slope_x[0] = columns.slope_low;
    slope_x[1] = columns.slope_high;
  }
  __device__ __forceinline__ bool dropped() const { return weight_y[0] < 0; }
};

// A unit of a block: where its pixel is in query, grad_output and offset, its memory frame, and its cells.
template <int V>
struct alignas(16) Spot {
  Index<V> query, grad, frame, offset;
  Index<V> index;  // of the unit, or kNone: such a team repeats the last unit, and stores nothing
  Index<V> cells;
  int32_t y, x;
  bool has_frame;
};

extern __shared__ __align__(16) unsigned char shared_memory[];

// Shared memory of a block, for `count` units: their spots, their taps, then the scratch of Team::sum.
template <typename T, int V, typename TapType>
struct Prepared {
  using Real = Accumulator<T>;
  Spot<V>* spots;
  TapType* taps;
  Real* scratch;

  __device__ __forceinline__ explicit Prepared(int count)
      : spots(reinterpret_cast<Spot<V>*>(shared_memory)),
        taps(reinterpret_cast<TapType*>(spots + count)),
        scratch(reinterpret_cast<Real*>(taps + count * kTapsAtOnce)) {}

  static int bytes_per_unit() { return static_cast<int>(sizeof(Spot<V>) + kTapsAtOnce * sizeof(TapType)); }
  static int scratch_bytes(int threads) {
    return static_cast<int>(2 * (threads / kWarp) * kMaxSums * sizeof(Real));
  }

  // Fills the spots with the units from `place` of the walk on, all threads together.
  __device__ __forceinline__ void find_units(const InterFrameAttention& call, const Plan<T, V>& plan,
                                             int64_t place, int count) const {
    using I = Index<V>;
    __syncthreads();  // what was here has been read
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const bool exists = place + i < plan.walk.units;
      const Unit<I> unit = plan.walk.unit_at(static_cast<I>(exists ? place + i : plan.walk.units - 1));
      const int64_t neighbour = neighbour_frame(call, static_cast<int64_t>(unit.t));
      const I frame = neighbour < 0 ? 0 : static_cast<I>(neighbour);
      const I group = unit.group * plan.packs;
      Spot<V>& spot = spots[i];
      spot.query = plan.query.frame_at(unit.batch, unit.t) + plan.query.pixel_at(unit.y, unit.x) + group;
      spot.grad = plan.grad.frame_at(unit.batch, unit.t) + plan.grad.pixel_at(unit.y, unit.x) + group;
      spot.frame = plan.memory.frame_at(unit.batch, frame) + group;
      spot.offset = plan.offset.frame_at(unit.batch, unit.t) + plan.offset.pixel_at(unit.y, unit.x);
      spot.index = exists ? unit.index : kNone<V>;
      spot.cells =
          (unit.batch * static_cast<I>(call.memory_frames) + frame) * plan.cells_in_frame + unit.group;
      spot.y = static_cast<int32_t>(unit.y);
      spot.x = static_cast<int32_t>(unit.x);
      spot.has_frame = neighbour >= 0;
    }
    __syncthreads();
  }

  // Fills the taps first to first + at_once of the units, all threads together, and calls
  // located(spot, p, contributes, rows, columns) for each.
  template <typename Located>
  __device__ __forceinline__ void find_taps(const InterFrameAttention& call, const Plan<T, V>& plan,
                                            int count, int first, int at_once, const Located& located) const {
    if (first > 0) __syncthreads();  // the taps before have been read
    for (int i = static_cast<int>(threadIdx.x); i < count * kTapsAtOnce; i += static_cast<int>(blockDim.x)) {
      const Spot<V>& spot = spots[i / kTapsAtOnce];
      if (i % kTapsAtOnce >= at_once) continue;
      const uint32_t p = first + i % kTapsAtOnce;
      AxisSample<Real> rows, columns;
      const bool inside = locate_tap(call, plan, spot.offset, spot.y, spot.x, p, rows, columns);
      const bool contributes = inside && spot.has_frame;
      located(spot, p, contributes, rows, columns);
      share(rows);
      share(columns);
      TapType tap;
      using I = Index<V>;
      const I low = static_cast<I>(rows.low) * plan.memory.row;
      const I high = static_cast<I>(rows.high) * plan.memory.row;
      const I left = static_cast<I>(columns.low) * plan.memory.column;
      const I right = static_cast<I>(columns.high) * plan.memory.column;
      tap.corner[0] = low + left;
      tap.corner[1] = low + right;
      tap.corner[2] = high + left;
      tap.corner[3] = high + right;
      tap.set(rows, columns, contributes);
      taps[i] = tap;
    }
    __syncthreads();
  }
};

// How a kernel that works in teams is launched.
struct Layout {
  int team, threads, turns, shared_bytes;
  int64_t blocks;
};

// ------------------------------------------------------------------------------------------------ forward

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

// output = (query +) A (design section 3). Each sample is read once: it stays in registers from its product
// with the query to the aggregate. A lane holds `C` channels; `Size` is the team's, or 0 for layout.team.
template <typename T, int V, int C, int Size>
__global__ void __launch_bounds__(Size ? kBlock : kMaxThreads, (Size > 0) * (C == kFewChannels) ? 8 : 1)
    attend(const InterFrameAttention call, const Plan<T, V> plan, const Layout layout) {
  using Real = Accumulator<T>;
  const Team<Size> team(layout.team);
  const Lane<V, C> lane(plan.packs, team.lane, team.size());
  const int teams = static_cast<int>(blockDim.x) / team.size();
  const int count = teams * layout.turns;
  const Prepared<T, V, Tap<Real, V>> prepared(count);
  const int num_taps = plan.kernel_size * plan.kernel_size;
  int barrier = 0;

  for (int64_t place = static_cast<int64_t>(blockIdx.x) * count; place < plan.walk.units;
       place += static_cast<int64_t>(gridDim.x) * count) {
    prepared.find_units(call, plan, place, count);
    for (int turn = 0; turn < layout.turns; ++turn) {
      const Spot<V>& spot = prepared.spots[turn * teams + team.slot];
      Real query[C], aggregate[C] = {};
      const T* frame[C / V];
      {
        const T* address[C / V];
        lane.find(static_cast<const T*>(call.query), address);
        load<V, C>(address, spot.query, query);
        lane.find(advance<V>(static_cast<const T*>(call.memory), spot.frame), frame);
      }
      Softmax<Real> softmax;
      for (int first = 0; first < num_taps; first += kTapsAtOnce) {
        const int at_once = num_taps - first < kTapsAtOnce ? num_taps - first : kTapsAtOnce;
        if (turn == 0) {  // the only one, if not all taps are prepared at once
          prepared.find_taps(call, plan, count, first, at_once,
                             [](const Spot<V>&, uint32_t, bool, const auto&, const auto&) {});
        }
        if (call.memory_frames == 0) continue;  // nothing that even a dropped tap may read
        const Tap<Real, V>* const taps = prepared.taps + (turn * teams + team.slot) * kTapsAtOnce;
#pragma unroll 1
        for (int j = 0; j < at_once; ++j) {
          const Tap<Real, V> tap = taps[j];
          Real sample[C] = {};
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            Real corner[C];
            load<V, C>(frame, tap.corner[k], corner);
#pragma unroll
            for (int i = 0; i < C; ++i) sample[i] += tap.weight[k] * corner[i];
          }
          if (tap.dropped()) {
#pragma unroll
            for (int i = 0; i < C; ++i) sample[i] = Real(0);
          }
          Real sums[1] = {lane.dot(query, sample)};
          team.sum(sums, prepared.scratch, barrier);
          // A dropped tap has logit 0 even where the query is not finite.
          Real weight = tap.dropped() ? Real(0) : plan.scale * sums[0];
          if (call.softmax) {
            softmax.add(weight);
            weight = softmax.newest;
#pragma unroll
            for (int i = 0; i < C; ++i) aggregate[i] *= softmax.rescale;
          }
#pragma unroll
          for (int i = 0; i < C; ++i) aggregate[i] += weight * sample[i];
        }
      }
      if (spot.index != kNone<V>) {
        if (softmax.sum > 0) {
          const Real norm = Real(1) / softmax.sum;
#pragma unroll
          for (int i = 0; i < C; ++i) aggregate[i] *= norm;
        }
        if (call.residual) {
#pragma unroll
          for (int i = 0; i < C; ++i) aggregate[i] += query[i];
        }
        lane.store(advance<V>(static_cast<T*>(call.output), spot.index * plan.packs), aggregate);
      }
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
// A first kernel computes what the query's pixels own. It leaves a_p and b_p in a list of contributions per
// *cell* of the memory, the square between four pixels that a tap falls into, from which a second kernel
// gathers the gradient of the memory, each pixel from the four cells around it: no sums in global memory,
// nothing to set to zero, and nothing to round twice.

// What one tap of one unit adds to the four pixels around the cell that it falls into. Cells have one row and
// one column more than pixels: cell (y, x) is between pixels (y - 1, x - 1) and (y, x).
template <typename Real, int V>
struct alignas(16) Contribution {
  Real weight, logit;           // a_p, b_p
  Real fraction_y, fraction_x;  // of the position: the weight of the high row and column
  Index<V> query, grad;         // where q and g are
  Index<V> next;                // in the list of its cell
};

inline int64_t num_cells(const InterFrameAttention& call) {
  return call.batch * call.memory_frames * (call.height + 1) * (call.width + 1) * call.groups;
}

// The offset's gradient from one group of channels, along y and x.
template <typename Real>
struct OffsetGradient {
  Real y, x;
};

// Stores the offset's gradient of a tap of a unit, with several groups only a part of it.
template <typename T, typename Real>
__device__ __forceinline__ void store_offset_gradient(const InterFrameAttentionBackward& call,
                                                      OffsetGradient<Real>* group_gradients, int64_t index,
                                                      Real y, Real x) {
  const Real values[2] = {y, x};
  if (call.groups > 1) {
    group_gradients[index] = {y, x};
  } else if (call.offsets == ScalarKind::kFloat32) {
    store_pack<2>(static_cast<float*>(call.grad_offset) + 2 * index, values);
  } else {
    store_pack<2>(static_cast<T*>(call.grad_offset) + 2 * index, values);
  }
}

// grad_query, grad_offset and the contributions, of which that of tap p of a unit is
// contributions[unit.index * kernel_size^2 + p]. `heads` of the cells' lists are kNone before. With several
// groups, grad_offset is left in `group_gradients`, indexed as the contributions are, for sum_groups.
template <typename T, int V, int Size>
__global__ void __launch_bounds__(Size ? kBlock : kMaxThreads, Size ? 4 : 1)
    differentiate(const InterFrameAttentionBackward call, const Plan<T, V> plan, const Layout layout,
                  Contribution<Accumulator<T>, V>* const contributions, Index<V>* const heads,
                  OffsetGradient<Accumulator<T>>* const group_gradients) {
  using Real = Accumulator<T>;
  constexpr int C = kManyChannels<T, V>;
  const Team<Size> team(layout.team);
  const Lane<V, C> lane(plan.packs, team.lane, team.size());
  const int teams = static_cast<int>(blockDim.x) / team.size();
  const int count = teams * layout.turns;
  const Prepared<T, V, TapSlopes<Real, V>> prepared(count);
  const int num_taps = plan.kernel_size * plan.kernel_size;
  // With softmax, a first pass over the taps finds what the second divides by.
  const int first_pass = call.softmax ? 0 : 1;
  int barrier = 0;

  const auto link = [&](const Spot<V>& spot, uint32_t p, bool contributes, const AxisSample<Real>& rows,
                        const AxisSample<Real>& columns) {
    if (spot.index == kNone<V>) return;
    const Index<V> index = spot.index * num_taps + p;
    if (!contributes) {
      store_offset_gradient<T>(call, group_gradients, index, Real(0), Real(0));
      return;
    }
    Contribution<Real, V>& contribution = contributions[index];
    contribution.fraction_y = rows.slope_high != 0 ? rows.weight_high : Real(1) - rows.weight_low;
    contribution.fraction_x = columns.slope_high != 0 ? columns.weight_high : Real(1) - columns.weight_low;
    contribution.query = spot.query;
    contribution.grad = spot.grad;
    const Index<V> y = rows.slope_low != 0 ? rows.low + 1 : 0,
                   x = columns.slope_low != 0 ? columns.low + 1 : 0;
    Index<V>* const head =
        heads + spot.cells + y * plan.cells_in_row + x * static_cast<Index<V>>(call.groups);
    contribution.next = atomicExch(head, index);
  };
  const auto nothing = [](const Spot<V>&, uint32_t, bool, const auto&, const auto&) {};

  for (int64_t place = static_cast<int64_t>(blockIdx.x) * count; place < plan.walk.units;
       place += static_cast<int64_t>(gridDim.x) * count) {
    prepared.find_units(call, plan, place, count);
    for (int turn = 0; turn < layout.turns; ++turn) {
      const Spot<V>& spot = prepared.spots[turn * teams + team.slot];
      Real query[C], grad[C], grad_query[C] = {};
      const T* frame[C / V];
      {
        const T* address[C / V];
        lane.find(static_cast<const T*>(call.query), address);
        load<V, C>(address, spot.query, query);
        lane.find(static_cast<const T*>(call.grad_output), address);
        load<V, C>(address, spot.grad, grad);
        lane.find(advance<V>(static_cast<const T*>(call.memory), spot.frame), frame);
      }
      Softmax<Real> softmax;
      Real mean = 0;  // sum_j a_j <g, s_j>
      for (int pass = first_pass; pass < 2; ++pass) {
        for (int first = 0; first < num_taps; first += kTapsAtOnce) {
          const int at_once = num_taps - first < kTapsAtOnce ? num_taps - first : kTapsAtOnce;
          if (turn == 0 && pass == first_pass) {
            prepared.find_taps(call, plan, count, first, at_once, link);
          } else if (num_taps > kTapsAtOnce) {  // then there is one turn
            __syncthreads();
            prepared.find_taps(call, plan, count, first, at_once, nothing);
          }
          if (call.memory_frames == 0) continue;  // nothing that even a dropped tap may read
          const TapSlopes<Real, V>* const taps = prepared.taps + (turn * teams + team.slot) * kTapsAtOnce;
#pragma unroll 1
          for (int j = 0; j < at_once; ++j) {
            const TapSlopes<Real, V> tap = taps[j];
            Real sample[C] = {};
            Real with_query[4], with_grad[4];  // products with each corner
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              Real corner[C];
              load<V, C>(frame, tap.corner[k], corner);
              const Real weight = tap.weight_y[k / 2] * tap.weight_x[k % 2];
              with_query[k] = lane.dot(query, corner);
              with_grad[k] = lane.dot(grad, corner);
#pragma unroll
              for (int i = 0; i < C; ++i) sample[i] += weight * corner[i];
            }
            // Of query and grad with: the sample, its derivative along y, along x.
            Real sums[6];
#pragma unroll
            for (int with = 0; with < 2; ++with) {
              const Real(&products)[4] = with == 0 ? with_query : with_grad;
              const Real low = tap.weight_x[0] * products[0] + tap.weight_x[1] * products[1];
              const Real high = tap.weight_x[0] * products[2] + tap.weight_x[1] * products[3];
              const Real slope_low = tap.slope_x[0] * products[0] + tap.slope_x[1] * products[1];
              const Real slope_high = tap.slope_x[0] * products[2] + tap.slope_x[1] * products[3];
              sums[with] = tap.weight_y[0] * low + tap.weight_y[1] * high;
              sums[2 + with] = tap.slope_y[0] * low + tap.slope_y[1] * high;
              sums[4 + with] = tap.weight_y[0] * slope_low + tap.weight_y[1] * slope_high;
            }
            team.sum(sums, prepared.scratch, barrier);
            const Real logit = tap.dropped() ? Real(0) : plan.scale * sums[0];
            if (pass == 0) {
              softmax.add(logit);
              mean = mean * softmax.rescale + (tap.dropped() ? Real(0) : softmax.newest * sums[1]);
              continue;
            }
            if (tap.dropped()) continue;  // it has no gradient, even where its weight is not a number
            const Real a = call.softmax ? exp(logit - softmax.maximum) / softmax.sum : logit;
            const Real b = plan.scale * (call.softmax ? a * (sums[1] - mean) : sums[1]);
#pragma unroll
            for (int i = 0; i < C; ++i) grad_query[i] += b * sample[i];
            if (team.lane == 0 && spot.index != kNone<V>) {
              const Index<V> index = spot.index * num_taps + first + j;
              contributions[index].weight = a;
              contributions[index].logit = b;
              store_offset_gradient<T>(call, group_gradients, index, b * sums[2] + a * sums[3],
                                       b * sums[4] + a * sums[5]);
            }
          }
        }
        if (pass == 0) mean /= softmax.sum;
      }
      if (spot.index != kNone<V>) {
        if (call.residual) {
#pragma unroll
          for (int i = 0; i < C; ++i) grad_query[i] += grad[i];
        }
        lane.store(advance<V>(static_cast<T*>(call.grad_query), spot.index * plan.packs), grad_query);
      }
    }
  }
}

// What remains of a contribution for one pixel of the memory.
template <typename Real, int V>
struct alignas(16) Term {
  Real of_grad, of_query;
  Index<V> grad, query;
};

constexpr int kTermsAtOnce = 64;  // that a team holds in shared memory

template <typename Real, int V>
int gather_shared_bytes(int threads, int team) {
  return threads / team * static_cast<int>(kTermsAtOnce * sizeof(Term<Real, V>) + sizeof(int));
}

// grad_memory. A team, within one warp, works on a slab of at most kWarp * kGatherChannels channels of one
// unit of the memory: four of its lanes collect the terms from the four cells around the pixel, then all of
// its lanes add them up. The order of the terms, and so the rounding, may change from run to run.
template <typename T, int V>
__global__ void __launch_bounds__(kBlock)
    gather(const InterFrameAttentionBackward call, const Plan<T, V> plan, const Walk<Index<V>> walk,
           const Divisor<Index<V>> slabs, const int64_t num_slabs, const int team_size,
           const Contribution<Accumulator<T>, V>* const contributions, const Index<V>* const heads) {
  using Real = Accumulator<T>;
  using I = Index<V>;
  constexpr int C = kGatherChannels<T>;
  const Team<0> team(team_size);
  const int teams = static_cast<int>(blockDim.x) / team_size;
  Term<Real, V>* const terms = reinterpret_cast<Term<Real, V>*>(shared_memory) + team.slot * kTermsAtOnce;
  int* const num_terms =
      reinterpret_cast<int*>(reinterpret_cast<Term<Real, V>*>(shared_memory) + teams * kTermsAtOnce) +
      team.slot;

  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < num_slabs;
       first += static_cast<int64_t>(gridDim.x) * teams) {
    const bool exists = first + team.slot < num_slabs;
    I place = static_cast<I>(exists ? first + team.slot : num_slabs - 1);
    const I slab = slabs.split(place);
    const Unit<I> unit = walk.unit_at(place);
    const Lane<V, C> lane(plan.packs, static_cast<int>(slab) * kWarp * (C / V) + team.lane, team_size);
    const T *queries[C / V], *grads[C / V];
    lane.find(static_cast<const T*>(call.query), queries);
    lane.find(static_cast<const T*>(call.grad_output), grads);

    // The pixel has the high row and column of cell (y, x), the high row and low column of cell (y, x + 1),
    // and so on.
    const int low_row = team.lane / 2, low_column = team.lane % 2;
    I link = kNone<V>;
    if (exists && team.lane < 4) {
      link = heads[(unit.batch * static_cast<I>(call.memory_frames) + unit.t) * plan.cells_in_frame +
                   (unit.y + low_row) * plan.cells_in_row +
                   (unit.x + low_column) * static_cast<I>(call.groups) + unit.group];
    }
    Real sums[C] = {};
    do {
      if (team.lane == 0) *num_terms = 0;
      __syncwarp();
      while (link != kNone<V>) {
        const Contribution<Real, V> from = contributions[link];
        const Real share = (low_row ? Real(1) - from.fraction_y : from.fraction_y) *
                           (low_column ? Real(1) - from.fraction_x : from.fraction_x);
        if (share != Real(0)) {
          const int position = atomicAdd(num_terms, 1);
          if (position >= kTermsAtOnce) break;
          terms[position] = {share * from.weight, share * from.logit, from.grad, from.query};
        }
        link = from.next;
      }
      __syncwarp();
      const int count = *num_terms < kTermsAtOnce ? *num_terms : kTermsAtOnce;
      [[maybe_unused]] constexpr int kUnroll = kGatherUnroll<T>;
#pragma unroll kUnroll
      for (int j = 0; j < count; ++j) {
        const Term<Real, V> term = terms[j];
        Real grad[C], query[C];
        load<V, C>(grads, term.grad, grad);
        load<V, C>(queries, term.query, query);
#pragma unroll
        for (int i = 0; i < C; ++i) sums[i] += term.of_grad * grad[i];
#pragma unroll
        for (int i = 0; i < C; ++i) sums[i] += term.of_query * query[i];
      }
      __syncwarp();
    } while (__any_sync(0xffffffffu, link != kNone<V>));
    if (exists) lane.store(advance<V>(static_cast<T*>(call.grad_memory), unit.index * plan.packs), sums);
  }
}

// The same into `sums`, which starts at zero, in an order that never changes: one thread owns one channel of
// one row of one memory frame, and goes through every tap of every query frame that attends to it. Slow, and
// simple enough to be sure of.
template <typename T, int V>
__global__ void __launch_bounds__(kBlock)
    gather_in_order(const InterFrameAttentionBackward call, const Plan<T, V> plan,
                    const Contribution<Accumulator<T>, V>* const contributions, Accumulator<T>* const sums) {
  using Real = Accumulator<T>;
  using I = Index<V>;
  const int num_taps = plan.kernel_size * plan.kernel_size;
  const PixelStrides strides = dense_strides(call.channels, call.memory_frames, call.height, call.width);
  const int64_t threads = call.batch * call.memory_frames * call.height * call.channels;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < threads;
       index += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = index / call.channels;  // of all rows of all frames of all clips
    const int64_t channel = index - row * call.channels;
    const int64_t frame = row / call.height;
    const int64_t y = row - frame * call.height;
    const int64_t batch = frame / call.memory_frames;
    const int64_t memory_frame = frame - batch * call.memory_frames;
    const int64_t group = channel / (call.channels / call.groups);
    const I n = static_cast<I>(batch);
    Real* const owned = sums + row * strides.row + channel;
    for (int64_t t = 0; t < call.frames; ++t) {
      if (neighbour_frame(call, t) != memory_frame) continue;
      const I step = static_cast<I>(t);
      for (int64_t from_y = 0; from_y < call.height; ++from_y) {
        for (int64_t from_x = 0; from_x < call.width; ++from_x) {
          const int64_t pixel = ((batch * call.frames + t) * call.height + from_y) * call.width + from_x;
          const I at_y = static_cast<I>(from_y), at_x = static_cast<I>(from_x);
          const I offset = plan.offset.frame_at(n, step) + plan.offset.pixel_at(at_y, at_x);
          const I query = plan.query.frame_at(n, step) + plan.query.pixel_at(at_y, at_x);
          const I grad = plan.grad.frame_at(n, step) + plan.grad.pixel_at(at_y, at_x);
          for (int p = 0; p < num_taps; ++p) {
            AxisSample<Real> rows, columns;
            if (!locate_tap(call, plan, offset, static_cast<int>(from_y), static_cast<int>(from_x), p, rows,
                            columns)) {
              continue;
            }
            // A corner outside the frame has the index of the other one and weight 0.
            const Real weight_y =
                (rows.low == y ? rows.weight_low : Real(0)) + (rows.high == y ? rows.weight_high : Real(0));
            if (weight_y == Real(0)) continue;
            const Contribution<Real, V>& contribution =
                contributions[(pixel * call.groups + group) * num_taps + p];
            const T* const q = advance<V>(static_cast<const T*>(call.query), query) + channel;
            const T* const g = advance<V>(static_cast<const T*>(call.grad_output), grad) + channel;
            const Real value = contribution.weight * static_cast<Real>(__ldg(g)) +
                               contribution.logit * static_cast<Real>(__ldg(q));
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

// grad_offset of several groups, which share the offsets.
template <typename Real, typename Offset>
__global__ void __launch_bounds__(kBlock)
    sum_groups(const InterFrameAttentionBackward call, const OffsetGradient<Real>* const group_gradients) {
  const int64_t num_taps = call.kernel_size * call.kernel_size;
  const int64_t threads = call.batch * call.frames * call.height * call.width * num_taps;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < threads;
       index += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t pixel = index / num_taps;
    const int64_t p = index - pixel * num_taps;
    Real sums[2] = {};  // along y, along x
    for (int64_t group = 0; group < call.groups; ++group) {
      const OffsetGradient<Real> gradient = group_gradients[(pixel * call.groups + group) * num_taps + p];
      sums[0] += gradient.y;
      sums[1] += gradient.x;
    }
    store_pack<2>(static_cast<Offset*>(call.grad_offset) + 2 * index, sums);
  }
}

// ---------------------------------------------------------------------------------------------- launching

template <typename T, int V>
int attend_channels(const InterFrameAttention& call) {
  return call.channels / call.groups <= kSmallGroup ? kFewChannels : kManyChannels<T, V>;
}

// The lanes that one unit needs if each holds `lane_channels`.
inline int team_for(const InterFrameAttention& call, int lane_channels) {
  const int64_t lanes = (call.channels / call.groups + lane_channels - 1) / lane_channels;
  int team = 1;
  while (team < lanes) team *= 2;
  return team;
}

// Layout of a kernel that keeps a Prepared<T, V, TapType>.
template <typename T, int V, typename TapType>
Layout layout_for(const InterFrameAttention& call, int lane_channels) {
  using Memory = Prepared<T, V, TapType>;
  Layout layout;
  layout.team = team_for(call, lane_channels);
  layout.threads = layout.team > kBlock ? layout.team : kBlock;
  const int64_t units = call.batch * call.frames * call.height * call.width * call.groups;
  const auto count = [&] { return layout.threads / layout.team * layout.turns; };
  const auto bytes = [&] {
    return count() * Memory::bytes_per_unit() + Memory::scratch_bytes(layout.threads);
  };
  layout.turns = 1;
  while (bytes() > kSharedBytes) layout.threads /= 2;
  const bool all_at_once = call.kernel_size * call.kernel_size <= kTapsAtOnce;
  while (all_at_once && layout.turns < kMaxTurns) {
    layout.turns *= 2;
    if (bytes() <= kSharedBytes && blocks_for(units, count()) >= kManyBlocks) continue;
    layout.turns /= 2;
    break;
  }
  layout.shared_bytes = bytes();
  layout.blocks = blocks_for(units, count());
  return layout;
}

// How gather() is launched.
template <typename T, int V>
struct GatherLayout {
  int team, threads = kBlock, shared_bytes;
  int64_t slabs_per_unit, slabs, blocks;

  explicit GatherLayout(const InterFrameAttention& call) {
    constexpr int64_t kSlab = kWarp * kGatherChannels<T>;
    const int needed = team_for(call, kGatherChannels<T>);
    team = needed < 4 ? 4 : needed < kWarp ? needed : kWarp;
    slabs_per_unit = (call.channels / call.groups + kSlab - 1) / kSlab;
    slabs = call.batch * call.memory_frames * call.height * call.width * call.groups * slabs_per_unit;
    while (gather_shared_bytes<Accumulator<T>, V>(threads, team) > kSharedBytes) threads /= 2;
    shared_bytes = gather_shared_bytes<Accumulator<T>, V>(threads, team);
    blocks = blocks_for(slabs, threads / team);
  }
};

// One past the last element.
inline int64_t extent(const PixelStrides& strides, const InterFrameAttention& call, int64_t frames) {
  return (call.batch - 1) * strides.batch + (frames - 1) * strides.frame + (call.height - 1) * strides.row +
         (call.width - 1) * strides.column + call.channels;
}

// Whether packs of `pack` elements fit the groups and the addresses, and all indices 31 bits.
inline bool allows_packs(const InterFrameAttention& call, int64_t pack) {
  const int64_t most = 0x7fffffff;
  const OffsetStrides& at = call.offset_strides;
  const int64_t taps = call.kernel_size * call.kernel_size;
  return call.channels / call.groups % pack == 0 &&
         allows_packs(call.query, call.query_strides, call, call.frames, pack) &&
         allows_packs(call.memory, call.memory_strides, call, call.memory_frames, pack) &&
         extent(call.query_strides, call, call.frames) / pack < most &&
         extent(call.memory_strides, call, call.memory_frames) / pack < most &&
         extent({at.batch, at.frame, at.row, at.column}, call, call.frames) + 2 * taps * at.channel < most &&
         call.batch * call.frames * call.height * call.width * call.channels / pack < most;
}

inline bool allows_packs(const InterFrameAttentionBackward& call, int64_t pack) {
  const int64_t most = 0x7fffffff;
  return allows_packs(static_cast<const InterFrameAttention&>(call), pack) &&
         allows_packs(call.grad_output, call.grad_output_strides, call, call.frames, pack) &&
         extent(call.grad_output_strides, call, call.frames) / pack < most && num_cells(call) < most &&
         call.batch * call.frames * call.height * call.width * call.groups * call.kernel_size *
                 call.kernel_size <
             most &&
         call.batch * call.memory_frames * call.height * call.width * call.channels / pack < most;
}

}  // namespace sifa::cuda
