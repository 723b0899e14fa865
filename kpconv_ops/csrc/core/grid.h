// Cells of a uniform grid, and the sorted points in them.
#pragma once
#include "core/core.h"

namespace kp {

// The first of n ascending values that is not less than `value`.
KP_HD int64_t lower_bound(const int64_t* values, int64_t n, int64_t value) {
  int64_t begin = 0;
  while (n > 0) {
    int64_t half = n / 2;
    if (values[begin + half] < value) begin += half + 1, n -= half + 1;
    else n = half;
  }
  return begin;
}

// The sample that owns a row. Empty samples own none.
KP_HD int64_t sample_of(int64_t row, const int64_t* offsets, int64_t batch) {
  return lower_bound(offsets + 1, batch, row + 1);
}

KP_HD int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

struct Cell {
  int64_t x, y, z;
};

// One sample's grid.
struct SampleGrid {
  const double* origin;
  double cell;
  int64_t nx, ny, nz, first_key;

  // The cell along an axis. Outside the grid it stops two cells beyond, from where no neighbouring cell is inside.
  KP_HD int64_t along(double coordinate, int axis, int64_t cells) const {
    double index = floor((coordinate - origin[axis]) / cell);
    return index < -2.0 ? -2 : index > cells + 1.0 ? cells + 1 : static_cast<int64_t>(index);
  }
  template <class T>
  KP_HD Cell cell_of(const T* point) const {
    return {along(point[0], 0, nx), along(point[1], 1, ny), along(point[2], 2, nz)};
  }
  KP_HD Cell nearest_inside(Cell c) const {
    return {clamp(c.x, 0, nx - 1), clamp(c.y, 0, ny - 1), clamp(c.z, 0, nz - 1)};
  }
  KP_HD int64_t key(int64_t x, int64_t y, int64_t z) const { return first_key + x + nx * (y + ny * z); }
};

struct Grid {
  const double* boxes;   // [batch, 4]
  const int64_t* cells;  // [batch, 4]
  int64_t batch;

  KP_HD SampleGrid sample(int64_t b) const {
    const int64_t* n = cells + 4 * b;
    return {boxes + 4 * b, boxes[4 * b + 3], n[0], n[1], n[2], n[3]};
  }
};

template <class T>
KP_HD int64_t cell_key(const Grid& grid, const T* points, const int64_t* offsets, int64_t row) {
  SampleGrid sample = grid.sample(sample_of(row, offsets, grid.batch));
  Cell c = sample.nearest_inside(sample.cell_of(points + 3 * row));
  return sample.key(c.x, c.y, c.z);
}

struct Range {
  int64_t begin, end;
};

// Points sorted by the key of their cell.
template <class T>
struct SortedPoints {
  const T* coordinates;  // [3, n]
  const int64_t* rows;   // where each point lies in the caller's order
  const int64_t* keys;
  int64_t n;

  // The points of the cells x0 to x1 of one row of cells; they lie side by side. The row may be outside the grid.
  KP_HD Range in_row(const SampleGrid& grid, int64_t x0, int64_t x1, int64_t y, int64_t z) const {
    x0 = x0 < 0 ? 0 : x0;
    x1 = x1 > grid.nx - 1 ? grid.nx - 1 : x1;
    if (x0 > x1 || y < 0 || y >= grid.ny || z < 0 || z >= grid.nz) return {0, 0};
    int64_t begin = lower_bound(keys, n, grid.key(x0, y, z));
    return {begin, begin + lower_bound(keys + begin, n - begin, grid.key(x1, y, z) + 1)};
  }

  // The squared distance of point i, always with the same roundings.
  KP_HD T squared_distance(const T* query, int64_t i) const {
    T x = query[0] - coordinates[i], y = query[1] - coordinates[n + i], z = query[2] - coordinates[2 * n + i];
    return product(x, x) + product(y, y) + product(z, z);
  }
};

}  // namespace kp
