#include "core/accumulator.h"
#include "core/grid.h"
#include "core/hits.h"
#include "core/segments.h"
#include "cuda/cuda.h"

namespace kp {

constexpr int kThreads = 256, kWarp = 32;

// A warp a piece of a sample.
template <class T>
__global__ void bounds_kernel(const T* points, int64_t n, const int64_t* offsets, int64_t batch, int64_t pieces, T* low,
                              T* high) {
  const int64_t i = thread_index() / kWarp;
  if (i >= batch * pieces) return;
  const int lane = threadIdx.x % kWarp;
  Range rows = piece_of(offsets, n, i % batch, i / batch, pieces);
  for (int axis = 0; axis < 3; axis++) {
    T smallest = highest<T>(), largest = -highest<T>(), probe = 0;
    for (int64_t row = rows.begin + lane; row < rows.end; row += kWarp) {
      T value = points[3 * row + axis];
      smallest = value < smallest ? value : smallest;
      largest = value > largest ? value : largest;
      probe += value * 0;  // NaN unless finite
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      T other_smallest = __shfl_xor_sync(~0u, smallest, step), other_largest = __shfl_xor_sync(~0u, largest, step);
      smallest = other_smallest < smallest ? other_smallest : smallest;
      largest = other_largest > largest ? other_largest : largest;
      probe += __shfl_xor_sync(~0u, probe, step);
    }
    if (lane == 0) low[3 * i + axis] = smallest + probe, high[3 * i + axis] = largest + probe;
  }
}

template <class T>
__global__ void cell_keys_kernel(const T* points, int64_t n, const int64_t* offsets, Grid grid, int64_t* keys) {
  int64_t i = thread_index();
  if (i < n) keys[i] = cell_key(grid, points, offsets, i);
}

__global__ void cells_kernel(const int64_t* keys, const int32_t* order, const int64_t* ranks, int64_t n,
                             int64_t* splits, int64_t* inverse) {
  int64_t i = thread_index();
  if (i < n) place_in_cell(keys, order, ranks, n, i, splits, inverse);
}

// One thread a segment and channel.
template <class T>
__global__ void segment_mean_kernel(const T* values, int64_t channels, const int32_t* order, const int64_t* splits,
                                    int64_t segments, T* means) {
  int64_t i = thread_index();
  if (i >= segments * channels) return;
  int64_t s = i / channels;
  means[i] = mean_of(values + i % channels, channels, order + splits[s], splits[s + 1] - splits[s]);
}

template <class T>
__global__ void segment_sum_kernel(const T* values, int64_t channels, const int32_t* order, const int64_t* splits,
                                   int64_t segments, T* sums) {
  int64_t i = thread_index();
  if (i >= segments * channels) return;
  int64_t s = i / channels;
  Accumulator<T> sum = 0;
  for (int64_t k = splits[s]; k < splits[s + 1]; k++)
    sum += static_cast<Accumulator<T>>(values[order[k] * channels + i % channels]);
  sums[i] = static_cast<T>(sum);
}

// One thread a segment.
__global__ void segment_mode_kernel(const int64_t* labels, const int32_t* order, const int64_t* splits,
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

KP_OP(kp_bounds)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, int64_t pieces,
                 void* low, void* high, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_positions(dtype, [=](auto type) {
      using T = decltype(type);
      int64_t threads = batch * pieces * kp::kWarp;
      if (threads > 0)
        KP_LAUNCH((kp::bounds_kernel<T>), kp::blocks(threads, kp::kThreads), kp::kThreads, 0, stream,
                  static_cast<const T*>(points), n, offsets, batch, pieces, static_cast<T*>(low), static_cast<T*>(high));
    });
  });
}

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

KP_OP(kp_cells)(const int64_t* keys, const int32_t* order, const int64_t* ranks, int64_t n, int64_t* splits,
                int64_t* inverse, int device, void* stream) {
  return kp::guarded(device, [=] {
    if (n > 0)
      KP_LAUNCH(kp::cells_kernel, kp::blocks(n, kp::kThreads), kp::kThreads, 0, stream, keys, order, ranks, n, splits,
                inverse);
  });
}

KP_OP(kp_segment_mean)(int dtype, const void* values, int64_t channels, const int32_t* order, const int64_t* splits,
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

KP_OP(kp_segment_sum)(int dtype, const void* values, int64_t channels, const int32_t* order, const int64_t* splits,
                      int64_t segments, void* sums, int device, void* stream) {
  return kp::guarded(device, [=] {
    kp::with_features(dtype, [=](auto type) {
      using T = decltype(type);
      int64_t threads = segments * channels;
      if (threads > 0)
        KP_LAUNCH((kp::segment_sum_kernel<T>), kp::blocks(threads, kp::kThreads), kp::kThreads, 0, stream,
                  static_cast<const T*>(values), channels, order, splits, segments, static_cast<T*>(sums));
    });
  });
}

KP_OP(kp_segment_mode)(const int64_t* labels, const int32_t* order, const int64_t* splits, int64_t segments,
                       int64_t* scratch, int64_t* modes, int device, void* stream) {
  return kp::guarded(device, [=] {
    if (segments > 0)
      KP_LAUNCH(kp::segment_mode_kernel, kp::blocks(segments, kp::kThreads), kp::kThreads, 0, stream, labels, order,
                splits, segments, scratch, modes);
  });
}
