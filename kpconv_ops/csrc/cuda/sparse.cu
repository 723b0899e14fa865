#include "core/accumulator.h"
#include "cuda/cuda.h"

namespace kp {

// A thread an output row, tap and V channels: neighbouring threads touch neighbouring channels, also across taps.
template <int V, class F>
__global__ void gather_taps_kernel(const F* features, int64_t num_features, int64_t channels, const int32_t* rows,
                                   int num_taps, int64_t num_out, int64_t first, int64_t num_rows, F* gathered) {
  const int64_t i = thread_row(), column = thread_column() * V;
  if (i >= num_rows || column >= num_taps * channels) return;
  const int64_t tap = column / channels, row = rows[tap * num_out + first + i];
  store(gathered + i * num_taps * channels + column,
        load_or_zeros<V>(row >= 0 && row < num_features, features + row * channels + column % channels));
}

}  // namespace kp

KP_CUDA_OP(kp_gather_taps)(int dtype, const void* features, int64_t num_features, int64_t channels,
                           const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t first, int64_t num_rows,
                           void* gathered, int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::with_width<F>(kp::in_vectors<F>(channels, features, gathered), [&](auto width) {
        constexpr int V = decltype(width)::value;
        const kp::RowLaunch launch(num_rows, num_taps * channels / V);
        if (!launch.empty())
          KP_LAUNCH((kp::gather_taps_kernel<V, F>), launch.grid, launch.block, 0, stream,
                    static_cast<const F*>(features), num_features, channels, rows, kp::narrow(num_taps), num_out, first,
                    num_rows, static_cast<F*>(gathered));
      });
    });
  });
}
