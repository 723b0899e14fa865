#include <algorithm>

#include "core/accumulator.h"
#include "core/grid.h"
#include "cpu/cpu.h"
#include "cpu/csr.h"

namespace kp {

// Position of the first key not below `key`, looked for from `hint` on with doubling steps: next to free when one search
// follows another in ascending order.
inline int64_t search_from(const int64_t* keys, int64_t count, int64_t hint, int64_t key) {
  int64_t low = 0, high = count, step = 1;
  if (hint < count && keys[hint] < key) {
    low = hint + 1;
    while (hint + step < count && keys[hint + step] < key) {
      low = hint + step + 1;
      step *= 2;
    }
    high = std::min(hint + step, count);
  } else {
    high = hint;
    while (step <= hint && keys[hint - step] >= key) {
      high = hint - step;
      step *= 2;
    }
    low = std::max(hint - step + 1, int64_t{0});
  }
  return low + lower_bound(keys + low, high - low, key);
}

}  // namespace kp

KP_OP(kp_find_keys)(const int64_t* keys, int64_t num_keys, const int64_t* queries, int64_t num_queries,
                    const int64_t* shifts, int64_t num_shifts, int32_t* hits, int, void*) {
  return kp::guarded([&] {
    kp::parallel_for(num_shifts * num_queries, 4096, [&](int64_t begin, int64_t end) {
      int64_t position = 0;
      for (int64_t t = begin; t < end; t++) {
        const int64_t key = queries[t % num_queries] + shifts[t / num_queries];
        position = kp::search_from(keys, num_keys, position, key);
        hits[t] = position < num_keys && keys[position] == key ? static_cast<int32_t>(position) : -1;
      }
    });
  });
}

KP_OP(kp_gather_rows)(int dtype, const void* features, int64_t num_features, int64_t channels, const int32_t* rows,
                      int64_t num_rows, void* out, int, void*) {
  return kp::guarded([&] {
    kp::check_rows("rows", rows, num_rows, num_features);
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::parallel_for(num_rows, 256, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          std::copy_n(static_cast<const F*>(features) + rows[i] * channels, channels,
                      static_cast<F*>(out) + i * channels);
      });
    });
  });
}

KP_OP(kp_add_rows)(int dtype, const void* values, int64_t channels, const int32_t* rows, int64_t num_rows, void* out,
                   int64_t num_out, int, void*) {
  return kp::guarded([&] {
    kp::check_rows("rows", rows, num_rows, num_out);
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      using A = kp::Accumulator<F>;
      kp::parallel_for(num_rows, 256, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          const F* __restrict value = static_cast<const F*>(values) + i * channels;
          A* __restrict target = static_cast<A*>(out) + rows[i] * channels;
          for (int64_t c = 0; c < channels; c++) target[c] += static_cast<A>(value[c]);
        }
      });
    });
  });
}
