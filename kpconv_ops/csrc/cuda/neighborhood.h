// What the convolution kernels share: the neighbours of a query, and how strongly kernel points act on them.
//
// A warp has one query and works on 16 kernel points x 16 neighbours at a time. Lane 4 g + j takes the kernel points g
// and g + 8 and the neighbours 2 j, 2 j + 1, 2 j + 8 and 2 j + 9: its share of the matrices in tensor.h, so that
// influences are computed where they are used and never leave the registers.
#pragma once
#include "core/influence.h"
#include "core/range.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int warps = 4;        // in a block; neighbouring queries share it, and its cache
constexpr int tile_points = 16;  // kernel points, and neighbours, that a warp works on at a time

// Blocks that a multiprocessor takes at least. Registers are what limits them: 16 warps of up to 128, enough to hide
// the chain of loads splits -> indices -> supports -> features of a query behind the work on others.
template <class F>
constexpr int resident = sizeof(F) == 8 ? 2 : 4;

// Coordinates are G; what is relative to the query is R, the type that sums are formed in.
template <class G, class R>
struct Neighborhoods {
  const G *queries, *supports;
  int num_queries, num_supports;
  const G *kernel_points, *modulations;
  int num_kernel_points, points_of;
  const int32_t* indices;
  int64_t num_indices;
  const int64_t* splits;
  InfluenceRule<R> rule;
};

template <class R>
struct alignas(4 * sizeof(R)) Neighbor {
  R x, y, z;    // relative to the query
  int32_t row;  // -1: none
};

template <class R>
struct KernelPoint {
  R x, y, z, modulation;
};

// The squared distance that decides which point is nearest: without fused operations every device decides alike.
template <class G>
__device__ G deciding_distance(G x, G y, G z, const G* point) {
  const G dx = x - point[0], dy = y - point[1], dz = z - point[2];
  return product(dx, dx) + product(dy, dy) + product(dz, dz);
}

template <class G, class R>
__device__ int point_set(const Neighborhoods<G, R>& a, int query, int support) {
  return a.points_of == 0 ? 0 : a.points_of == 1 ? query : support;
}

// The kernel point nearest to a neighbour, the first one in a tie.
template <class G, class R>
__device__ int nearest_kernel_point(const Neighborhoods<G, R>& a, int set, G x, G y, G z) {
  const G* points = a.kernel_points + 3 * static_cast<int64_t>(set) * a.num_kernel_points;
  int nearest = 0;
  G best = deciding_distance(x, y, z, points);
  for (int p = 1; p < a.num_kernel_points; p++) {
    const G d = deciding_distance(x, y, z, points + 3 * p);
    if (d < best) {
      best = d;
      nearest = p;
    }
  }
  return nearest;
}

// 32 neighbours of a warp's query, one fetched by each lane.
template <class R>
struct Batch {
  Neighbor<R> neighbors[warp_size];
  int nearest[warp_size];  // kernel point, when only the closest acts

  // indices: of `count` neighbours, of which the first 32 are taken.
  template <class G>
  __device__ void fetch(const Neighborhoods<G, R>& a, int query, const int32_t* indices, int count) {
    const int lane = threadIdx.x;
    Neighbor<R> mine{0, 0, 0, -1};
    int closest = -1;
    if (lane < count) {
      const int row = indices[lane];
      if (row >= 0 && row < a.num_supports) {
        const G *q = a.queries + 3 * static_cast<int64_t>(query), *s = a.supports + 3 * static_cast<int64_t>(row);
        const G x = s[0] - q[0], y = s[1] - q[1], z = s[2] - q[2];
        mine = {static_cast<R>(x), static_cast<R>(y), static_cast<R>(z), row};
        if (a.rule.closest) closest = nearest_kernel_point(a, point_set(a, query, row), x, y, z);
      }
    }
    __syncwarp();  // until every lane is done with the neighbours before
    neighbors[lane] = mine;
    nearest[lane] = closest;
    __syncwarp();
  }
};

// Kernel point p of a set; zeros if it does not exist.
template <class G, class R>
__device__ KernelPoint<R> kernel_point(const Neighborhoods<G, R>& a, int set, int p) {
  if (p >= a.num_kernel_points) return {0, 0, 0, 0};
  const int64_t i = static_cast<int64_t>(set) * a.num_kernel_points + p;
  const G* point = a.kernel_points + 3 * i;
  return {static_cast<R>(point[0]), static_cast<R>(point[1]), static_cast<R>(point[2]),
          a.modulations ? static_cast<R>(a.modulations[i]) : R(1)};
}

// Neighbour i of lane 4 g + j among the 16 of a step.
__device__ inline int lane_neighbor(int i) { return threadIdx.x % 4 * 2 + i % 2 + i / 2 * 8; }
// Kernel point r of lane 4 g + j among 16.
__device__ inline int lane_point(int r) { return threadIdx.x / 4 + 8 * r; }

template <class R>
__device__ R squared_distance(const Neighbor<R>& n, const KernelPoint<R>& k) {
  return squared_distance(n.x, n.y, n.z, k.x, k.y, k.z);
}

// The influences of a lane's kernel points on its neighbours. They need no check for pairs beyond reach: these are too
// far for the formula. Nor for neighbours and kernel points that do not exist: what becomes of them is not used.
template <Influence kind, class R>
__device__ void apply_rule(InfluenceRule<R> rule, const R (&squared)[2][4], R (&strength)[2][4]) {
  rule.kind = kind;  // known to the compiler: a loop without branches
#pragma unroll
  for (int i = 0; i < 8; i++) strength[i / 4][i % 4] = rule.strength(squared[i / 4][i % 4]);
}
template <class R>
__device__ void apply_rule(const InfluenceRule<R>& rule, const R (&squared)[2][4], R (&strength)[2][4]) {
  switch (rule.kind) {
    case Influence::linear: return apply_rule<Influence::linear>(rule, squared, strength);
    case Influence::constant: return apply_rule<Influence::constant>(rule, squared, strength);
    default: return apply_rule<Influence::gaussian>(rule, squared, strength);
  }
}

// Leaves only the kernel points that are the nearest to a neighbour.
template <class R>
__device__ void keep_closest(const Batch<R>& batch, int step, int first_point, R (&strength)[2][4]) {
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (batch.nearest[step + lane_neighbor(i % 4)] != first_point + lane_point(i / 4)) strength[i / 4][i % 4] = 0;
}

}  // namespace kp
