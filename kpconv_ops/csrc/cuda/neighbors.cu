#include "core/search.h"
#include "cuda/cuda.h"

// One thread a query. Queries come in the order of their cells, so the threads of a warp read the same supports.
namespace kp {

constexpr int kThreads = 128;

template <class T>
__global__ void radius_count_kernel(Search<T> search, const int64_t* query_order, int64_t num_queries, T limit,
                                    int64_t* counts) {
  int64_t thread = thread_index();
  if (thread >= num_queries) return;
  int64_t q = query_order[thread], count = 0;
  const T* query = search.queries + 3 * q;
  SampleGrid grid = search.grid_of(q);
  Range rows[9];
  rows_around(grid, search.supports, grid.cell_of(query), rows);
  for (int r = 0; r < 9; r++)
    for (int64_t i = rows[r].begin; i < rows[r].end; i++) count += search.supports.squared_distance(query, i) <= limit;
  counts[q] = count;
}

// Keeps the nearest supports in a heap, the farthest on top, then sorts it.
template <class T>
__global__ void radius_fill_kernel(Search<T> search, const int64_t* query_order, int64_t num_queries, T limit,
                                   const int64_t* splits, Hit<T>* hits, int32_t* indices) {
  int64_t thread = thread_index();
  if (thread >= num_queries) return;
  int64_t q = query_order[thread], kept = splits[q + 1] - splits[q], found = 0;
  if (kept == 0) return;
  const T* query = search.queries + 3 * q;
  Hit<T>* heap = hits + splits[q];
  SampleGrid grid = search.grid_of(q);
  Range rows[9];
  rows_around(grid, search.supports, grid.cell_of(query), rows);
  for (int r = 0; r < 9; r++)
    for (int64_t i = rows[r].begin; i < rows[r].end; i++) {
      T distance2 = search.supports.squared_distance(query, i);
      if (!(distance2 <= limit)) continue;
      Hit<T> hit(distance2, static_cast<int32_t>(search.supports.rows[i]));
      if (found < kept) {
        heap[found++] = hit;
        if (found == kept) make_heap(heap, kept);
      } else if (hit < heap[0]) {
        heap[0] = hit;
        sift_down(heap, kept, 0);
      }
    }
  sort_heap(heap, kept);
  for (int64_t i = 0; i < kept; i++) indices[splits[q] + i] = heap[i].row();
}

template <class T>
__global__ void nearest_kernel(Search<T> search, const int64_t* query_order, int64_t num_queries, int64_t* indices,
                               T* distances) {
  int64_t thread = thread_index();
  if (thread >= num_queries) return;
  int64_t q = query_order[thread];
  Hit<T> hit = NearestSearch<T>{search.queries + 3 * q, search.grid_of(q), search.supports}.run();
  indices[q] = hit.row();
  distances[q] = sqrt(hit.distance2());
}

}  // namespace kp

KP_OP(kp_radius_count)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                       const int64_t* query_order, const void* supports, const int64_t* support_rows,
                       const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                       int64_t batch, double radius, int64_t* counts, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
      kp::Search<T> search{static_cast<const T*>(queries), query_offsets, {boxes, cells, batch}, sorted};
      T limit = kp::product(static_cast<T>(radius), static_cast<T>(radius));
      if (num_queries > 0)
        KP_LAUNCH((kp::radius_count_kernel<T>), kp::blocks(num_queries, kp::kThreads), kp::kThreads, 0, stream, search,
                  query_order, num_queries, limit, counts);
    });
  });
}

KP_OP(kp_radius_fill)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                      const int64_t* query_order, const void* supports, const int64_t* support_rows,
                      const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                      int64_t batch, double radius, const int64_t* splits, void* hits, int32_t* indices, int device,
                      void* stream) {
  return kp::guarded(device, [=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
      kp::Search<T> search{static_cast<const T*>(queries), query_offsets, {boxes, cells, batch}, sorted};
      T limit = kp::product(static_cast<T>(radius), static_cast<T>(radius));
      if (num_queries > 0)
        KP_LAUNCH((kp::radius_fill_kernel<T>), kp::blocks(num_queries, kp::kThreads), kp::kThreads, 0, stream, search,
                  query_order, num_queries, limit, splits, static_cast<kp::Hit<T>*>(hits), indices);
    });
  });
}

KP_OP(kp_nearest)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                  const int64_t* query_order, const void* supports, const int64_t* support_rows, const int64_t* keys,
                  int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, int64_t* indices,
                  void* distances, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
      kp::Search<T> search{static_cast<const T*>(queries), query_offsets, {boxes, cells, batch}, sorted};
      if (num_queries > 0)
        KP_LAUNCH((kp::nearest_kernel<T>), kp::blocks(num_queries, kp::kThreads), kp::kThreads, 0, stream, search,
                  query_order, num_queries, indices, static_cast<T*>(distances));
    });
  });
}
