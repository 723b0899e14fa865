#include "cuda/neighborhood.h"
#include "cuda/tensor.h"

// The aggregate of a query is a small matrix product: influences [kernel points, neighbours] x features [neighbours,
// channels]. Most influences are zero, but the tensor cores take 16 x 16 of them with 8 channels in one instruction,
// which costs less than finding out which are not.
namespace kp {

// The channel of a tile that column n of a product starts at, for vectors of V channels: lanes that store next to each
// other hold columns 0, 2, 4, 6 and then 1, 3, 5, 7.
__device__ inline int first_channel_of(int column, int V) { return (column % 2 * 4 + column / 2) * V; }

// The influences of a lane's kernel points on its neighbours. points: the former, unless each support has its own.
template <bool of_supports, class G, class R>
__device__ void influences(const Neighborhoods<G, R>& a, const Batch<R>& batch, int step,
                           const Neighbor<R> (&neighbors)[4], const KernelPoint<R> (&points)[2], int first_point,
                           R (&strength)[2][4]) {
  R squared[2][4], modulation[2][4];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const Neighbor<R>& neighbor = neighbors[i % 4];
    KernelPoint<R> point = points[i / 4];
    if (of_supports)
      point = kernel_point(a, neighbor.row < 0 ? 0 : neighbor.row, first_point + lane_point(i / 4));
    squared[i / 4][i % 4] = squared_distance(neighbor, point);
    modulation[i / 4][i % 4] = point.modulation;
  }
  apply_rule(a.rule, squared, strength);
  if (a.modulations)
#pragma unroll
    for (int i = 0; i < 8; i++) strength[i / 4][i % 4] *= modulation[i / 4][i % 4];
  if (a.rule.closest) keep_closest(batch, step, first_point, strength);
}

// A warp a query, 8 W channels (blockIdx.y) and 16 kernel points (blockIdx.z). Each lane reads W channels of four
// neighbours at a time, V in one access. No atomics and a fixed order: the same bits on every run.
template <int W, int V, bool of_supports, class G, class F>
__global__ void __launch_bounds__(warps * warp_size, resident<F>)
    aggregate_kernel(Neighborhoods<G, Accumulator<F>> a, const F* features, int channels, F* aggregate) {
  using R = Accumulator<F>;
  KP_SHARED(Batch<R>, batches, warps);
  const int group = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const int query = blockIdx.x * warps + threadIdx.y;
  if (query >= a.num_queries) return;
  const int first_channel = blockIdx.y * 8 * W;
  const int first_point = blockIdx.z * tile_points;
  Batch<R>& batch = batches[threadIdx.y];

  KernelPoint<R> points[2] = {};
  if (!of_supports)
    for (int r = 0; r < 2; r++) points[r] = kernel_point(a, point_set(a, query, 0), first_point + lane_point(r));
  const int channel = first_channel + first_channel_of(group, V);
  const char* bytes = reinterpret_cast<const char*>(features + channel);
  const int pitch = channels * static_cast<int>(sizeof(F));  // in bytes: an address is one multiplication away

  R sums[W][4] = {};
  const Range range = range_of(a.splits, query, a.num_indices);
  const int32_t* indices = a.indices + range.begin;
  const int count = static_cast<int>(range.end - range.begin);
  for (int begin = 0; begin < count; begin += warp_size) {
    batch.fetch(a, query, indices + begin, count - begin);
#pragma unroll 1
    for (int step = 0; step < warp_size && step < count - begin; step += tile_points) {
      Neighbor<R> neighbors[4];
      Vector<F, V> values[W / V][4];  // loaded first, so that they arrive while influences are computed
#pragma unroll
      for (int i = 0; i < 4; i++) {
        neighbors[i] = batch.neighbors[step + lane_neighbor(i)];
        const auto* row = reinterpret_cast<const F*>(bytes + static_cast<int64_t>(neighbors[i].row) * pitch);
#pragma unroll
        for (int t = 0; t < W / V; t++)
          values[t][i] = load_or_zeros<V>(neighbors[i].row >= 0 && channel + 8 * V * t < channels, row + 8 * V * t);
      }
      R strength[2][4];
      influences<of_supports>(a, batch, step, neighbors, points, first_point, strength);
      const Left<F> left(strength);
#pragma unroll
      for (int w = 0; w < W; w++) left.multiply_add(sums[w], values[w / V], w % V);
    }
  }

  const int out_channel = first_channel + first_channel_of(2 * quarter, V);
  const int64_t out_row = static_cast<int64_t>(query) * a.num_kernel_points + first_point + group;
  F* out = aggregate + out_row * channels + out_channel;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (first_point + lane_point(r) >= a.num_kernel_points) return;
#pragma unroll
    for (int t = 0; t < W / V; t++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        Vector<F, V> values;
#pragma unroll
        for (int v = 0; v < V; v++) values.at[v] = static_cast<F>(sums[t * V + v][2 * r + c]);
        const int step = 8 * V * t + first_channel_of(c, V);
        if (out_channel + step < channels) store(out + step, values);
      }
    out += 8 * static_cast<int64_t>(channels);
  }
}

