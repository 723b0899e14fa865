#include "core/voxels.h"

#include <algorithm>
#include <atomic>

#include "cpu/cpu.h"
#include "cpu/csr.h"

namespace kp {

template <class T>
KP_WIDE_BODY void keys_of(const VoxelBox& box, const T* points, int64_t n, T size, int64_t sample, int64_t* keys) {
  for (int64_t i = 0; i < n; i++) keys[i] = box.key(points + 3 * i, size, sample);
}

#define KP_KEYS(T)                                                                                                   \
  KP_WIDE void voxel_keys(const VoxelBox& box, const T* points, int64_t n, T size, int64_t sample, int64_t* keys) {  \
    keys_of(box, points, n, size, sample, keys);                                                                     \
  }
KP_KEYS(float)
KP_KEYS(double)
KP_KEYS(int64_t)
#undef KP_KEYS

}  // namespace kp

KP_OP(kp_voxel_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, double size,
                     const int64_t* low, int64_t nx, int64_t ny, int64_t nz, int64_t* keys, int, void*) {
  return kp::guarded([=] {
    kp::with_positions(dtype, [=](auto type) {
      using T = decltype(type);
      const kp::VoxelBox box{low, nx, ny, nz};
      kp::parallel_for(n, 4096, [=](int64_t begin, int64_t end) {
        for (int64_t b = kp::sample_of(begin, offsets, batch); begin < end; b++) {
          const int64_t last = std::min(end, offsets[b + 1]);
          kp::voxel_keys(box, static_cast<const T*>(points) + 3 * begin, last - begin, static_cast<T>(size), b,
                         keys + begin);
          begin = last;
        }
      });
    });
  });
}

KP_OP(kp_voxel_coords)(const int64_t* keys, const int64_t* first, int64_t num_voxels, int64_t scale, const int64_t* low,
                       int64_t nx, int64_t ny, int64_t nz, int64_t* coords, int, void*) {
  return kp::guarded([=] {
    const kp::VoxelBox box{low, nx, ny, nz};
    kp::parallel_for(num_voxels, 4096, [=](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; v++) box.write_voxel(keys[first[v]], scale, coords + 3 * v);
    });
  });
}

// Queries mostly ascend: the search for one goes on where that for the last ended.
KP_OP(kp_find_keys)(const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* queries,
                    int64_t num_queries, const int64_t* shifts, int64_t num_runs, int64_t run, int64_t step,
                    int32_t* rows, int, void*) {
  return kp::guarded([=] {
    kp::parallel_for(num_queries, 1024, [=](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < num_runs; r++) {
        int64_t position = 0;
        for (int64_t i = begin; i < end; i++) {
          const int64_t key = queries[i] + shifts[r];
          position = kp::lower_bound_near(keys, num_keys, position, key);
          kp::find_run(keys, num_keys, order, position, key, step, run, num_queries, rows + r * run * num_queries + i);
        }
      }
    });
  });
}

KP_OP(kp_trilinear)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, double size,
                    int64_t stride, const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* low,
                    int64_t nx, int64_t ny, int64_t nz, int32_t* rows, void* weights, int, void*) {
  return kp::guarded([=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      const kp::VoxelBox box{low, nx, ny, nz};
      kp::parallel_for(n, 1024, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          kp::surround(box, keys, order, num_keys, static_cast<const T*>(points) + 3 * i, static_cast<T>(size), stride,
                       kp::sample_of(i, offsets, batch), rows + 8 * i, static_cast<T*>(weights) + 8 * i);
      });
    });
  });
}

KP_OP(kp_transpose_map)(const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t num_in, int32_t* transposed,
                        int, void*) {
  return kp::guarded([&] {
    std::atomic<bool> inside{true}, once{true};
    kp::parallel_for(num_taps, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tap = begin; tap < end; tap++)
        for (int64_t o = 0; o < num_out; o++) {
          const int32_t row = rows[tap * num_out + o];
          if (row == -1) continue;
          if (row < 0 || row >= num_in) {
            inside = false;
            continue;
          }
          int32_t& reader = transposed[tap * num_in + row];
          if (reader != -1) once = false;
          reader = static_cast<int32_t>(o);
        }
    });
    if (!inside) kp::throw_map_rows_outside(num_in);
    if (!once) throw std::invalid_argument("rows must hold a row at most once in each tap: coordinates given twice?");
  });
}
