#include <algorithm>
#include <atomic>

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

KP_OP(kp_find_keys)(const int64_t* keys, const int64_t* order, int64_t num_keys, const int64_t* queries,
                    int64_t num_queries, const int64_t* shifts, int64_t num_shifts, int32_t* rows, int, void*) {
  return kp::guarded([&] {
    kp::parallel_for(num_shifts * num_queries, 4096, [&](int64_t begin, int64_t end) {
      int64_t position = 0;
      for (int64_t t = begin; t < end; t++) {
        const int64_t key = queries[t % num_queries] + shifts[t / num_queries];
        position = kp::search_from(keys, num_keys, position, key);
        rows[t] = position < num_keys && keys[position] == key ? static_cast<int32_t>(order[position]) : -1;
      }
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
    if (!once) throw std::invalid_argument("rows must hold a row at most once in each tap");
  });
}