template <int W, int V, bool of_supports, class G, class F>
void launch(const Neighborhoods<G, Accumulator<F>>& a, const F* features, int channels, F* aggregate, void* stream) {
  const dim3 grid(blocks(a.num_queries, warps), blocks(channels, 8 * W), blocks(a.num_kernel_points, tile_points));
  KP_LAUNCH((aggregate_kernel<W, V, of_supports, G, F>), grid, dim3(warp_size, warps), 0, stream, a, features, channels,
            aggregate);
}

// With as few channels a lane as serve them all, and the widest loads that these, and their alignment, allow. Kernel
// points of the supports need registers of their own, so half the channels are the most.
template <class G, class F>
void aggregate(const Neighborhoods<G, Accumulator<F>>& a, const F* features, int channels, F* out, void* stream) {
  constexpr int most = vector_width<F>, half = most < 4 ? most : 4;
  auto fits = [&](int V) { return channels % V == 0 && aligned(V * sizeof(F), features, out); };
  if (a.points_of == 2) {
    if (channels <= 8) launch<1, 1, true>(a, features, channels, out, stream);
    else if (fits(half)) launch<4, half, true>(a, features, channels, out, stream);
    else launch<4, 1, true>(a, features, channels, out, stream);
  } else {
    if (channels <= 8) launch<1, 1, false>(a, features, channels, out, stream);
    else if (channels <= 16 && fits(2)) launch<2, 2, false>(a, features, channels, out, stream);
    else if (channels <= 32 && fits(half)) launch<4, half, false>(a, features, channels, out, stream);
    else if (fits(most)) launch<8, most, false>(a, features, channels, out, stream);
    else launch<4, 1, false>(a, features, channels, out, stream);
  }
}

}  // namespace kp

KP_OP(kp_aggregate)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                    int64_t num_supports, const void* kernel_points, int64_t num_kernel_points, int points_of,
                    const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                    const void* features, int64_t channels, double extent, int influence, int closest, void* aggregate,
                    int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        using R = kp::Accumulator<F>;
        if (num_queries == 0 || channels == 0) return;
        const kp::Neighborhoods<G, R> a{static_cast<const G*>(queries),
                                        static_cast<const G*>(supports),
                                        kp::narrow(num_queries),
                                        kp::narrow(num_supports),
                                        static_cast<const G*>(kernel_points),
                                        static_cast<const G*>(modulations),
                                        kp::narrow(num_kernel_points),
                                        points_of,
                                        indices,
                                        num_indices,
                                        splits,
                                        kp::InfluenceRule<R>(influence, closest, extent)};
        kp::aggregate(a, static_cast<const F*>(features), kp::narrow(channels), static_cast<F*>(aggregate), stream);
      });
    });
  });
}
