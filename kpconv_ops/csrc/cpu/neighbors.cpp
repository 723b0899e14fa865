#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/search.h"
#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/vector.h"

namespace kp {

constexpr int64_t kQueries = 256;  // that a task works on at least
constexpr int64_t kLanes = 16;     // of a vector
constexpr int64_t kRanked = 512;   // more hits are sorted: ranking takes quadratic time

// The integer as wide as a coordinate.
template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Whole vectors.
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// The supports in the 27 cells around a cell, side by side: the distances of a query to all of them are few instructions.
template <class T>
struct Candidates {
  int64_t count = 0;  // whole vectors; those that fill the last one lie infinitely far away
  std::vector<T> x, y, z;
  std::vector<int32_t> rows;
  // Of one query:
  std::vector<T> squared;
  std::vector<int32_t> hits, places;

  void gather(const SortedPoints<T>& supports, const Range ranges[9]) {
    count = 0;
    for (int r = 0; r < 9; r++) count += ranges[r].end - ranges[r].begin;
    count = padded(count);
    if (static_cast<size_t>(count) > rows.size()) {
      for (auto* each : {&x, &y, &z, &squared}) each->resize(2 * count);
      for (auto* each : {&rows, &hits, &places}) each->resize(2 * count);
    }
    T* __restrict to[3] = {x.data(), y.data(), z.data()};
    int32_t* to_row = rows.data();
    int64_t k = 0;
    for (int r = 0; r < 9; r++)
      for (int64_t i = ranges[r].begin; i < ranges[r].end; i++, k++) {
        for (int axis = 0; axis < 3; axis++) to[axis][k] = supports.coordinates[3 * i + axis];
        to_row[k] = supports.rows[i];
      }
    for (; k < count; k++) to[0][k] = to[1][k] = to[2][k] = static_cast<T>(INFINITY), to_row[k] = INT32_MAX;
  }
};

// Calls f(query, grid, cell, candidates) for the queries begin to end. Those that follow each other in a cell share the
// candidates; from cell to cell the look-up goes on where it was.
template <class T, class F>
void for_each_query(const Search<T>& search, int64_t begin, int64_t end, F f) {
  Candidates<T> candidates;
  Range ranges[9] = {};
  Cell previous{};
  int64_t previous_key = -1;
  for (int64_t i = begin; i < end; i++) {
    int64_t q = search.query(i);
    SampleGrid grid = search.grid_of(q);
    Cell c = grid.cell_of(search.queries + 3 * q);
    if (grid.first_key != previous_key || c.x != previous.x || c.y != previous.y || c.z != previous.z) {
      for (int r = 0; r < 9; r++) {
        int64_t y = c.y + r % 3 - 1, z = c.z + r / 3 - 1;
        ranges[r] = search.supports.in_row(grid, c.x - 1, c.x + 1, y, z, ranges[r]);
      }
      candidates.gather(search.supports, ranges);
      previous = c;
      previous_key = grid.first_key;
    }
    f(q, grid, c, candidates);
  }
}

template <class T>
KP_WIDE_BODY T squared_distance(const T* query, T px, T py, T pz) {
  T x = query[0] - px, y = query[1] - py, z = query[2] - pz;
  return x * x + y * y + z * z;
}

template <class T>
KP_WIDE_BODY int64_t count_near(const Candidates<T>& among, const T* query, T limit) {
  const T *x = among.x.data(), *y = among.y.data(), *z = among.z.data();
  const T at[3] = {query[0], query[1], query[2]};
  const int64_t n = padded(among.count);
  int32_t near = 0;
  for (int64_t i = 0; i < n; i++) near += squared_distance(at, x[i], y[i], z[i]) <= limit;
  return near;
}

// Writes the distances to all candidates into `among.squared`.
template <class T>
KP_WIDE_BODY void measure(Candidates<T>& among, const T* query) {
  const T* __restrict x = among.x.data();
  const T* __restrict y = among.y.data();
  const T* __restrict z = among.z.data();
  const T at[3] = {query[0], query[1], query[2]};
  const int64_t n = padded(among.count);
  T* __restrict squared = among.squared.data();
  for (int64_t i = 0; i < n; i++) squared[i] = squared_distance(at, x[i], y[i], z[i]);
}

// Writes the rows of the `kept` nearest candidates within `limit`, in order.
template <class T>
KP_WIDE_BODY void write_near(Candidates<T>& among, const T* query, T limit, int64_t kept, int32_t* out) {
  measure(among, query);
  // Without a branch: every candidate is written, and overwritten by the next unless it is near.
  T* __restrict squared = among.squared.data();
  int32_t* __restrict hits = among.hits.data();
  int64_t found = 0;
  for (int64_t i = 0; i < among.count; i++) {
    T distance2 = squared[i];
    squared[found] = distance2;
    hits[found] = among.rows[i];
    found += distance2 <= limit;
  }
  if (found > kRanked) {
    std::vector<Hit<T>> sorted;
    for (int64_t i = 0; i < found; i++) sorted.emplace_back(squared[i], hits[i]);
    std::partial_sort(sorted.begin(), sorted.begin() + kept, sorted.end());
    for (int64_t i = 0; i < kept; i++) out[i] = sorted[i].row();
    return;
  }
  // The place of a hit is the number of hits before it.
  int32_t* __restrict places = among.places.data();
  const int64_t lanes = padded(found);
  std::fill(places, places + lanes, 0);
  for (int64_t i = 0; i < found; i++) {
    const T distance2 = squared[i];
    const int32_t row = hits[i];
    for (int64_t k = 0; k < lanes; k++)
      places[k] += (distance2 < squared[k]) | ((distance2 == squared[k]) & (row < hits[k]));
  }
  for (int64_t i = 0; i < found; i++)
    if (places[i] < kept) out[places[i]] = hits[i];
}

template <class T>
KP_WIDE_BODY Hit<T> nearest_of(Candidates<T>& among, const T* query) {
  measure(among, query);
  // As integers, the least of which a vector instruction finds; the bits of a non-negative float ascend with its value.
  using Bits = BitsOf<T>;
  const T* squared = among.squared.data();
  const int32_t* rows = among.rows.data();
  Bits least = bit_cast<Bits>(static_cast<T>(INFINITY));
  const int64_t n = padded(among.count);
  for (int64_t i = 0; i < n; i++) least = std::min(least, bit_cast<Bits>(squared[i]));
  int32_t row = INT32_MAX;
  for (int64_t i = 0; i < n; i++) row = std::min(row, bit_cast<Bits>(squared[i]) == least ? rows[i] : INT32_MAX);
  return {bit_cast<T>(least), row};
}

#define KP_SEARCHES(T)                                                                                          \
  KP_WIDE int64_t count(const Candidates<T>& among, const T* query, T limit) {                                  \
    return count_near(among, query, limit);                                                                     \
  }                                                                                                             \
  KP_WIDE void fill(Candidates<T>& among, const T* query, T limit, int64_t kept, int32_t* out) {                \
    write_near(among, query, limit, kept, out);                                                                 \
  }                                                                                                             \
  KP_WIDE Hit<T> find_nearest(Candidates<T>& among, const T* query) { return nearest_of(among, query); }
KP_SEARCHES(float)
KP_SEARCHES(double)
#undef KP_SEARCHES

// Calls f(task, query, support) for all pairs, each task's in order.
template <class F>
void for_each_pair(const Neighborhoods& neighborhoods, int64_t num_queries, int64_t tasks, F f) {
  parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++)
      for (int64_t q = task * num_queries / tasks; q < (task + 1) * num_queries / tasks; q++) {
        auto [first, last] = neighborhoods[q];
        for (const int32_t* support = first; support < last; support++) f(task, q, *support);
      }
  });
  neighborhoods.check();
}

}  // namespace kp

