#include <algorithm>

#include "core/grid.h"
#include "core/segments.h"
#include "cpu/cpu.h"

KP_OP(kp_cell_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, const double* boxes,
                    const int64_t* cells, int64_t batch, int64_t* keys, int, void*) {
  return kp::guarded([=] {
    kp::with_coordinates(dtype, [=](auto type) {
      auto* p = static_cast<const decltype(type)*>(points);
      kp::Grid grid{boxes, cells, batch};
      kp::parallel_for(n, 4096, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) keys[i] = kp::cell_key(grid, p, offsets, i);
      });
    });
  });
}

KP_OP(kp_segment_mean)(int dtype, const void* values, int64_t channels, const int64_t* order, const int64_t* splits,
                       int64_t segments, void* means, int, void*) {
  return kp::guarded([=] {
    kp::with_features(dtype, [=](auto type) {
      using T = decltype(type);
      auto* in = static_cast<const T*>(values);
      auto* out = static_cast<T*>(means);
      kp::parallel_for(segments, 1024, [=](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; s++)
          for (int64_t c = 0; c < channels; c++)
            out[s * channels + c] = kp::mean_of(in + c, channels, order + splits[s], splits[s + 1] - splits[s]);
      });
    });
  });
}

KP_OP(kp_segment_mode)(const int64_t* labels, const int64_t* order, const int64_t* splits, int64_t segments,
                       int64_t* scratch, int64_t* modes, int, void*) {
  return kp::guarded([=] {
    kp::parallel_for(segments, 1024, [=](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; s++) {
        for (int64_t i = splits[s]; i < splits[s + 1]; i++) scratch[i] = labels[order[i]];
        std::sort(scratch + splits[s], scratch + splits[s + 1]);
        modes[s] = kp::mode_of_sorted(scratch + splits[s], splits[s + 1] - splits[s]);
      }
    });
  });
}
