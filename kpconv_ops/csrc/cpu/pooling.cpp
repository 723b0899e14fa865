#include "core/pooling.h"

#include <algorithm>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/vector.h"

namespace kp {

// Channels that are pooled at a time, in registers.
constexpr int64_t tile = 32;

template <class F>
KP_WIDE_BODY void max_pool_row(const F* features, int64_t channels, const int32_t* first, const int32_t* last,
                               F* values, int32_t* winners) {
  using A = Accumulator<F>;
  for (int64_t start = 0; start < channels; start += tile) {
    const int64_t width = std::min(tile, channels - start);
    A maximum[tile] = {};
    int32_t winner[tile];
    std::fill(winner, winner + tile, first == last ? -1 : *first);
    for (int64_t c = 0; c < width && first != last; c++) maximum[c] = features[*first * channels + start + c];
    auto pool = [&](const F* feature, int32_t support, int64_t count) __attribute__((always_inline)) {
      for (int64_t c = 0; c < count; c++) {
        const A value = feature[c];
        const bool wins = replaces(value, maximum[c]);
        const int32_t mask = -static_cast<int32_t>(wins);  // arithmetic, not a branch, so that it is vectorised
        maximum[c] = wins ? value : maximum[c];
        winner[c] = (support & mask) | (winner[c] & ~mask);
      }
    };
    for (const int32_t* j = first; j < last; j++) {
      const F* feature = features + *j * channels + start;
      if (width == tile) pool(feature, *j, tile);
      else pool(feature, *j, width);
    }
    for (int64_t c = 0; c < width; c++) values[start + c] = static_cast<F>(maximum[c]);
    std::copy_n(winner, width, winners + start);
  }
}

// The gradients of the queries first to last that this support won.
template <class F>
KP_WIDE_BODY void max_pool_gradient_row(const F* gradient, const int32_t* winners, int64_t channels,
                                        const int32_t* first, const int32_t* last, int32_t support,
                                        Accumulator<F>* __restrict sums) {
  using A = Accumulator<F>;
  std::fill(sums, sums + channels, A(0));
  for (const int32_t* i = first; i < last; i++) {
    const F* __restrict g = gradient + *i * channels;
    const int32_t* __restrict winner = winners + *i * channels;
    for (int64_t c = 0; c < channels; c++) {
      const A value = static_cast<A>(g[c]);
      sums[c] += winner[c] == support ? value : A(0);
    }
  }
}

// The features of the neighbours first to last, times their weights.
template <class F>
KP_WIDE_BODY void weighted_sum_row(const F* features, int64_t channels, const int32_t* first, const int32_t* last,
                                   const Accumulator<F>* weights, Accumulator<F>* __restrict sums, F* out) {
  using A = Accumulator<F>;
  std::fill(sums, sums + channels, A(0));
  for (const int32_t* j = first; j < last; j++) {
    const F* __restrict feature = features + *j * channels;
    const A weight = weights ? weights[j - first] : A(1);
    for (int64_t c = 0; c < channels; c++) sums[c] += weight * static_cast<A>(feature[c]);
  }
  for (int64_t c = 0; c < channels; c++) out[c] = static_cast<F>(sums[c]);
}

#define KP_POOLING(F)                                                                                               \
  KP_WIDE void max_pool(const F* features, int64_t channels, const int32_t* first, const int32_t* last, F* values,  \
                        int32_t* winners) {                                                                         \
    max_pool_row(features, channels, first, last, values, winners);                                                 \
  }                                                                                                                 \
  KP_WIDE void max_pool_gradient(const F* gradient, const int32_t* winners, int64_t channels, const int32_t* first, \
                                 const int32_t* last, int32_t support, Accumulator<F>* sums) {                      \
    max_pool_gradient_row(gradient, winners, channels, first, last, support, sums);                                 \
  }                                                                                                                 \
  KP_WIDE void weighted_sum(const F* features, int64_t channels, const int32_t* first, const int32_t* last,         \
                            const Accumulator<F>* weights, Accumulator<F>* sums, F* out) {                          \
    weighted_sum_row(features, channels, first, last, weights, sums, out);                                          \
  }
KP_POOLING(float)
KP_POOLING(double)
KP_POOLING(Half)
KP_POOLING(BFloat16)
#undef KP_POOLING

}  // namespace kp

KP_OP(kp_max_pool)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                   int64_t num_indices, const int64_t* splits, int64_t num_queries, void* values, int32_t* winners, int,
                   void*) {
  return kp::guarded([&] {
    const kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          const auto [first, last] = neighborhoods[i];
          kp::max_pool(static_cast<const F*>(features), channels, first, last, static_cast<F*>(values) + i * channels,
                       winners + i * channels);
        }
      });
    });
    neighborhoods.check();
  });
}

KP_OP(kp_max_pool_backward)(int dtype, const void* gradient, const int32_t* winners, int64_t num_queries,
                            int64_t channels, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                            int64_t num_supports, void* out, int, void*) {
  return kp::guarded([&] {
    const kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_queries);
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      kp::parallel_for(num_supports, 64, [&](int64_t begin, int64_t end) {
        std::vector<kp::Accumulator<F>> sums(channels);
        for (int64_t j = begin; j < end; j++) {
          const auto [first, last] = neighborhoods[j];
          kp::max_pool_gradient(static_cast<const F*>(gradient), winners, channels, first, last, static_cast<int32_t>(j),
                                sums.data());
          std::transform(sums.begin(), sums.end(), static_cast<F*>(out) + j * channels,
                         [](kp::Accumulator<F> sum) { return static_cast<F>(sum); });
        }
      });
    });
    neighborhoods.check();
  });
}

KP_OP(kp_weighted_sum)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                       int64_t num_indices, const int64_t* splits, const void* weights, int64_t num_queries, void* out,
                       int, void*) {
  return kp::guarded([&] {
    const kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::with_features(dtype, [&](auto feature) {
      using F = decltype(feature);
      using A = kp::Accumulator<F>;
      kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) {
        std::vector<A> sums(channels);
        for (int64_t i = begin; i < end; i++) {
          const auto [first, last] = neighborhoods[i];
          kp::weighted_sum(static_cast<const F*>(features), channels, first, last,
                           weights ? static_cast<const A*>(weights) + (first - indices) : nullptr, sums.data(),
                           static_cast<F*>(out) + i * channels);
        }
      });
    });
    neighborhoods.check();
  });
}
