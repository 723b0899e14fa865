#include "core/search.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int kThreads = 128, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kBuffer = 256;           // hits, or queries, of a warp in shared memory
constexpr int kKept = kBuffer - kWarp;  // a query can keep so many and still take 32 more

// Working memory of a warp.
struct Rows {
  int32_t end[9], shift[9];
};

// Calls f(i) for the supports in the 27 cells around a query; where there are no more, i = -1. A warp takes 32 at a time,
// so that it reads them side by side, and no lane leaves before the last.
template <class T, class F>
__device__ void for_each_candidate(const Search<T>& search, int64_t q, Rows* rows, F f) {
  const int lane = threadIdx.x % kWarp;
  SampleGrid grid = search.grid_of(q);
  Cell c = grid.cell_of(search.queries + 3 * q);
  Range row{0, 0};
  if (lane < 9) row = search.supports.in_row(grid, c.x - 1, c.x + 1, c.y + lane % 3 - 1, c.z + lane / 3 - 1);
  // The 9 rows make one sequence; its element j is support j + shift of the row.
  const int32_t size = static_cast<int32_t>(row.end - row.begin);
  int32_t end = size;
  for (int step = 1; step < 16; step *= 2) {
    int32_t before = __shfl_up_sync(~0u, end, step);
    if (lane >= step) end += before;
  }
  if (lane < 9) {
    rows->end[lane] = end;
    rows->shift[lane] = static_cast<int32_t>(row.begin) - (end - size);
  }
  const int32_t total = __shfl_sync(~0u, end, 8);
  __syncwarp();
  for (int32_t first = 0, r = 0; first < total; first += kWarp) {
    const int32_t j = first + lane;
    while (j < total && j >= rows->end[r]) r++;
    f(j < total ? j + rows->shift[r] : -1);
  }
}

// A warp a query. Queries come in the order of their cells, so neighbouring warps read the same supports.
template <class T>
__global__ void __launch_bounds__(kThreads) radius_count_kernel(Search<T> search, T limit, int64_t* counts) {
  KP_SHARED(Rows, rows, kWarps);
  const int64_t i = thread_index() / kWarp;
  if (i >= search.num_queries) return;
  const int64_t q = search.query(i);
  int32_t count = 0;
  for_each_candidate(search, q, rows + threadIdx.x / kWarp, [&](int32_t support) {
    count += support >= 0 && search.supports.squared_distance(search.queries + 3 * q, support) <= limit;
  });
  for (int step = kWarp / 2; step > 0; step /= 2) count += __shfl_xor_sync(~0u, count, step);
  if (threadIdx.x % kWarp == 0) counts[q] = count;
}

// The place of element k of n values when they are sorted; equal ones keep their order.
template <class V>
__device__ int32_t place_of(const V* values, int32_t n, int32_t k) {
  const V own = values[k];
  int32_t place = 0;
  for (int32_t i = 0; i < n; i++) place += values[i] < own || (i < k && !(own < values[i]));
  return place;
}

// Sorts n values with a bitonic network, a warp's work. The values that n lacks to a power of two would be the largest and
// never move.
template <class V>
__device__ void sort_by_warp(V* values, int32_t n) {
  auto order_pairs = [&](int32_t mask) {
    for (int32_t k = threadIdx.x % kWarp; k < n; k += kWarp) {
      const int32_t other = k ^ mask;
      if (other <= k || other >= n || !(values[other] < values[k])) continue;
      V value = values[k];
      values[k] = values[other];
      values[other] = value;
    }
    __syncwarp();
  };
  for (int32_t size = 2; size < 2 * n; size *= 2) {
    order_pairs(size - 1);
    for (int32_t half = size / 4; half > 0; half /= 2) order_pairs(half);
  }
}

// Puts n values on a heap of at most `kept`, the largest on top; returns how many there are.
template <class V>
__device__ int64_t push_smallest(V* heap, int64_t size, int64_t kept, const V* values, int32_t n) {
  for (int32_t i = 0; i < n; i++) {
    if (size < kept) {
      heap[size++] = values[i];
      if (size == kept) make_heap(heap, kept);
    } else if (values[i] < heap[0]) {
      heap[0] = values[i];
      sift_down(heap, kept, 0);
    }
  }
  return size;
}

