#include <algorithm>
#include <vector>

#include "core/accumulator.h"
#include "core/influence.h"
#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/vector.h"

namespace kp {

template <class G, class F>
struct Aggregation {
  const G *queries, *supports;
  const int32_t* indices;
  const int64_t* splits;
  const F* features;
  int64_t channels;
  InfluenceRule<G> rule;
  const G *kernel_points, *modulations;
  int num_kernel_points, points_of;
  F* aggregate;

  int64_t point_set(int64_t query, int64_t support) const {
    return points_of == 0 ? 0 : (points_of == 1 ? query : support) * num_kernel_points;
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
KP_WIDE_BODY void find_acting(const Aggregation<G, F>& a, int64_t i, int64_t j, Acting<Accumulator<F>>& out) {
  const G *query = a.queries + 3 * i, *support = a.supports + 3 * j;
  G rx = support[0] - query[0], ry = support[1] - query[1], rz = support[2] - query[2];
  const int64_t set = a.point_set(i, j);
  alignas(64) G squared[max_kernel_points];
  for (int p = 0; p < a.num_kernel_points; p++) {
    const G* k = a.kernel_points + 3 * (set + p);
    squared[p] = squared_distance(rx, ry, rz, k[0], k[1], k[2]);
  }
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
  for (int t = 0; t < count; t++) {
    const G modulation = a.modulations ? a.modulations[set + out.point[t]] : G(1);
    out.strength[t] = static_cast<Accumulator<F>>(a.rule.strength(squared[out.point[t]]) * modulation);
  }
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
      find_acting(a, i, j, acting);
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
                    int64_t num_supports, const void* kernel_points, int64_t num_kernel_points, int points_of,
                    const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                    const void* features, int64_t channels, double extent, int influence, int closest, void* aggregate,
                    int, void*) {
  return kp::guarded([&] {
    kp::check_csr(indices, num_indices, splits, num_queries, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        const kp::Aggregation<G, F> a{static_cast<const G*>(queries),
                                      static_cast<const G*>(supports),
                                      indices,
                                      splits,
                                      static_cast<const F*>(features),
                                      channels,
                                      kp::InfluenceRule<G>(influence, closest, extent),
                                      static_cast<const G*>(kernel_points),
                                      static_cast<const G*>(modulations),
                                      static_cast<int>(num_kernel_points),
                                      points_of,
                                      static_cast<F*>(aggregate)};
        kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) { kp::aggregate(a, begin, end); });
      });
    });
  });
}

KP_OP(kp_deform_backward)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                          int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                          const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                          const void* features, int64_t channels, double extent, int influence, int closest,
                          const void* grad_aggregate, void* grad_points, void* grad_modulations, int, void*) {
  return kp::guarded([&] {
    kp::check_csr(indices, num_indices, splits, num_queries, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        using A = kp::Accumulator<F>;
        const kp::InfluenceRule<G> rule(influence, closest, extent);
        kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) {
          const int count = static_cast<int>(num_kernel_points);
          std::vector<G> squared(count);
          for (int64_t i = begin; i < end; i++) {
            const G *points = static_cast<const G*>(kernel_points) + 3 * i * count, *query = static_cast<const G*>(queries) + 3 * i;
            G* out = static_cast<G*>(grad_points) + 3 * i * count;
            G* out_m = grad_modulations ? static_cast<G*>(grad_modulations) + i * count : nullptr;
            std::fill(out, out + 3 * count, G(0));
            if (out_m) std::fill(out_m, out_m + count, G(0));
            for (int64_t e = splits[i]; e < splits[i + 1]; e++) {
              const int64_t j = indices[e];
              const G* support = static_cast<const G*>(supports) + 3 * j;
              const G r[3] = {support[0] - query[0], support[1] - query[1], support[2] - query[2]};
              for (int p = 0; p < count; p++)
                squared[p] = kp::squared_distance(r[0], r[1], r[2], points[3 * p], points[3 * p + 1], points[3 * p + 2]);
              const int nearest = static_cast<int>(std::min_element(squared.begin(), squared.end()) - squared.begin());
              for (int p = 0; p < count; p++) {
                if (!rule.reaches(squared[p]) || (rule.closest && p != nearest)) continue;
                const F* feature_row = static_cast<const F*>(features) + j * channels;
                const F* grad_row = static_cast<const F*>(grad_aggregate) + (i * count + p) * channels;
                A dot = 0;
                for (int64_t c = 0; c < channels; c++) dot += static_cast<A>(feature_row[c]) * static_cast<A>(grad_row[c]);
                const G d = std::sqrt(squared[p]), h = rule.strength(squared[p]);
                const G modulation = modulations ? static_cast<const G*>(modulations)[i * count + p] : G(1);
                G slope = 0;  // of the influence, over the distance, away from the kernel point
                if (influence == 0 && d > 0) slope = rule.inverse_extent / d;
                if (influence == 2) slope = 2 * h * rule.inverse_two_sigma2;
                for (int x = 0; x < 3; x++) out[3 * p + x] += static_cast<G>(dot) * modulation * slope * (r[x] - points[3 * p + x]);
                if (out_m) out_m[p] += static_cast<G>(dot) * h;
              }
            }
          }
        });
      });
    });
  });
}

KP_OP(kp_kernel_point_neighbors)(int geometry, const void* queries, int64_t num_queries, const void* supports,
                                 int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                                 const int32_t* indices, int64_t num_indices, const int64_t* splits, int32_t* nearest,
                                 int, void*) {
  return kp::guarded([&] {
    kp::check_csr(indices, num_indices, splits, num_queries, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      using G = decltype(coordinate);
      kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          for (int64_t p = 0; p < num_kernel_points; p++) {
            const G* k = static_cast<const G*>(kernel_points) + 3 * (i * num_kernel_points + p);
            const G* q = static_cast<const G*>(queries) + 3 * i;
            G best = static_cast<G>(INFINITY);
            int32_t& row = nearest[i * num_kernel_points + p];
            row = splits[i] < splits[i + 1] ? indices[splits[i]] : -1;
            for (int64_t e = splits[i]; e < splits[i + 1]; e++) {
              const G* s = static_cast<const G*>(supports) + 3 * static_cast<int64_t>(indices[e]);
              const G d = kp::squared_distance(s[0] - q[0], s[1] - q[1], s[2] - q[2], k[0], k[1], k[2]);
              if (d < best) {
                best = d;
                row = indices[e];
              }
            }
          }
      });
    });
  });
}
