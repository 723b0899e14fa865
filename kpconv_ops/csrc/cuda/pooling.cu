#include "core/pooling.h"

#include "cuda/cuda.h"

namespace kp {

constexpr int threads = 256;

// A thread a query and channel: neighbouring threads read neighbouring channels of the same support.
template <class F>
__global__ void max_pool_kernel(const F* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                                const int64_t* splits, int64_t num_queries, F* values, int32_t* winners) {
  const int64_t t = thread_index();
  if (t >= num_queries * channels) return;
  const int64_t query = t / channels, channel = t % channels;
  Accumulator<F> maximum = 0;
  int32_t winner = -1;
  for (int64_t e = splits[query]; e < splits[query + 1]; e++) {
    const int32_t j = indices[e];
    if (j < 0 || j >= num_supports) continue;
    const Accumulator<F> value = features[j * channels + channel];
    if (winner < 0 || replaces(value, maximum)) {
      maximum = value;
      winner = j;
    }
  }
  values[t] = static_cast<F>(maximum);
  winners[t] = winner;
}

// A thread a support and channel.
template <class F>
__global__ void max_pool_backward_kernel(const F* gradient, const int32_t* winners, int64_t num_queries,
                                         int64_t channels, const int32_t* indices, const int64_t* splits,
                                         int64_t num_supports, F* out) {
  const int64_t t = thread_index();
  if (t >= num_supports * channels) return;
  const int64_t support = t / channels, channel = t % channels;
  Accumulator<F> sum = 0;
  for (int64_t e = splits[support]; e < splits[support + 1]; e++) {
    const int64_t query = indices[e];
    if (query < 0 || query >= num_queries) continue;
    if (winners[query * channels + channel] == support) sum += static_cast<Accumulator<F>>(gradient[query * channels + channel]);
  }
  out[t] = static_cast<F>(sum);
}

}  // namespace kp

KP_OP(kp_max_pool)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                   int64_t, const int64_t* splits, int64_t num_queries, void* values, int32_t* winners, int device,
                   void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      const int64_t elements = num_queries * channels;
      if (elements)
        KP_LAUNCH((kp::max_pool_kernel<F>), kp::blocks(elements, kp::threads), kp::threads, 0, stream,
                  static_cast<const F*>(features), num_supports, channels, indices, splits, num_queries,
                  static_cast<F*>(values), winners);
    });
  });
}

KP_OP(kp_max_pool_backward)(int dtype, const void* gradient, const int32_t* winners, int64_t num_queries,
                            int64_t channels, const int32_t* indices, int64_t, const int64_t* splits,
                            int64_t num_supports, void* out, int device, void* stream) {
  return kp::guarded(device, [&] {
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      const int64_t elements = num_supports * channels;
      if (elements)
        KP_LAUNCH((kp::max_pool_backward_kernel<F>), kp::blocks(elements, kp::threads), kp::threads, 0, stream,
                  static_cast<const F*>(gradient), winners, num_queries, channels, indices, splits, num_supports,
                  static_cast<F*>(out));
    });
  });
}
