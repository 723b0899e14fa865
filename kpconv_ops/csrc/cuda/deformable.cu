#include "cuda/neighborhood.h"
#include "cuda/tensor.h"

namespace kp {

// Four elements a step of a product; a lane reads them, or twice as many, in one access.
template <int V>
constexpr int slice_groups = V > 4 ? V / 4 : 1;

// The channels from `channel` of a row, zeros where there is no row and beyond its end.
template <int V, class F>
__device__ void load_slice(bool exists, const F* row, int channel, int channels,
                           Vector<F, 4> (&slice)[slice_groups<V>]) {
#pragma unroll
  for (int s = 0; s < 4 * slice_groups<V>; s += V) {
    const Vector<F, V> part = load_or_zeros<V>(exists && channel + s < channels, row + channel + s);
#pragma unroll
    for (int v = 0; v < V; v++) slice[(s + v) / 4].at[(s + v) % 4] = part.at[v];
  }
}

// A warp a query and 16 of its kernel points (blockIdx.z). How much an influence matters is the product of two rows,
// the gradient of the aggregate at the kernel point and the features of the neighbour: again a matrix product. Each
// lane adds up the gradients of its kernel points over its neighbours; four lanes share a kernel point.
template <int V, class G, class F>
__global__ void __launch_bounds__(warps * warp_size, resident<F>)
    deform_backward_kernel(Neighborhoods<G, Accumulator<F>> a, const F* features, int channels,
                           const F* grad_aggregate, G* grad_points, G* grad_modulations) {
  using R = Accumulator<F>;
  KP_SHARED(Batch<R>, batches, warps);
  const int group = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const int query = blockIdx.x * warps + threadIdx.y;
  if (query >= a.num_queries) return;
  const int first_point = blockIdx.z * tile_points;
  Batch<R>& batch = batches[threadIdx.y];

  KernelPoint<R> points[2];
  for (int r = 0; r < 2; r++) points[r] = kernel_point(a, query, first_point + lane_point(r));
  const F* grads =
      grad_aggregate + (static_cast<int64_t>(query) * a.num_kernel_points + first_point + group) * channels;

  R grad[2][4] = {};  // x, y, z, modulation
  const Range range = range_of(a.splits, query, a.num_indices);
  const int32_t* indices = a.indices + range.begin;
  const int count = static_cast<int>(range.end - range.begin);
  for (int begin = 0; begin < count; begin += warp_size) {
    batch.fetch(a, query, indices + begin, count - begin);
#pragma unroll 1
    for (int step = 0; step < warp_size && step < count - begin; step += tile_points) {
      R products[2][4] = {};  // kernel points x the first and the last 8 neighbours
      for (int first = 0; first < channels; first += 16 * slice_groups<V>) {
        const int channel = first + quarter * 4 * slice_groups<V>;
        Vector<F, 4> left[2][slice_groups<V>], right[2][slice_groups<V>];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int64_t row = batch.neighbors[step + 8 * half + group].row;
          load_slice<V>(first_point + lane_point(half) < a.num_kernel_points,
                        grads + 8 * half * static_cast<int64_t>(channels), channel, channels, left[half]);
          load_slice<V>(row >= 0, features + row * channels, channel, channels, right[half]);
        }
#pragma unroll
        for (int s = 0; s < slice_groups<V>; s++)
#pragma unroll
          for (int half = 0; half < 2; half++) multiply_add(products[half], left[0][s], left[1][s], right[half][s]);
      }
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int r = i / 4, n = step + lane_neighbor(i % 4), p = first_point + lane_point(r);
        const Neighbor<R> neighbor = batch.neighbors[n];
        const R squared = squared_distance(neighbor, points[r]);
        const bool acts =
            neighbor.row >= 0 && a.rule.reaches(squared) && (!a.rule.closest || batch.nearest[n] == p);
        const R product = acts ? products[i % 4 / 2][2 * r + i % 2] : R(0);
        const R strength = a.rule.strength(squared);
        const R pull = product * points[r].modulation * a.rule.slope(squared, strength);
        grad[r][0] += pull * (neighbor.x - points[r].x);
        grad[r][1] += pull * (neighbor.y - points[r].y);
        grad[r][2] += pull * (neighbor.z - points[r].z);
        grad[r][3] += product * strength;
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 2; r++) {
#pragma unroll
    for (int x = 0; x < 4; x++)
      for (int other = 1; other <= 2; other *= 2) grad[r][x] += __shfl_xor_sync(all_lanes, grad[r][x], other);
    const int p = first_point + lane_point(r);
    if (quarter != 0 || p >= a.num_kernel_points) continue;
    const int64_t i = static_cast<int64_t>(query) * a.num_kernel_points + p;
    for (int x = 0; x < 3; x++) grad_points[3 * i + x] = static_cast<G>(grad[r][x]);
    if (grad_modulations) grad_modulations[i] = static_cast<G>(grad[r][3]);
  }
}

// A thread a kernel point.
template <class G>
__global__ void kernel_point_neighbors_kernel(const G* queries, int64_t num_queries, const G* supports,
                                              int64_t num_supports, const G* kernel_points, int64_t num_kernel_points,
                                              const int32_t* indices, int64_t num_indices, const int64_t* splits,
                                              int32_t* nearest) {
  const int64_t thread = thread_index();
  if (thread >= num_queries * num_kernel_points) return;
  const int64_t query = thread / num_kernel_points;
  const G* q = queries + 3 * query;
  G best = static_cast<G>(INFINITY);
  int32_t row = -1;
  const Range range = range_of(splits, query, num_indices);
  for (int64_t e = range.begin; e < range.end; e++) {
    const int64_t j = indices[e];
    if (j < 0 || j >= num_supports) continue;
    const G* s = supports + 3 * j;
    const G d = deciding_distance(s[0] - q[0], s[1] - q[1], s[2] - q[2], kernel_points + 3 * thread);
    if (row < 0 || d < best) {
      best = d;
      row = static_cast<int32_t>(j);
    }
  }
  nearest[thread] = row;
}

template <class G, class F>
void deform_backward(const Neighborhoods<G, Accumulator<F>>& a, const F* features, int channels,
                     const F* grad_aggregate, G* grad_points, G* grad_modulations, void* stream) {
  const dim3 grid(blocks(a.num_queries, warps), 1, blocks(a.num_kernel_points, tile_points));
  with_width<F>(in_vectors<F>(channels, features, grad_aggregate), [&](auto width) {
    KP_LAUNCH((deform_backward_kernel<decltype(width)::value, G, F>), grid, dim3(warp_size, warps), 0, stream, a,
              features, channels, grad_aggregate, grad_points, grad_modulations);
  });
}

}  // namespace kp

