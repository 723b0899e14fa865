#include <algorithm>
#include <vector>

#include "core/accumulator.h"
#include "core/influence.h"
#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/vector.h"

namespace kp {

constexpr int vector_width = 16;  // kernel points are padded to it with points that nothing reaches

template <class G, class F>
struct Aggregation {
  const G *queries, *supports;
  const int32_t* indices;
  const int64_t* splits;
  const F* features;
  int64_t channels;
  InfluenceRule<G> rule;
  int num_kernel_points, padded;
  alignas(64) G x[max_kernel_points], y[max_kernel_points], z[max_kernel_points];
  F* aggregate;

  Aggregation(InfluenceRule<G> rule, const G* kernel_points, int64_t count)
      : rule(rule),
        num_kernel_points(static_cast<int>(count)),
        padded((num_kernel_points + vector_width - 1) / vector_width * vector_width) {
    for (int p = 0; p < padded; p++) {
      x[p] = p < count ? kernel_points[3 * p] : static_cast<G>(INFINITY);
      y[p] = p < count ? kernel_points[3 * p + 1] : 0;
      z[p] = p < count ? kernel_points[3 * p + 2] : 0;
    }
  }
};

// The kernel points that act on a neighbour, and how strongly.
template <class A>
struct Acting {
  int count = 0;
  int point[max_kernel_points];
  A strength[max_kernel_points];
};

template <class G, class F>
KP_WIDE_BODY void find_acting(const Aggregation<G, F>& a, const G* query, const G* support, Acting<Accumulator<F>>& out) {
  G rx = support[0] - query[0], ry = support[1] - query[1], rz = support[2] - query[2];
  alignas(64) G squared[max_kernel_points];
  for (int p = 0; p < a.padded; p++) squared[p] = squared_distance(rx, ry, rz, a.x[p], a.y[p], a.z[p]);
  int count = 0;
  if (a.rule.closest) {
    int nearest = 0;
    for (int p = 1; p < a.num_kernel_points; p++)
      if (squared[p] < squared[nearest]) nearest = p;
    out.point[0] = nearest;
    count = a.rule.reaches(squared[nearest]);
  } else {
    for (int p = 0; p < a.num_kernel_points; p++) {
      out.point[count] = p;  // no branch: which points act is unpredictable
      count += a.rule.reaches(squared[p]);
    }
  }
  for (int t = 0; t < count; t++) out.strength[t] = static_cast<Accumulator<F>>(a.rule.strength(squared[out.point[t]]));
  out.count = count;
}

template <class G, class F>
KP_WIDE_BODY void aggregate_rows(const Aggregation<G, F>& a, int64_t begin, int64_t end) {
  using A = Accumulator<F>;
  constexpr bool in_place = std::is_same_v<A, F>;
  const int64_t row_size = a.num_kernel_points * a.channels;
  std::vector<A> scratch(in_place ? 0 : row_size);
  Acting<A> acting;
  for (int64_t i = begin; i < end; i++) {
    A* row;
    if constexpr (in_place) row = a.aggregate + i * row_size;
    else row = scratch.data();
    std::fill(row, row + row_size, A(0));
    for (int64_t e = a.splits[i]; e < a.splits[i + 1]; e++) {
      const int64_t j = a.indices[e];
      find_acting(a, a.queries + 3 * i, a.supports + 3 * j, acting);
      const F* __restrict feature = a.features + j * a.channels;
      for (int t = 0; t < acting.count; t++) {
        const A strength = acting.strength[t];
        A* __restrict sum = row + acting.point[t] * a.channels;
        for (int64_t c = 0; c < a.channels; c++) sum[c] += strength * static_cast<A>(feature[c]);
      }
    }
    if constexpr (!in_place) {
      F* out = a.aggregate + i * row_size;
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
                    int64_t num_supports, const void* kernel_points, int64_t num_kernel_points, const int32_t* indices,
                    int64_t num_indices, const int64_t* splits, const void* features, int64_t channels, double extent,
                    int influence, int closest, void* aggregate, int, void*) {
  return kp::guarded([&] {
    kp::check_csr(indices, num_indices, splits, num_queries, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        kp::Aggregation<G, F> a(kp::InfluenceRule<G>(influence, closest, extent), static_cast<const G*>(kernel_points),
                                num_kernel_points);
        a.queries = static_cast<const G*>(queries);
        a.supports = static_cast<const G*>(supports);
        a.indices = indices;
        a.splits = splits;
        a.features = static_cast<const F*>(features);
        a.channels = channels;
        a.aggregate = static_cast<F*>(aggregate);
        kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) { kp::aggregate(a, begin, end); });
      });
    });
  });
}