KP_OP(kp_radius_count)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                       const int32_t* query_order, const void* supports, const int32_t* support_rows,
                       const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                       int64_t batch, double radius, int64_t* counts, int, void*) {
  return kp::guarded([=] {
    kp::with_search(dtype, queries, num_queries, query_offsets, query_order, supports, support_rows, keys,
                    num_supports, boxes, cells, batch, [=](auto search) {
      auto limit = kp::squared<std::decay_t<decltype(*search.queries)>>(radius);
      kp::parallel_for(num_queries, kp::kQueries, [=](int64_t begin, int64_t end) {
        kp::for_each_query(search, begin, end, [=](int64_t q, const auto&, const auto&, auto& candidates) {
          counts[q] = kp::count(candidates, search.queries + 3 * q, limit);
        });
      });
    });
  });
}

KP_OP(kp_radius_fill)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                      const int32_t* query_order, const void* supports, const int32_t* support_rows,
                      const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                      int64_t batch, double radius, const int64_t* splits, void*, int32_t* indices, int, void*) {
  return kp::guarded([=] {
    kp::with_search(dtype, queries, num_queries, query_offsets, query_order, supports, support_rows, keys,
                    num_supports, boxes, cells, batch, [=](auto search) {
      auto limit = kp::squared<std::decay_t<decltype(*search.queries)>>(radius);
      kp::parallel_for(num_queries, kp::kQueries, [=](int64_t begin, int64_t end) {
        kp::for_each_query(search, begin, end, [=](int64_t q, const auto&, const auto&, auto& candidates) {
          kp::fill(candidates, search.queries + 3 * q, limit, splits[q + 1] - splits[q], indices + splits[q]);
        });
      });
    });
  });
}