KP_OP(kp_deform_backward)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                          int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                          const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                          const void* features, int64_t channels, double extent, int influence, int closest,
                          const void* grad_aggregate, void* grad_points, void* grad_modulations, int device,
                          void* stream) {
  return kp::guarded(device, [&] {
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        using R = kp::Accumulator<F>;
        if (num_queries == 0) return;
        const kp::Neighborhoods<G, R> a{static_cast<const G*>(queries),
                                        static_cast<const G*>(supports),
                                        kp::narrow(num_queries),
                                        kp::narrow(num_supports),
                                        static_cast<const G*>(kernel_points),
                                        static_cast<const G*>(modulations),
                                        kp::narrow(num_kernel_points),
                                        1,
                                        indices,
                                        num_indices,
                                        splits,
                                        kp::InfluenceRule<R>(influence, closest, extent)};
        kp::deform_backward(a, static_cast<const F*>(features), kp::narrow(channels),
                            static_cast<const F*>(grad_aggregate), static_cast<G*>(grad_points),
                            static_cast<G*>(grad_modulations), stream);
      });
    });
  });
}

KP_OP(kp_kernel_point_neighbors)(int geometry, const void* queries, int64_t num_queries, const void* supports,
                                 int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                                 const int32_t* indices, int64_t num_indices, const int64_t* splits, int32_t* nearest,
                                 int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_coordinates(geometry, [&](auto coordinate) {
      using G = decltype(coordinate);
      const int64_t elements = num_queries * num_kernel_points;
      if (elements)
        KP_LAUNCH((kp::kernel_point_neighbors_kernel<G>), kp::blocks(elements, 256), 256, 0, stream,
                  static_cast<const G*>(queries), num_queries, static_cast<const G*>(supports), num_supports,
                  static_cast<const G*>(kernel_points), num_kernel_points, indices, num_indices, splits, nearest);
    });
  });
}
