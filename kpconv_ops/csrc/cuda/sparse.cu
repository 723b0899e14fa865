#include "core/accumulator.h"
#include "cuda/cuda.h"

namespace kp {

// A thread an output row, tap and V channels: neighbouring threads touch neighbouring channels, also across taps.
template <int V, class F>
__global__ void gather_taps_kernel(const F* features, int64_t num_features, int channels, const int32_t* rows,
                                   int columns, int64_t num_out, int64_t first, int64_t num_rows, F* gathered) {
  const int64_t i = thread_row();
  const int column = static_cast<int>(thread_column()) * V;
  if (i >= num_rows || column >= columns) return;
  const int tap = column / channels, channel = column % channels;
  const int64_t row = rows[tap * num_out + first + i];
  store(gathered + i * columns + column,
        load_or_zeros<V>(row >= 0 && row < num_features, features + row * channels + channel));
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
        const int columns = kp::narrow(num_taps * channels);
        const kp::RowLaunch launch(num_rows, columns / V);
        if (!launch.empty())
          KP_LAUNCH((kp::gather_taps_kernel<V, F>), launch.grid, launch.block, 0, stream,
                    static_cast<const F*>(features), num_features, kp::narrow(channels), rows, columns, num_out, first,
                    num_rows, static_cast<F*>(gathered));
      });
    });
  });
}
