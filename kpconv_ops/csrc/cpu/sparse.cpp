#include <algorithm>
#include <atomic>

#include "core/accumulator.h"
#include "cpu/cpu.h"
#include "cpu/csr.h"

KP_OP(kp_gather_taps)(int dtype, const void* features, int64_t num_features, int64_t channels, const int32_t* rows,
                      int64_t num_taps, int64_t num_out, int64_t first, int64_t num_rows, void* gathered, int, void*) {
  return kp::guarded([&] {
    std::atomic<bool> inside{true};
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::parallel_for(num_rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          for (int64_t tap = 0; tap < num_taps; tap++) {
            const int32_t row = rows[tap * num_out + first + i];
            F* to = static_cast<F*>(gathered) + (i * num_taps + tap) * channels;
            if (row < -1 || row >= num_features) inside = false;
            else if (row == -1) std::fill_n(to, channels, F(0.0f));
            else std::copy_n(static_cast<const F*>(features) + row * channels, channels, to);
          }
      });
    });
    if (!inside) kp::throw_map_rows_outside(num_features);
  });
}
