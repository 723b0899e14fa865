#include "core/accumulator.h"
#include "core/influence.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int lane_channels = 2;  // a warp owns this many channels a lane: its tile
constexpr int tile = warp_size * lane_channels;
constexpr int max_warps = 8;
constexpr int shared_bytes = 48 * 1024;  // what every GPU grants without asking

template <class G, class F>
struct Aggregation {
  const G* queries;
  int64_t num_queries;
  const G* supports;
  int64_t num_supports;
  const G* kernel_points;
  int num_kernel_points;
  const int32_t* indices;
  const int64_t* splits;
  const F* features;
  int64_t channels;
  InfluenceRule<G> rule;
  F* aggregate;
};

template <class G>
__device__ G distance_to_kernel_point(const G* kernel_points, int p, G x, G y, G z) {
  return squared_distance(x, y, z, kernel_points[3 * p], kernel_points[3 * p + 1], kernel_points[3 * p + 2]);
}

// The nearest kernel point of a neighbour, the first one in a tie; every lane gets it.
template <class G>
__device__ int nearest_kernel_point(const G* kernel_points, int count, int lane, G x, G y, G z) {
  G best = static_cast<G>(INFINITY);
  int nearest = lane < count ? lane : 0;
  for (int p = lane; p < count; p += warp_size) {
    G d = distance_to_kernel_point(kernel_points, p, x, y, z);
    if (d < best) {
      best = d;
      nearest = p;
    }
  }
  for (int step = warp_size / 2; step > 0; step /= 2) {
    G other = __shfl_xor_sync(all_lanes, best, step);
    int point = __shfl_xor_sync(all_lanes, nearest, step);
    if (other < best || (other == best && point < nearest)) {
      best = other;
      nearest = point;
    }
  }
  return nearest;
}

// A warp a query and channel tile. Lanes fetch 32 neighbours at a time; then, neighbour by neighbour, they share out the
// kernel points to find those that act, and the channels to add the feature to the sums of these. A lane alone touches
// its channels of the sums, so they need no barrier.
template <class G, class F>
__global__ void aggregate_kernel(Aggregation<G, F> a) {
  using A = Accumulator<F>;
  KP_DYNAMIC_SHARED(A, sums);
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t query = blockIdx.x * static_cast<int64_t>(blockDim.y) + warp;
  if (query >= a.num_queries) return;
  const int64_t first_channel = blockIdx.y * static_cast<int64_t>(tile) + lane;
  A* sum = sums + warp * a.num_kernel_points * tile + lane;
  for (int p = 0; p < a.num_kernel_points; p++)
    for (int c = 0; c < lane_channels; c++) sum[p * tile + c * warp_size] = 0;

  const G* q = a.queries + 3 * query;
  const int64_t end = a.splits[query + 1];
  for (int64_t start = a.splits[query]; start < end; start += warp_size) {
    const int count = static_cast<int>(end - start < warp_size ? end - start : warp_size);
    int32_t mine = lane < count ? a.indices[start + lane] : -1;
    if (mine >= a.num_supports) mine = -1;
    G x = 0, y = 0, z = 0;
    if (mine >= 0) {
      const G* s = a.supports + 3 * static_cast<int64_t>(mine);
      x = s[0] - q[0];
      y = s[1] - q[1];
      z = s[2] - q[2];
    }
    for (int n = 0; n < count; n++) {
      const int64_t support = __shfl_sync(all_lanes, mine, n);
      if (support < 0) continue;
      const G nx = __shfl_sync(all_lanes, x, n), ny = __shfl_sync(all_lanes, y, n), nz = __shfl_sync(all_lanes, z, n);
      A feature[lane_channels];
      for (int c = 0; c < lane_channels; c++) {
        const int64_t channel = first_channel + c * warp_size;
        feature[c] = channel < a.channels ? static_cast<A>(a.features[support * a.channels + channel]) : A(0);
      }
      int nearest = -1;
      if (a.rule.closest) nearest = nearest_kernel_point(a.kernel_points, a.num_kernel_points, lane, nx, ny, nz);
      for (int round = 0; round < a.num_kernel_points; round += warp_size) {
        const int p = round + lane;
        bool acts = p < a.num_kernel_points && (nearest < 0 || nearest == p);
        A strength = 0;
        if (acts) {
          const G d = distance_to_kernel_point(a.kernel_points, p, nx, ny, nz);
          acts = a.rule.reaches(d);
          if (acts) strength = static_cast<A>(a.rule.strength(d));
        }
        for (unsigned acting = __ballot_sync(all_lanes, acts); acting; acting &= acting - 1) {
          const int owner = __ffs(acting) - 1;
          const A weight = __shfl_sync(all_lanes, strength, owner);
          A* target = sum + (round + owner) * tile;
          for (int c = 0; c < lane_channels; c++) target[c * warp_size] += weight * feature[c];
        }
      }
    }
  }
  for (int p = 0; p < a.num_kernel_points; p++)
    for (int c = 0; c < lane_channels; c++) {
      const int64_t channel = first_channel + c * warp_size;
      if (channel < a.channels)
        a.aggregate[(query * a.num_kernel_points + p) * a.channels + channel] = static_cast<F>(sum[p * tile + c * warp_size]);
    }
}

}  // namespace kp

KP_OP(kp_aggregate)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                    int64_t num_supports, const void* kernel_points, int64_t num_kernel_points, const int32_t* indices,
                    int64_t, const int64_t* splits, const void* features, int64_t channels, double extent, int influence,
                    int closest, void* aggregate, int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        if (num_queries == 0 || channels == 0) return;
        const kp::Aggregation<G, F> a{static_cast<const G*>(queries),
                                      num_queries,
                                      static_cast<const G*>(supports),
                                      num_supports,
                                      static_cast<const G*>(kernel_points),
                                      static_cast<int>(num_kernel_points),
                                      indices,
                                      splits,
                                      static_cast<const F*>(features),
                                      channels,
                                      kp::InfluenceRule<G>(influence, closest, extent),
                                      static_cast<F*>(aggregate)};
        const int warp_bytes = a.num_kernel_points * kp::tile * static_cast<int>(sizeof(kp::Accumulator<F>));
        const int fitting = kp::shared_bytes / warp_bytes;
        const int warps = fitting < kp::max_warps ? fitting : kp::max_warps;
        const dim3 grid(kp::blocks(num_queries, warps), kp::blocks(channels, kp::tile));
        KP_LAUNCH((kp::aggregate_kernel<G, F>), grid, dim3(kp::warp_size, warps), warps * warp_bytes, stream, a);
      });
    });
  });
}
