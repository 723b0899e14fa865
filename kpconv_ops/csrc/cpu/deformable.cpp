#include <vector>

#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/hood.h"
#include "cpu/rows.h"

namespace kp {

template <class G, class F>
struct Deformation {
  const G *queries, *supports;
  KernelPoints<G> kernel;
  const Neighborhoods& neighborhoods;
  const F* features;
  int64_t channels;
  InfluenceRule<G> rule;
  const F* grad_aggregate;
  G *grad_points, *grad_modulations;
};

// The sum of N elements, half by half; without a loop over the halves these stay in registers.
template <int64_t N, class A>
KP_WIDE_BODY A sum_of(A* values) {
  if constexpr (N == 1) {
    return values[0];
  } else {
#pragma omp simd
    for (int64_t l = 0; l < N / 2; l++) values[l] += values[l + N / 2];
    return sum_of<N / 2>(values);
  }
}

// Always summed in the same order, whatever the vector width.
template <class A>
KP_WIDE_BODY A dot(const A* left, const A* right, int64_t size) {
  A sum[lanes<A>] = {};
  for (int64_t start = 0; start < size; start += lanes<A>)
#pragma omp simd
    for (int64_t l = 0; l < lanes<A>; l++) sum[l] += left[start + l] * right[start + l];
  return sum_of<lanes<A>>(sum);
}

template <class G, class F>
KP_WIDE_BODY void deform_rows(const Deformation<G, F>& d, int64_t begin, int64_t end) {
  using A = Accumulator<F>;
  const int64_t padded = whole_vectors<A>(d.channels);
  Hood<G> hood;
  VectorRows<F> features(d.channels), gradients(d.channels);
  for (int64_t i = begin; i < end; i++) {
    const auto [first, last] = d.neighborhoods[i];
    KernelPoints<G> kernel = d.kernel.of(i);
    const G* modulations = kernel.modulations;
    kernel.modulations = nullptr;  // strengths without them, which are the gradients of the modulations
    hood.gather(d.queries + 3 * i, d.supports, first, last);
    find_acting<false>(hood, kernel, first, d.rule);
    features.gather(d.features, first, last);
    gradients.take(d.grad_aggregate + i * kernel.count * d.channels, kernel.count);
    for (int p = 0; p < kernel.count; p++) {
      const G* k = kernel.points + 3 * p;
      G along_x = 0, along_y = 0, along_z = 0, along_modulation = 0;
      hood.for_each_acting(p, [&](int64_t j) __attribute__((always_inline)) {
        const G gradient = static_cast<G>(dot(gradients[p], features[j], padded));
        const G strength = hood.strength[p * hood.size + j];
        const G slope = d.rule.slope(squared_distance(hood.x[j], hood.y[j], hood.z[j], k[0], k[1], k[2]), strength);
        along_x += gradient * slope * (hood.x[j] - k[0]);
        along_y += gradient * slope * (hood.y[j] - k[1]);
        along_z += gradient * slope * (hood.z[j] - k[2]);
        along_modulation += gradient * strength;
      });
      const int64_t row = i * kernel.count + p;
      const G modulation = modulations ? modulations[p] : G(1);
      d.grad_points[3 * row] = along_x * modulation;
      d.grad_points[3 * row + 1] = along_y * modulation;
      d.grad_points[3 * row + 2] = along_z * modulation;
      if (modulations) d.grad_modulations[row] = along_modulation;
    }
  }
}

template <class G>
struct Pairing {
  const G *queries, *supports;
  KernelPoints<G> kernel;
  const Neighborhoods& neighborhoods;
  int32_t* nearest;
};

// The position of the neighbour nearest to a kernel point, the first one in a tie.
template <class G>
KP_WIDE_BODY int64_t nearest_neighbor(const Hood<G>& hood, const G* kernel_point) {
  constexpr int64_t width = block<G>;
  using Index = std::conditional_t<sizeof(G) == 4, int32_t, int64_t>;  // a vector of it is as long as one of G
  alignas(64) G squared[width], smallest[width];
  alignas(64) Index position[width] = {};
  std::fill(smallest, smallest + width, static_cast<G>(INFINITY));
  for (int64_t start = 0; start < hood.size; start += width) {
    const G *x = hood.x.data() + start, *y = hood.y.data() + start, *z = hood.z.data() + start;
    squared_distances<G, false>(x, y, z, kernel_point, squared);
#pragma omp simd
    for (int64_t l = 0; l < width; l++) {
      position[l] = squared[l] < smallest[l] ? static_cast<Index>(start + l) : position[l];
      smallest[l] = squared[l] < smallest[l] ? squared[l] : smallest[l];
    }
  }
  int best = 0;
  for (int l = 1; l < width; l++)
    if (smallest[l] < smallest[best] || (smallest[l] == smallest[best] && position[l] < position[best])) best = l;
  return position[best];
}

template <class G>
KP_WIDE_BODY void pair_rows(const Pairing<G>& a, int64_t begin, int64_t end) {
  Hood<G> hood;
  for (int64_t i = begin; i < end; i++) {
    const auto [first, last] = a.neighborhoods[i];
    hood.gather(a.queries + 3 * i, a.supports, first, last);
    const KernelPoints<G> kernel = a.kernel.of(i);
    for (int p = 0; p < kernel.count; p++)
      a.nearest[i * kernel.count + p] = first == last ? -1 : first[nearest_neighbor(hood, kernel.points + 3 * p)];
  }
}

#define KP_DEFORM(G, F) \
  KP_WIDE void deform(const Deformation<G, F>& d, int64_t begin, int64_t end) { deform_rows(d, begin, end); }
KP_DEFORM(float, float)
KP_DEFORM(float, double)
KP_DEFORM(float, Half)
KP_DEFORM(float, BFloat16)
KP_DEFORM(double, float)
KP_DEFORM(double, double)
KP_DEFORM(double, Half)
KP_DEFORM(double, BFloat16)
#undef KP_DEFORM

KP_WIDE void pair(const Pairing<float>& a, int64_t begin, int64_t end) { pair_rows(a, begin, end); }
KP_WIDE void pair(const Pairing<double>& a, int64_t begin, int64_t end) { pair_rows(a, begin, end); }

template <class G>
KernelPoints<G> own_kernel_points(const void* points, const void* modulations, int64_t count) {
  return {static_cast<const G*>(points), static_cast<const G*>(modulations), static_cast<int>(count),
          KernelPoints<G>::queries};
}

}  // namespace kp

