#include <algorithm>
#include <vector>

#include "core/search.h"
#include "cpu/cpu.h"

namespace kp {

constexpr int64_t kGrain = 128;  // queries a task works on at least

// Calls f(query, rows) for every query, rows being the supports in the cells around it. Queries come in the order of
// their cells, so those of one cell share the look-up.
template <class T, class F>
void for_each_query(const Search<T>& search, const int64_t* query_order, int64_t begin, int64_t end, F f) {
  Range rows[9];
  Cell previous{};
  int64_t previous_key = -1;
  for (int64_t i = begin; i < end; i++) {
    int64_t q = query_order[i];
    SampleGrid grid = search.grid_of(q);
    Cell c = grid.cell_of(search.queries + 3 * q);
    if (grid.first_key != previous_key || c.x != previous.x || c.y != previous.y || c.z != previous.z) {
      rows_around(grid, search.supports, c, rows);
      previous = c;
      previous_key = grid.first_key;
    }
    f(q, rows);
  }
}

}  // namespace kp

KP_OP(kp_radius_count)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                       const int64_t* query_order, const void* supports, const int64_t* support_rows,
                       const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                       int64_t batch, double radius, int64_t* counts, int, void*) {
  return kp::guarded([=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
      kp::Search<T> search{static_cast<const T*>(queries), query_offsets, {boxes, cells, batch}, sorted};
      T limit = kp::product(static_cast<T>(radius), static_cast<T>(radius));
      kp::parallel_for(num_queries, kp::kGrain, [=](int64_t begin, int64_t end) {
        kp::for_each_query(search, query_order, begin, end, [=](int64_t q, const kp::Range* rows) {
          const T* query = search.queries + 3 * q;
          int32_t count = 0;
          for (int r = 0; r < 9; r++)
            for (int64_t i = rows[r].begin; i < rows[r].end; i++) count += sorted.squared_distance(query, i) <= limit;
          counts[q] = count;
        });
      });
    });
  });
}

KP_OP(kp_radius_fill)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                      const int64_t* query_order, const void* supports, const int64_t* support_rows,
                      const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                      int64_t batch, double radius, const int64_t* splits, void*, int32_t* indices, int, void*) {
  return kp::guarded([=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
      kp::Search<T> search{static_cast<const T*>(queries), query_offsets, {boxes, cells, batch}, sorted};
      T limit = kp::product(static_cast<T>(radius), static_cast<T>(radius));
      kp::parallel_for(num_queries, kp::kGrain, [=](int64_t begin, int64_t end) {
        std::vector<kp::Hit<T>> hits;
        kp::for_each_query(search, query_order, begin, end, [&](int64_t q, const kp::Range* rows) {
          const T* query = search.queries + 3 * q;
          size_t candidates = 0, found = 0;
          for (int r = 0; r < 9; r++) candidates += static_cast<size_t>(rows[r].end - rows[r].begin);
          if (hits.size() < candidates) hits.resize(candidates);
          // Without a branch: every candidate is written, and overwritten by the next unless it is near.
          for (int r = 0; r < 9; r++)
            for (int64_t i = rows[r].begin; i < rows[r].end; i++) {
              T distance2 = sorted.squared_distance(query, i);
              hits[found] = kp::Hit<T>(distance2, static_cast<int32_t>(sorted.rows[i]));
              found += distance2 <= limit;
            }
          auto kept = splits[q + 1] - splits[q];
          std::partial_sort(hits.begin(), hits.begin() + kept, hits.begin() + static_cast<int64_t>(found));
          for (int64_t i = 0; i < kept; i++) indices[splits[q] + i] = hits[static_cast<size_t>(i)].row();
        });
      });
    });
  });
}

KP_OP(kp_nearest)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                  const int64_t* query_order, const void* supports, const int64_t* support_rows, const int64_t* keys,
                  int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, int64_t* indices,
                  void* distances, int, void*) {
  return kp::guarded([=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
      kp::Search<T> search{static_cast<const T*>(queries), query_offsets, {boxes, cells, batch}, sorted};
      auto* out = static_cast<T*>(distances);
      kp::parallel_for(num_queries, kp::kGrain, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          int64_t q = query_order[i];
          auto hit = kp::NearestSearch<T>{search.queries + 3 * q, search.grid_of(q), sorted}.run();
          indices[q] = hit.row();
          out[q] = std::sqrt(hit.distance2());
        }
      });
    });
  });
}
