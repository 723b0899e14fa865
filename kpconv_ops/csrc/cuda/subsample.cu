#include "core/grid.h"
#include "core/hits.h"
#include "core/segments.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int kThreads = 256;

template <class T>
__global__ void cell_keys_kernel(const T* points, int64_t n, const int64_t* offsets, Grid grid, int64_t* keys) {
  int64_t i = thread_index();
  if (i < n) keys[i] = cell_key(grid, points, offsets, i);
}

// One thread a segment and channel.
template <class T>
__global__ void segment_mean_kernel(const T* values, int64_t channels, const int64_t* order, const int64_t* splits,
                                    int64_t segments, T* means) {
  int64_t i = thread_index();
  if (i >= segments * channels) return;
  int64_t s = i / channels;
  means[i] = mean_of(values + i % channels, channels, order + splits[s], splits[s + 1] - splits[s]);
}

// One thread a segment.
__global__ void segment_mode_kernel(const int64_t* labels, const int64_t* order, const int64_t* splits,
                                    int64_t segments, int64_t* scratch, int64_t* modes) {
  int64_t s = thread_index();
  if (s >= segments) return;
  int64_t n = splits[s + 1] - splits[s];
  for (int64_t i = splits[s]; i < splits[s + 1]; i++) scratch[i] = labels[order[i]];
  make_heap(scratch + splits[s], n);
  sort_heap(scratch + splits[s], n);
  modes[s] = mode_of_sorted(scratch + splits[s], n);
}

}  // namespace kp

KP_OP(kp_cell_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, const double* boxes,
                    const int64_t* cells, int64_t batch, int64_t* keys, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_coordinates(dtype, [=](auto type) {
      using T = decltype(type);
      kp::Grid grid{boxes, cells, batch};
      if (n > 0)
        KP_LAUNCH((kp::cell_keys_kernel<T>), kp::blocks(n, kp::kThreads), kp::kThreads, 0, stream,
                  static_cast<const T*>(points), n, offsets, grid, keys);
    });
  });
}

KP_OP(kp_segment_mean)(int dtype, const void* values, int64_t channels, const int64_t* order, const int64_t* splits,
                       int64_t segments, void* means, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_features(dtype, [=](auto type) {
      using T = decltype(type);
      int64_t threads = segments * channels;
      if (threads > 0)
        KP_LAUNCH((kp::segment_mean_kernel<T>), kp::blocks(threads, kp::kThreads), kp::kThreads, 0, stream,
                  static_cast<const T*>(values), channels, order, splits, segments, static_cast<T*>(means));
    });
  });
}

KP_OP(kp_segment_mode)(const int64_t* labels, const int64_t* order, const int64_t* splits, int64_t segments,
                       int64_t* scratch, int64_t* modes, int device, void* stream) {
  return kp::guarded(device, [=] {
    if (segments > 0)
      KP_LAUNCH(kp::segment_mode_kernel, kp::blocks(segments, kp::kThreads), kp::kThreads, 0, stream, labels, order,
                splits, segments, scratch, modes);
  });
}
