// Cells of a uniform grid, and the sorted points in them.
#pragma once
#include "core/range.h"

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

// The same, quick when the answer lies a little after position `guess`; 0 is no guess.
KP_HD int64_t lower_bound_near(const int64_t* values, int64_t n, int64_t guess, int64_t value) {
  if (guess == 0) return lower_bound(values, n, value);
  if (values[guess - 1] >= value) return lower_bound(values, guess, value);
  int64_t begin = guess, step = 4;
  while (begin + step < n && values[begin + step - 1] < value) begin += step, step *= 2;
  int64_t length = step < n - begin ? step : n - begin;
  return begin + lower_bound(values + begin, length, value);
}

// The sample that owns a row. Empty samples own none.
KP_HD int64_t sample_of(int64_t row, const int64_t* offsets, int64_t batch) {
  return lower_bound(offsets + 1, batch, row + 1);
}

// One of the equal pieces that a sample is cut into; never outside n rows, whatever the offsets say.
KP_HD Range piece_of(const int64_t* offsets, int64_t n, int64_t sample, int64_t piece, int64_t pieces) {
  const Range rows = range_of(offsets, sample, n);
  const int64_t size = rows.end - rows.begin;
  return {rows.begin + size * piece / pieces, rows.begin + size * (piece + 1) / pieces};
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
    double index = (coordinate - origin[axis]) / cell;
    if (index < -2.0) return -2;
    if (index > cells + 1.0) return cells + 1;
    int64_t truncated = static_cast<int64_t>(index);
    return truncated - (truncated > index);
  }
  template <class T>
  KP_HD Cell cell_of(const T* point) const {
    return {along(point[0], 0, nx), along(point[1], 1, ny), along(point[2], 2, nz)};
  }
  KP_HD Cell nearest_inside(Cell c) const {
    return {clamp(c.x, 0, nx - 1), clamp(c.y, 0, ny - 1), clamp(c.z, 0, nz - 1)};
  }
  KP_HD bool holds(Cell c) const {
    return c.x >= 0 && c.x < nx && c.y >= 0 && c.y < ny && c.z >= 0 && c.z < nz;
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

// Points sorted by the key of their cell.
template <class T>
struct SortedPoints {
  const T* coordinates;  // [n, 3]
  const int32_t* rows;   // where each point lies in the caller's order
  const int64_t* keys;
  int64_t n;

  // The points of the cells x0 to x1 of one row of cells; they lie side by side, maybe a little after `guess`. The row may
  // be outside the grid.
  KP_HD Range in_row(const SampleGrid& grid, int64_t x0, int64_t x1, int64_t y, int64_t z, Range guess = {0, 0}) const {
    x0 = x0 < 0 ? 0 : x0;
    x1 = x1 > grid.nx - 1 ? grid.nx - 1 : x1;
    if (x0 > x1 || y < 0 || y >= grid.ny || z < 0 || z >= grid.nz) return {guess.begin, guess.begin};
    int64_t begin = lower_bound_near(keys, n, guess.begin, grid.key(x0, y, z));
    return {begin, lower_bound_near(keys, n, begin > guess.end ? begin : guess.end, grid.key(x1, y, z) + 1)};
  }

  // The squared distance of point i, always with the same roundings.
  KP_HD T squared_distance(const T* query, int64_t i) const {
    const T* p = coordinates + 3 * i;
    T x = query[0] - p[0], y = query[1] - p[1], z = query[2] - p[2];
    return product(x, x) + product(y, y) + product(z, z);
  }
};

}  // namespace kp