// A warp a query. It collects hits in shared memory. When that is full, it drops all but those to keep; or, when these
// are too many for it, one lane moves them to a heap in global memory (`spilled`), which is slow and rare.
template <class T>
__global__ void __launch_bounds__(kThreads, 8)
    radius_fill_kernel(Search<T> search, T limit, const int64_t* splits, Hit<T>* spilled, int32_t* indices) {
  KP_SHARED(Rows, rows, kWarps);
  KP_SHARED(Hit<T>, shared_hits, kWarps * kBuffer);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t i = thread_index() / kWarp;
  if (i >= search.num_queries) return;
  const int64_t q = search.query(i), kept = splits[q + 1] - splits[q];
  if (kept == 0) return;
  Hit<T>*hits = shared_hits + warp * kBuffer, *heap = spilled + splits[q];
  int32_t found = 0;
  int64_t heaped = 0;
  auto spill = [&] {
    if (lane == 0) heaped = push_smallest(heap, heaped, kept, hits, found);
    __syncwarp();
    found = 0;
  };
  for_each_candidate(search, q, rows + warp, [&](int32_t support) {
    T distance2 = support >= 0 ? search.supports.squared_distance(search.queries + 3 * q, support) : T(INFINITY);
    const bool near = distance2 <= limit;
    const unsigned votes = __ballot_sync(~0u, near);
    if (near) hits[found + __popc(votes & ((1u << lane) - 1))] = Hit<T>(distance2, search.supports.rows[support]);
    found += __popc(votes);
    __syncwarp();
    if (found <= kKept) return;
    if (kept > kKept) return spill();
    sort_by_warp(hits, found);
    found = found < kept ? found : static_cast<int32_t>(kept);
  });
  if (kept > kKept) {
    spill();
    if (lane == 0) {
      sort_heap(heap, kept);
      for (int64_t k = 0; k < kept; k++) indices[splits[q] + k] = heap[k].row();
    }
    return;
  }
  for (int32_t k = lane; k < found; k += kWarp) {
    const int32_t place = place_of(hits, found, k);
    if (place < kept) indices[splits[q] + place] = hits[k].row();
  }
}

// A thread a query.
template <class T>
__global__ void nearest_kernel(Search<T> search, int64_t* indices, T* distances) {
  const int64_t i = thread_index();
  if (i >= search.num_queries) return;
  const int64_t q = search.query(i);
  Hit<T> hit = NearestSearch<T>{search.queries + 3 * q, search.grid_of(q), search.supports}.run();
  indices[q] = hit.row();
  distances[q] = sqrt(hit.distance2());
}

// A thread a pair. Rows outside the supports count for nothing.
__global__ void transpose_count_kernel(const int32_t* indices, int64_t num_indices, int64_t num_supports,
                                       int32_t* counts) {
  const int64_t i = thread_index();
  if (i < num_indices && indices[i] >= 0 && indices[i] < num_supports) atomicAdd(counts + indices[i], 1);
}

// A warp a query: its pairs go to the next free places of their supports. Which query comes first is chance. Where
// splits overlap, more pairs come than were counted: they find no place.
__global__ void transpose_fill_kernel(const int32_t* indices, int64_t num_indices, const int64_t* splits,
                                      int64_t num_queries, int64_t num_supports, unsigned long long* places,
                                      const int64_t* out_splits, int32_t* out) {
  const int64_t q = thread_index() / kWarp;
  if (q >= num_queries) return;
  const Range range = range_of(splits, q, num_indices);
  for (int64_t i = range.begin + threadIdx.x % kWarp; i < range.end; i += kWarp) {
    const int32_t support = indices[i];
    if (support < 0 || support >= num_supports) continue;
    const auto place = static_cast<int64_t>(atomicAdd(places + support, 1ull));
    if (place < out_splits[support + 1]) out[place] = static_cast<int32_t>(q);
  }
}

