// Searches of one query among sorted points.
#pragma once
#include "core/grid.h"
#include "core/hits.h"

namespace kp {

template <class T>
struct Search {
  const T* queries;
  int64_t num_queries;
  const int64_t* query_offsets;
  const int32_t* query_order;  // null: as they are
  SortedPoints<T> supports;
  Grid grid;

  KP_HD int64_t query(int64_t i) const { return query_order ? query_order[i] : i; }
  KP_HD SampleGrid grid_of(int64_t query) const { return grid.sample(sample_of(query, query_offsets, grid.batch)); }
};

// Calls f with the search that the C interface was given.
template <class F>
void with_search(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                 const int32_t* query_order, const void* supports, const int32_t* support_rows, const int64_t* keys,
                 int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, F f) {
  with_coordinates(dtype, [=](auto type) {
    using T = decltype(type);
    SortedPoints<T> sorted{static_cast<const T*>(supports), support_rows, keys, num_supports};
    f(Search<T>{
        static_cast<const T*>(queries), num_queries, query_offsets, query_order, sorted, {boxes, cells, batch}});
  });
}

// What a squared distance may be at most.
template <class T>
T squared(double radius) {
  return product(static_cast<T>(radius), static_cast<T>(radius));
}

// The support nearest to a query: cells are visited in cubic shells around the query's own, until no cell further out
// can hold a nearer point. Row INT32_MAX when there are no supports.
template <class T>
struct NearestSearch {
  const T* query;
  SampleGrid grid;
  SortedPoints<T> supports;
  Hit<T> best{static_cast<T>(INFINITY), INT32_MAX};

  KP_HD void visit(Range row) {
    for (int64_t i = row.begin; i < row.end; i++) {
      Hit<T> hit(supports.squared_distance(query, i), supports.rows[i]);
      if (hit < best) best = hit;
    }
  }

  KP_HD void visit_shell(Cell c, int64_t r) {
    for (int64_t z = clamp(c.z - r, 0, grid.nz); z <= c.z + r && z < grid.nz; z++)
      for (int64_t y = clamp(c.y - r, 0, grid.ny); y <= c.y + r && y < grid.ny; y++) {
        if (z == c.z - r || z == c.z + r || y == c.y - r || y == c.y + r) {
          visit(supports.in_row(grid, c.x - r, c.x + r, y, z));
        } else {
          visit(supports.in_row(grid, c.x - r, c.x - r, y, z));
          visit(supports.in_row(grid, c.x + r, c.x + r, y, z));
        }
      }
  }

  // How far the query lies outside the grid along an axis.
  KP_HD double outside(int axis, int64_t cells) const {
    double above = query[axis] - grid.origin[axis];
    return above < 0 ? -above : fmax(0.0, above - cells * grid.cell);
  }

  // The squared distance beyond which all supports outside of shells 0 to r lie: they are at least r cells from the
  // query's projection onto the box, and the box is convex. The factor covers rounding.
  KP_HD double unseen(int64_t r) const {
    double x = outside(0, grid.nx), y = outside(1, grid.ny), z = outside(2, grid.nz), shell = r * grid.cell;
    return (product(x, x) + product(y, y) + product(z, z) + product(shell, shell)) * (1 - 1e-5);
  }

  KP_HD Hit<T> run() {
    Cell c = grid.nearest_inside(grid.cell_of(query));
    int64_t last = grid.nx > grid.ny ? grid.nx : grid.ny;
    last = last > grid.nz ? last : grid.nz;
    for (int64_t r = 0; r < last && (r == 0 || !(best.distance2() < unseen(r - 1))); r++) visit_shell(c, r);
    return best;
  }
};

}  // namespace kp