KP_OP(kp_nearest)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                  const int32_t* query_order, const void* supports, const int32_t* support_rows, const int64_t* keys,
                  int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, int64_t* indices,
                  void* distances, int, void*) {
  return kp::guarded([=] {
    kp::with_search(dtype, queries, num_queries, query_offsets, query_order, supports, support_rows, keys,
                    num_supports, boxes, cells, batch, [=](auto search) {
      using T = std::decay_t<decltype(*search.queries)>;
      auto* out = static_cast<T*>(distances);
      kp::parallel_for(num_queries, kp::kQueries, [=](int64_t begin, int64_t end) {
        kp::for_each_query(search, begin, end, [=](int64_t q, const auto& grid, const auto& cell, auto& candidates) {
          const T* query = search.queries + 3 * q;
          kp::NearestSearch<T> nearest{query, grid, search.supports};
          auto hit = nearest.best = kp::find_nearest(candidates, query);
          // The candidates are shells 0 and 1 of a query inside the grid: mostly no other can be nearer.
          if (!grid.holds(cell) || !(hit.distance2() < nearest.unseen(1))) hit = nearest.run();
          indices[q] = hit.row();
          out[q] = std::sqrt(hit.distance2());
        });
      });
    });
  });
}

KP_OP(kp_transpose_count)(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t num_queries,
                          int64_t num_supports, int64_t tasks, int32_t* counts, int, void*) {
  return kp::guarded([=] {
    kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::for_each_pair(neighborhoods, num_queries, tasks, [=](int64_t task, int64_t, int32_t support) {
      counts[task * num_supports + support]++;
    });
  });
}

KP_OP(kp_transpose_fill)(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t num_queries,
                         int64_t num_supports, int64_t tasks, int64_t* places, const int64_t*, int32_t* out, int,
                         void*) {
  return kp::guarded([=] {
    kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::for_each_pair(neighborhoods, num_queries, tasks, [=](int64_t task, int64_t q, int32_t support) {
      out[places[task * num_supports + support]++] = static_cast<int32_t>(q);
    });
  });
}
