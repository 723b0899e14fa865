#include "core/voxels.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int kThreads = 256;

// A thread a point.
template <class T>
__global__ void voxel_keys_kernel(const T* points, int64_t n, const int64_t* offsets, int64_t batch, T size,
                                  VoxelBox box, int64_t* keys) {
  const int64_t i = thread_index();
  if (i < n) keys[i] = box.key(points + 3 * i, size, sample_of(i, offsets, batch));
}

// A thread a voxel.
__global__ void voxel_coords_kernel(const int64_t* keys, const int64_t* first, int64_t num_voxels, int64_t scale,
                                    VoxelBox box, int64_t* coords) {
  const int64_t v = thread_index();
  if (v < num_voxels) box.write_voxel(keys[first[v]], scale, coords + 3 * v);
}

// A thread a query and run.
__global__ void find_keys_kernel(const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* queries,
                                 int64_t num_queries, const int64_t* shifts, int64_t num_runs, int64_t run,
                                 int64_t step, int32_t* rows) {
  const int64_t t = thread_index(), r = t / num_queries, i = t % num_queries;
  if (r >= num_runs) return;
  const int64_t key = queries[i] + shifts[r];
  find_run(keys, num_keys, order, lower_bound(keys, num_keys, key), key, step, run, num_queries,
           rows + r * run * num_queries + i);
}

// A thread a point.
template <class T>
__global__ void trilinear_kernel(const T* points, int64_t n, const int64_t* offsets, int64_t batch, T size,
                                 int64_t stride, const int64_t* keys, const int32_t* order, int64_t num_keys,
                                 VoxelBox box, int32_t* rows, T* weights) {
  const int64_t i = thread_index();
  if (i < n)
    surround(box, keys, order, num_keys, points + 3 * i, size, stride, sample_of(i, offsets, batch), rows + 8 * i,
             weights + 8 * i);
}

// A thread an entry.
__global__ void transpose_map_kernel(const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t num_in,
                                     int32_t* transposed) {
  const int64_t t = thread_index();
  if (t >= num_taps * num_out) return;
  const int32_t row = rows[t];
  if (row >= 0 && row < num_in) transposed[t / num_out * num_in + row] = static_cast<int32_t>(t % num_out);
}

}  // namespace kp

KP_OP(kp_voxel_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, double size,
                     const int64_t* low, int64_t nx, int64_t ny, int64_t nz, int64_t* keys, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_positions(dtype, [=](auto type) {
      using T = decltype(type);
      const kp::VoxelBox box{low, nx, ny, nz};
      if (n > 0)
        KP_LAUNCH((kp::voxel_keys_kernel<T>), kp::blocks(n, kp::kThreads), kp::kThreads, 0, stream,
                  static_cast<const T*>(points), n, offsets, batch, static_cast<T>(size), box, keys);
    });
  });
}

KP_OP(kp_voxel_coords)(const int64_t* keys, const int64_t* first, int64_t num_voxels, int64_t scale, const int64_t* low,
                       int64_t nx, int64_t ny, int64_t nz, int64_t* coords, int device, void* stream) {
  return kp::guarded(device, [=] {
    const kp::VoxelBox box{low, nx, ny, nz};
    if (num_voxels > 0)
      KP_LAUNCH(kp::voxel_coords_kernel, kp::blocks(num_voxels, kp::kThreads), kp::kThreads, 0, stream, keys, first,
                num_voxels, scale, box, coords);
  });
}

KP_OP(kp_find_keys)(const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* queries,
                    int64_t num_queries, const int64_t* shifts, int64_t num_runs, int64_t run, int64_t step,
                    int32_t* rows, int device, void* stream) {
  return kp::guarded(device, [=] {
    const int64_t searches = num_runs * num_queries;
    if (searches > 0)
      KP_LAUNCH(kp::find_keys_kernel, kp::blocks(searches, kp::kThreads), kp::kThreads, 0, stream, keys, order,
                num_keys, queries, num_queries, shifts, num_runs, run, step, rows);
  });
}

KP_OP(kp_trilinear)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, double size,
                    int64_t stride, const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* low,
                    int64_t nx, int64_t ny, int64_t nz, int32_t* rows, void* weights, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      const kp::VoxelBox box{low, nx, ny, nz};
      if (n > 0)
        KP_LAUNCH((kp::trilinear_kernel<T>), kp::blocks(n, kp::kThreads), kp::kThreads, 0, stream,
                  static_cast<const T*>(points), n, offsets, batch, static_cast<T>(size), stride, keys, order, num_keys,
                  box, rows, static_cast<T*>(weights));
    });
  });
}

KP_OP(kp_transpose_map)(const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t num_in, int32_t* transposed,
                        int device, void* stream) {
  return kp::guarded(device, [=] {
    const int64_t entries = num_taps * num_out;
    if (entries > 0)
      KP_LAUNCH(kp::transpose_map_kernel, kp::blocks(entries, kp::kThreads), kp::kThreads, 0, stream, rows, num_taps,
                num_out, num_in, transposed);
  });
}
