// Sparse voxels: the cells of a grid around the origin, numbered within a box.
#pragma once
#include "core/grid.h"

namespace kp {

// The voxel along an axis. Floats divide in their own type.
template <class T>
KP_HD int64_t voxel_of(T value, T size) { return static_cast<int64_t>(floor(value / size)); }
template <>
KP_HD int64_t voxel_of(int64_t value, int64_t size) {
  const int64_t truncated = value / size;
  return truncated - (truncated * size > value);
}

// One box a sample, all of the same size. The lowest voxels lie at `low`.
struct VoxelBox {
  const int64_t* low;  // [batch, 3]
  int64_t nx, ny, nz;

  template <class T>
  KP_HD int64_t key(const T* point, T size, int64_t sample) const {
    const int64_t* from = low + 3 * sample;
    const int64_t x = voxel_of(point[0], size) - from[0], y = voxel_of(point[1], size) - from[1];
    return ((sample * nz + voxel_of(point[2], size) - from[2]) * ny + y) * nx + x;
  }
  KP_HD void write_voxel(int64_t key, int64_t scale, int64_t* voxel) const {
    const int64_t line = key / nx, layer = line / ny, sample = layer / nz;
    const int64_t* from = low + 3 * sample;
    voxel[0] = (key - line * nx + from[0]) * scale;
    voxel[1] = (line - layer * ny + from[1]) * scale;
    voxel[2] = (layer - sample * nz + from[2]) * scale;
  }
};

// What the taps of a run read: the rows of key, key + step... of the ascending `keys`, the last of which is larger than
// all. `position`: of the first key that is not less than `key`.
KP_HD void find_run(const int64_t* keys, int64_t num_keys, const int32_t* order, int64_t position, int64_t key,
                    int64_t step, int64_t run, int64_t stride, int32_t* rows) {
  for (int64_t j = 0; j < run; j++, key += step, rows += stride) {
    position += keys[position] < key;  // mostly far enough, and without a branch
    if (keys[position] < key) position = lower_bound_near(keys, num_keys, position, key);
    const int32_t row = order ? order[position < num_keys ? position : 0] : static_cast<int32_t>(position);
    *rows = keys[position] == key ? row : -1;
  }
}

// The voxels around a point, as kp_trilinear writes them. `size` has the type of the points, as in voxel_of.
template <class T>
KP_HD void surround(const VoxelBox& box, const int64_t* keys, const int32_t* order, int64_t num_keys, const T* point,
                    T size, int64_t stride, int64_t sample, int32_t* rows, T* weights) {
  const int64_t extent[3] = {box.nx, box.ny, box.nz};
  double upper[3];  // weights of the upper voxels
  int64_t voxel[3];
  bool inside = true;
  for (int axis = 0; axis < 3; axis++) {
    const double position = static_cast<double>(point[axis]) / static_cast<double>(size) / stride - 0.5;
    const double lower = floor(position);
    upper[axis] = position - lower;
    voxel[axis] = static_cast<int64_t>(lower) - box.low[3 * sample + axis];
    inside &= voxel[axis] >= 0 && voxel[axis] + 1 < extent[axis];
  }
  double weight[8], sum = 0;
  int64_t position = 0;
  for (int k = 0; k < 8; k += 2) {
    if (inside) {
      const int64_t line = (sample * box.nz + voxel[2] + k / 4) * box.ny + voxel[1] + k / 2 % 2;
      const int64_t key = line * box.nx + voxel[0];
      position = lower_bound_near(keys, num_keys, position, key);
      find_run(keys, num_keys, order, position, key, 1, 2, 1, rows + k);
    }
    for (int j = k; j < k + 2; j++) {
      weight[j] = (j % 2 ? upper[0] : 1 - upper[0]) * (j / 2 % 2 ? upper[1] : 1 - upper[1]) *
                  (j / 4 ? upper[2] : 1 - upper[2]);
      if (!inside || !(weight[j] > 0)) rows[j] = -1;
      if (rows[j] < 0) weight[j] = 0;
      sum += weight[j];
    }
  }
  for (int j = 0; j < 8; j++) weights[j] = static_cast<T>(sum > 0 ? weight[j] / sum : 0);
}

}  // namespace kp
