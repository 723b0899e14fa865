// Searches of one query among sorted points.
#pragma once
#include "core/grid.h"
#include "core/hits.h"

namespace kp {

template <class T>
struct Search {
  const T* queries;
  const int64_t* query_offsets;
  Grid grid;
  SortedPoints<T> supports;

  KP_HD SampleGrid grid_of(int64_t query) const { return grid.sample(sample_of(query, query_offsets, grid.batch)); }
};

// The points of the 27 cells around a cell, as 9 rows of 3.
template <class T>
KP_HD void rows_around(const SampleGrid& grid, const SortedPoints<T>& supports, Cell c, Range rows[9]) {
  for (int i = 0; i < 9; i++) rows[i] = supports.in_row(grid, c.x - 1, c.x + 1, c.y + i % 3 - 1, c.z + i / 3 - 1);
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
      Hit<T> hit(supports.squared_distance(query, i), static_cast<int32_t>(supports.rows[i]));
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

  KP_HD Hit<T> run() {
    Cell c = grid.nearest_inside(grid.cell_of(query));
    double x = outside(0, grid.nx), y = outside(1, grid.ny), z = outside(2, grid.nz);
    double to_box = product(x, x) + product(y, y) + product(z, z);
    int64_t last = grid.nx > grid.ny ? grid.nx : grid.ny;
    last = last > grid.nz ? last : grid.nz;
    for (int64_t r = 0; r < last; r++) {
      visit_shell(c, r);
      // A point beyond this shell is at least r cells from the query's projection onto the box, and the box is convex.
      // The factor covers rounding.
      double unseen = to_box + product(r * grid.cell, r * grid.cell);
      if (best.distance2() < unseen * (1 - 1e-5)) break;
    }
    return best;
  }
};

}  // namespace kp