// A warp a support: puts its queries in order.
__global__ void __launch_bounds__(kThreads)
    transpose_sort_kernel(const int64_t* splits, int64_t num_supports, int32_t* queries) {
  KP_SHARED(int32_t, shared, kWarps * kBuffer);
  const int lane = threadIdx.x % kWarp;
  const int64_t s = thread_index() / kWarp;
  if (s >= num_supports) return;
  int32_t *own = shared + threadIdx.x / kWarp * kBuffer, *out = queries + splits[s];
  const int64_t n = splits[s + 1] - splits[s];
  if (n > kBuffer) {
    if (lane == 0) {
      make_heap(out, n);
      sort_heap(out, n);
    }
    return;
  }
  for (int64_t k = lane; k < n; k += kWarp) own[k] = out[k];
  __syncwarp();
  for (int32_t k = lane; k < n; k += kWarp) out[place_of(own, static_cast<int32_t>(n), k)] = own[k];
}

}  // namespace kp

KP_OP(kp_radius_count)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                       const int32_t* query_order, const void* supports, const int32_t* support_rows,
                       const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                       int64_t batch, double radius, int64_t* counts, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_search(dtype, queries, num_queries, query_offsets, query_order, supports, support_rows, keys,
                    num_supports, boxes, cells, batch, [=](auto search) {
      using T = std::decay_t<decltype(*search.queries)>;
      if (num_queries > 0)
        KP_LAUNCH((kp::radius_count_kernel<T>), kp::blocks(num_queries, kp::kWarps), kp::kThreads, 0, stream, search,
                  kp::squared<T>(radius), counts);
    });
  });
}

KP_OP(kp_radius_fill)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                      const int32_t* query_order, const void* supports, const int32_t* support_rows,
                      const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                      int64_t batch, double radius, const int64_t* splits, void* hits, int32_t* indices, int device,
                      void* stream) {
  return kp::guarded(device, [=] {
    kp::with_search(dtype, queries, num_queries, query_offsets, query_order, supports, support_rows, keys,
                    num_supports, boxes, cells, batch, [=](auto search) {
      using T = std::decay_t<decltype(*search.queries)>;
      if (num_queries > 0)
        KP_LAUNCH((kp::radius_fill_kernel<T>), kp::blocks(num_queries, kp::kWarps), kp::kThreads, 0, stream, search,
                  kp::squared<T>(radius), splits, static_cast<kp::Hit<T>*>(hits), indices);
    });
  });
}

KP_OP(kp_nearest)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                  const int32_t* query_order, const void* supports, const int32_t* support_rows, const int64_t* keys,
                  int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, int64_t* indices,
                  void* distances, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_search(dtype, queries, num_queries, query_offsets, query_order, supports, support_rows, keys,
                    num_supports, boxes, cells, batch, [=](auto search) {
      using T = std::decay_t<decltype(*search.queries)>;
      if (num_queries > 0)
        KP_LAUNCH((kp::nearest_kernel<T>), kp::blocks(num_queries, kp::kThreads), kp::kThreads, 0, stream, search,
                  indices, static_cast<T*>(distances));
    });
  });
}

KP_OP(kp_transpose_count)(const int32_t* indices, int64_t num_indices, const int64_t*, int64_t, int64_t num_supports,
                          int64_t, int32_t* counts, int device, void* stream) {
  return kp::guarded(device, [=] {
    if (num_indices > 0)
      KP_LAUNCH(kp::transpose_count_kernel, kp::blocks(num_indices, kp::kThreads), kp::kThreads, 0, stream, indices,
                num_indices, num_supports, counts);
  });
}

KP_OP(kp_transpose_fill)(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t num_queries,
                         int64_t num_supports, int64_t, int64_t* places, const int64_t* out_splits, int32_t* out,
                         int device, void* stream) {
  return kp::guarded(device, [=] {
    if (num_queries > 0)
      KP_LAUNCH(kp::transpose_fill_kernel, kp::blocks(num_queries, kp::kWarps), kp::kThreads, 0, stream, indices,
                num_indices, splits, num_queries, num_supports, reinterpret_cast<unsigned long long*>(places),
                out_splits, out);
    if (num_supports > 0)
      KP_LAUNCH(kp::transpose_sort_kernel, kp::blocks(num_supports, kp::kWarps), kp::kThreads, 0, stream, out_splits,
                num_supports, out);
  });
}