KP_OP(kp_deform_backward)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                          int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                          const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                          const void* features, int64_t channels, double extent, int influence, int closest,
                          const void* grad_aggregate, void* grad_points, void* grad_modulations, int, void*) {
  return kp::guarded([&] {
    const kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      kp::with_features(dtype, [&](auto feature) {
        using G = decltype(coordinate);
        using F = decltype(feature);
        const kp::Deformation<G, F> d{static_cast<const G*>(queries),
                                      static_cast<const G*>(supports),
                                      kp::own_kernel_points<G>(kernel_points, modulations, num_kernel_points),
                                      neighborhoods,
                                      static_cast<const F*>(features),
                                      channels,
                                      kp::InfluenceRule<G>(influence, closest, extent),
                                      static_cast<const F*>(grad_aggregate),
                                      static_cast<G*>(grad_points),
                                      static_cast<G*>(grad_modulations)};
        kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) { kp::deform(d, begin, end); });
      });
    });
    neighborhoods.check();
  });
}

KP_OP(kp_kernel_point_neighbors)(int geometry, const void* queries, int64_t num_queries, const void* supports,
                                 int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                                 const int32_t* indices, int64_t num_indices, const int64_t* splits, int32_t* nearest,
                                 int, void*) {
  return kp::guarded([&] {
    const kp::Neighborhoods neighborhoods(indices, num_indices, splits, num_supports);
    kp::with_coordinates(geometry, [&](auto coordinate) {
      using G = decltype(coordinate);
      const auto kernel = kp::own_kernel_points<G>(kernel_points, nullptr, num_kernel_points);
      const kp::Pairing<G> a{static_cast<const G*>(queries), static_cast<const G*>(supports), kernel, neighborhoods,
                             nearest};
      kp::parallel_for(num_queries, 64, [&](int64_t begin, int64_t end) { kp::pair(a, begin, end); });
    });
    neighborhoods.check();
  });
}
