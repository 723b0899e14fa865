#include "core/grid.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int kThreads = 256;

__global__ void find_keys_kernel(const int64_t* keys, const int64_t* order, int64_t num_keys, const int64_t* queries,
                                 int64_t num_queries, const int64_t* shifts, int64_t num_shifts, int32_t* rows) {
  const int64_t t = thread_index();
  if (t >= num_shifts * num_queries) return;
  const int64_t key = queries[t % num_queries] + shifts[t / num_queries];
  const int64_t position = lower_bound(keys, num_keys, key);
  rows[t] = position < num_keys && keys[position] == key ? static_cast<int32_t>(order[position]) : -1;
}

// A thread an entry.
__global__ void transpose_map_kernel(const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t num_in,
                                     int32_t* transposed) {
  const int64_t t = thread_index();
  if (t >= num_taps * num_out) return;
  const int32_t row = rows[t];
  if (row >= 0 && row < num_in) transposed[t / num_out * num_in + row] = static_cast<int32_t>(t % num_out);
}

}  // namespace kp

KP_OP(kp_find_keys)(const int64_t* keys, const int64_t* order, int64_t num_keys, const int64_t* queries,
                    int64_t num_queries, const int64_t* shifts, int64_t num_shifts, int32_t* rows, int device,
                    void* stream) {
  return kp::guarded(device, [&] {
    const int64_t elements = num_shifts * num_queries;
    if (elements)
      KP_LAUNCH(kp::find_keys_kernel, kp::blocks(elements, kp::kThreads), kp::kThreads, 0, stream, keys, order,
                num_keys, queries, num_queries, shifts, num_shifts, rows);
  });
}

KP_OP(kp_transpose_map)(const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t num_in, int32_t* transposed,
                        int device, void* stream) {
  return kp::guarded(device, [&] {
    const int64_t entries = num_taps * num_out;
    if (entries)
      KP_LAUNCH(kp::transpose_map_kernel, kp::blocks(entries, kp::kThreads), kp::kThreads, 0, stream, rows, num_taps,
                num_out, num_in, transposed);
  });
}
