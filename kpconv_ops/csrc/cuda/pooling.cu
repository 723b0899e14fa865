#include "core/pooling.h"
#include "core/range.h"
#include "cuda/cuda.h"

namespace kp {

// As many winners in one access as there are channels, but not more than 16 bytes of them.
template <int V>
constexpr int winner_width = V < 4 ? V : 4;

// A thread a query and V channels.
template <int V, class F>
__global__ void max_pool_kernel(const F* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                                int64_t num_indices, const int64_t* splits, int64_t num_queries, F* values,
                                int32_t* winners) {
  const int64_t query = thread_row(), channel = thread_column() * V;
  if (query >= num_queries || channel >= channels) return;
  Accumulator<F> maximum[V] = {};
  int32_t winner[V];
  for (int v = 0; v < V; v++) winner[v] = -1;
  const Range range = range_of(splits, query, num_indices);
#pragma unroll 4
  for (int64_t e = range.begin; e < range.end; e++) {
    const int32_t j = indices[e];
    const bool exists = j >= 0 && j < num_supports;
    const auto feature = load_or_zeros<V>(exists, features + j * channels + channel);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const Accumulator<F> value = feature.at[v];
      if (exists && (winner[v] < 0 || replaces(value, maximum[v]))) {
        maximum[v] = value;
        winner[v] = j;
      }
    }
  }
  Vector<F, V> out;
  for (int v = 0; v < V; v++) out.at[v] = static_cast<F>(maximum[v]);
  store(values + query * channels + channel, out);
  constexpr int width = winner_width<V>;
#pragma unroll
  for (int v = 0; v < V; v += width) {
    Vector<int32_t, width> part;
    for (int w = 0; w < width; w++) part.at[w] = winner[v + w];
    store(winners + query * channels + channel + v, part);
  }
}

// A thread a support and V channels.
template <int V, class F>
__global__ void max_pool_backward_kernel(const F* gradient, const int32_t* winners, int64_t num_queries,
                                         int64_t channels, const int32_t* indices, int64_t num_indices,
                                         const int64_t* splits, int64_t num_supports, F* out) {
  const int64_t support = thread_row(), channel = thread_column() * V;
  if (support >= num_supports || channel >= channels) return;
  Accumulator<F> sums[V] = {};
  const Range range = range_of(splits, support, num_indices);
#pragma unroll 4
  for (int64_t e = range.begin; e < range.end; e++) {
    const int64_t query = indices[e];
    if (query < 0 || query >= num_queries) continue;
    const int64_t row = query * channels + channel;
    bool won[V], any = false;
#pragma unroll
    for (int v = 0; v < V; v += winner_width<V>) {
      const auto part = load<winner_width<V>>(winners + row + v);
#pragma unroll
      for (int w = 0; w < winner_width<V>; w++) any |= won[v + w] = part.at[w] == support;
    }
    if (!any) continue;  // spares most of the gradients' bytes
    const auto grad = load<V>(gradient + row);
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] += won[v] ? static_cast<Accumulator<F>>(grad.at[v]) : 0;
  }
  Vector<F, V> result;
  for (int v = 0; v < V; v++) result.at[v] = static_cast<F>(sums[v]);
  store(out + support * channels + channel, result);
}

// A thread a query and V channels.
template <int V, class F>
__global__ void weighted_sum_kernel(const F* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                                    int64_t num_indices, const int64_t* splits, const Accumulator<F>* weights,
                                    int64_t num_queries, F* out) {
  const int64_t query = thread_row(), channel = thread_column() * V;
  if (query >= num_queries || channel >= channels) return;
  Accumulator<F> sums[V] = {};
  const Range range = range_of(splits, query, num_indices);
#pragma unroll 4
  for (int64_t e = range.begin; e < range.end; e++) {
    const int32_t j = indices[e];
    if (j < 0 || j >= num_supports) continue;
    const Accumulator<F> weight = weights ? weights[e] : 1;
    const auto feature = load<V>(features + j * channels + channel);
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] += weight * static_cast<Accumulator<F>>(feature.at[v]);
  }
  Vector<F, V> result;
  for (int v = 0; v < V; v++) result.at[v] = static_cast<F>(sums[v]);
  store(out + query * channels + channel, result);
}

}  // namespace kp

KP_OP(kp_max_pool)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                   int64_t num_indices, const int64_t* splits, int64_t num_queries, void* values, int32_t* winners,
                   int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::with_width<F>(kp::in_vectors<F>(channels, features, values, winners), [&](auto width) {
        constexpr int V = decltype(width)::value;
        const kp::RowLaunch launch(num_queries, channels / V);
        if (!launch.empty())
          KP_LAUNCH((kp::max_pool_kernel<V, F>), launch.grid, launch.block, 0, stream, static_cast<const F*>(features),
                    num_supports, channels, indices, num_indices, splits, num_queries, static_cast<F*>(values),
                    winners);
      });
    });
  });
}

KP_OP(kp_max_pool_backward)(int dtype, const void* gradient, const int32_t* winners, int64_t num_queries,
                            int64_t channels, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                            int64_t num_supports, void* out, int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::with_width<F>(kp::in_vectors<F>(channels, gradient, winners, out), [&](auto width) {
        constexpr int V = decltype(width)::value;
        const kp::RowLaunch launch(num_supports, channels / V);
        if (!launch.empty())
          KP_LAUNCH((kp::max_pool_backward_kernel<V, F>), launch.grid, launch.block, 0, stream,
                    static_cast<const F*>(gradient), winners, num_queries, channels, indices, num_indices, splits,
                    num_supports, static_cast<F*>(out));
      });
    });
  });
}

KP_OP(kp_weighted_sum)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                       int64_t num_indices, const int64_t* splits, const void* weights, int64_t num_queries, void* out,
                       int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::with_width<F>(kp::in_vectors<F>(channels, features, out), [&](auto width) {
        constexpr int V = decltype(width)::value;
        const kp::RowLaunch launch(num_queries, channels / V);
        if (!launch.empty())
          KP_LAUNCH((kp::weighted_sum_kernel<V, F>), launch.grid, launch.block, 0, stream,
                    static_cast<const F*>(features), num_supports, channels, indices, num_indices, splits,
                    static_cast<const kp::Accumulator<F>*>(weights), num_queries, static_cast<F*>(out));
      });
    });
  });
}
