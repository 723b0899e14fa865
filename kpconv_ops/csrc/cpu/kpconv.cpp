#include <vector>

#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/hood.h"
#include "cpu/rows.h"

namespace kp {

template <class G, class F>
struct Aggregation {
  const G *queries, *supports;
  KernelPoints<G> kernel;
  const Neighborhoods& neighborhoods;
  const F* features;
  int64_t channels;
  InfluenceRule<G> rule;
  F* aggregate;
};

// N channels of one kernel point: the sum stays in registers, and is written once.
template <int64_t N, class G, class F>
KP_WIDE_BODY void add_up(const Hood<G>& hood, int p, const VectorRows<F>& features, int64_t channel,
                         Accumulator<F>* __restrict out) {
  using A = Accumulator<F>;
  A sum[N] = {};
  hood.for_each_acting(p, [&](int64_t j) __attribute__((always_inline)) {
    const A strength = static_cast<A>(hood.strength[p * hood.size + j]);
    const A* feature = features[j] + channel;
#pragma omp simd
    for (int64_t c = 0; c < N; c++) sum[c] += strength * feature[c];
  });
#pragma omp simd
  for (int64_t c = 0; c < N; c++) out[channel + c] = sum[c];
}

template <class G, class F>
KP_WIDE_BODY void aggregate_rows(const Aggregation<G, F>& a, int64_t begin, int64_t end) {
  using A = Accumulator<F>;
  constexpr int64_t width = lanes<A>, tile = 4 * width;  // as many sums as the registers hold
  const bool in_place = are_vectors<F>(a.channels);
  const int64_t padded = whole_vectors<A>(a.channels), row_size = a.kernel.count * a.channels;
  Hood<G> hood;
  VectorRows<F> features(a.channels);
  std::vector<A> scratch(in_place ? 0 : row_size + width);
  for (int64_t i = begin; i < end; i++) {
    const auto [first, last] = a.neighborhoods[i];
    hood.gather(a.queries + 3 * i, a.supports, first, last);
    if (a.kernel.owner == KernelPoints<G>::supports) find_acting<true>(hood, a.kernel, first, a.rule);
    else find_acting<false>(hood, a.kernel.owner == KernelPoints<G>::all ? a.kernel : a.kernel.of(i), first, a.rule);
    features.gather(a.features, first, last);
    A* row = scratch.data();
    if constexpr (std::is_same_v<F, A>) row = in_place ? a.aggregate + i * row_size : row;
    for (int p = 0; p < a.kernel.count; p++) {
      A* out = row + p * a.channels;  // what fills up its last vector is overwritten by the next kernel point
      int64_t c = 0;
      for (; c + tile <= padded; c += tile) add_up<tile>(hood, p, features, c, out);
      switch ((padded - c) / width) {
        case 3: add_up<3 * width>(hood, p, features, c, out); break;
        case 2: add_up<2 * width>(hood, p, features, c, out); break;
        case 1: add_up<width>(hood, p, features, c, out);
      }
    }
    if (!in_place) {
      F* __restrict out = a.aggregate + i * row_size;
      for (int64_t c = 0; c < row_size; c++) out[c] = static_cast<F>(row[c]);
    }
  }
}

#define KP_AGGREGATE(G, F) \
  KP_WIDE void aggregate(const Aggregation<G, F>& a, int64_t begin, int64_t end) { aggregate_rows(a, begin, end); }
KP_AGGREGATE(float, float)
KP_AGGREGATE(float, double)
KP_AGGREGATE(float, Half)
KP_AGGREGATE(float, BFloat16)
KP_AGGREGATE(double, float)
KP_AGGREGATE(double, double)
KP_AGGREGATE(double, Half)
KP_AGGREGATE(double, BFloat16)
#undef KP_AGGREGATE

}  // namespace kp

KP_OP(kp_aggregate)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                    int64_t num_supports, const void* kernel_points, int64_t num_kernel_points, int points_of,
                    const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                    const void* features, int64_t channels, double extent, int influence, int closest, void* aggregate,
                    int, void*) {
  return kp::guarded([&] {
    const kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        using Kernel = kp::KernelPoints<G>;
        const Kernel kernel{static_cast<const G*>(kernel_points), static_cast<const G*>(modulations),
                            static_cast<int>(num_kernel_points), static_cast<typename Kernel::Owner>(points_of)};
        const kp::Aggregation<G, F> a{static_cast<const G*>(queries),
                                      static_cast<const G*>(supports),
                                      kernel,
                                      neighborhoods,
                                      static_cast<const F*>(features),
                                      channels,
                                      kp::InfluenceRule<G>(influence, closest, extent),
                                      static_cast<F*>(aggregate)};
        kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) { kp::aggregate(a, begin, end); });
      });
    });
    neighborhoods.check();
  });
}
