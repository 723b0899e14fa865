#include "core/accumulator.h"
#include "core/grid.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int threads = 256;

__global__ void find_keys_kernel(const int64_t* keys, int64_t num_keys, const int64_t* queries, int64_t num_queries,
                                 const int64_t* shifts, int64_t num_shifts, int32_t* hits) {
  const int64_t t = thread_index();
  if (t >= num_shifts * num_queries) return;
  const int64_t key = queries[t % num_queries] + shifts[t / num_queries];
  const int64_t position = lower_bound(keys, num_keys, key);
  hits[t] = position < num_keys && keys[position] == key ? static_cast<int32_t>(position) : -1;
}

// The kernels below give a thread a row and V channels: neighbouring threads touch neighbouring channels.

template <int V, class F>
__global__ void gather_rows_kernel(const F* features, int64_t num_features, int64_t channels, const int32_t* rows,
                                   int64_t num_rows, F* out) {
  const int64_t r = thread_row(), channel = thread_column() * V;
  if (r >= num_rows || channel >= channels) return;
  const int64_t row = rows[r];
  store(out + r * channels + channel,
        load_or_zeros<V>(row >= 0 && row < num_features, features + row * channels + channel));
}

// No atomics: the rows are all different.
template <int V, class F>
__global__ void add_rows_kernel(const F* values, int64_t channels, const int32_t* rows, int64_t num_rows,
                                Accumulator<F>* out, int64_t num_out) {
  const int64_t r = thread_row(), channel = thread_column() * V;
  if (r >= num_rows || channel >= channels) return;
  const int64_t row = rows[r];
  if (row < 0 || row >= num_out) return;
  using A = Accumulator<F>;
  constexpr int width = V < vector_width<A> ? V : vector_width<A>;
  const auto value = load<V>(values + r * channels + channel);
  A* sum = out + row * channels + channel;
#pragma unroll
  for (int v = 0; v < V; v += width) {
    auto part = load<width>(sum + v);
    for (int w = 0; w < width; w++) part.at[w] += static_cast<A>(value.at[v + w]);
    store(sum + v, part);
  }
}

}  // namespace kp

KP_OP(kp_find_keys)(const int64_t* keys, int64_t num_keys, const int64_t* queries, int64_t num_queries,
                    const int64_t* shifts, int64_t num_shifts, int32_t* hits, int device, void* stream) {
  return kp::guarded(device, [&] {
    const int64_t elements = num_shifts * num_queries;
    if (elements)
      KP_LAUNCH(kp::find_keys_kernel, kp::blocks(elements, kp::threads), kp::threads, 0, stream, keys, num_keys,
                queries, num_queries, shifts, num_shifts, hits);
  });
}

KP_OP(kp_gather_rows)(int dtype, const void* features, int64_t num_features, int64_t channels, const int32_t* rows,
                      int64_t num_rows, void* out, int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::with_width<F>(kp::in_vectors<F>(channels, features, out), [&](auto width) {
        constexpr int V = decltype(width)::value;
        const kp::RowLaunch launch(num_rows, channels / V);
        if (!launch.empty())
          KP_LAUNCH((kp::gather_rows_kernel<V, F>), launch.grid, launch.block, 0, stream,
                    static_cast<const F*>(features), num_features, channels, rows, num_rows, static_cast<F*>(out));
      });
    });
  });
}

KP_OP(kp_add_rows)(int dtype, const void* values, int64_t channels, const int32_t* rows, int64_t num_rows, void* out,
                   int64_t num_out, int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::with_width<F>(kp::in_vectors<F>(channels, values, out), [&](auto width) {
        constexpr int V = decltype(width)::value;
        const kp::RowLaunch launch(num_rows, channels / V);
        if (!launch.empty())
          KP_LAUNCH((kp::add_rows_kernel<V, F>), launch.grid, launch.block, 0, stream, static_cast<const F*>(values),
                    channels, rows, num_rows, static_cast<kp::Accumulator<F>*>(out), num_out);
      });
    });
  });
}
