// One query, its neighbours and its kernel points: who acts on whom, and how strongly.
#pragma once
#include <algorithm>
#include <vector>

#include "core/influence.h"
#include "cpu/vector.h"

namespace kp {

// The kernel points of a convolution, see points_of in api.h.
template <class G>
struct KernelPoints {
  enum Owner : int { all = 0, queries = 1, supports = 2 };

  const G *points, *modulations;  // modulations may be null
  int count;
  Owner owner;

  // The set of one query or support.
  KernelPoints of(int64_t row) const {
    return {points + 3 * count * row, modulations ? modulations + count * row : nullptr, count, owner};
  }
};

// Neighbours that are worked on together: two vectors, since to gather bits from two takes hardly longer than from one.
template <class G>
constexpr int64_t block = 2 * lanes<G>;

// One query's neighbours, in whole blocks: the last one is filled up with points at infinity.
template <class G>
struct Hood {
  int64_t count = 0, size = 0, words = 0;  // neighbours, with those that fill up, and their number in 64s
  std::vector<G> x, y, z;                  // [size] relative to the query

  // Of each kernel point: [words] bit j % 64 of word j / 64 tells whether it acts on neighbour j, [size] how strongly.
  std::vector<uint64_t> acting;
  std::vector<G> strength;

  // Of a block of neighbours with kernel points of their own: [3 * points, block] and [points, block].
  alignas(64) G own_points[3 * max_kernel_points * block<G>] = {}, own_modulations[max_kernel_points * block<G>] = {};

  KP_WIDE_BODY void gather(const G* query, const G* supports, const int32_t* first, const int32_t* last) {
    count = last - first;
    size = (count + block<G> - 1) / block<G> * block<G>;
    words = (count + 63) / 64;
    if (static_cast<int64_t>(x.size()) < size)
      for (auto* each : {&x, &y, &z}) each->resize(size);
    for (int64_t j = 0; j < count; j++) {
      const G* support = supports + 3 * static_cast<int64_t>(first[j]);
      x[j] = support[0] - query[0];
      y[j] = support[1] - query[1];
      z[j] = support[2] - query[2];
    }
    for (int64_t j = count; j < size; j++) {
      x[j] = static_cast<G>(INFINITY);
      y[j] = z[j] = 0;
    }
  }

  // Calls f with every neighbour that kernel point p acts on.
  template <class F>
  KP_WIDE_BODY void for_each_acting(int p, F f) const {
    for (int64_t word = 0; word < words; word++)
      for (uint64_t bits = acting[p * words + word]; bits; bits &= bits - 1) f(word * 64 + __builtin_ctzll(bits));
  }
};

// A block of squared distances to kernel point k, whose coordinates are `step` apart: equal for all lanes (step
// 1), or an own one for each (step = block).
template <class G, bool own>
KP_WIDE_BODY void squared_distances(const G* x, const G* y, const G* z, const G* k, G* squared) {
  constexpr int64_t step = own ? block<G> : 1;
#pragma omp simd
  for (int64_t l = 0; l < block<G>; l++) {
    const int64_t lane = own ? l : 0;
    squared[l] = squared_distance(x[l], y[l], z[l], k[lane], k[step + lane], k[2 * step + lane]);
  }
}

// exp(-x) for x >= 0 without a call, so that it can be vectorised; to two units in the last place. Beyond `largest`,
// where results would soon be subnormal, it stays as it is there: next to 0.
template <class G>
KP_WIDE_BODY G exp_of_negative(G x) {
  constexpr bool single = sizeof(G) == 4;
  constexpr int mantissa = single ? 23 : 52, terms = single ? 8 : 14;
  using Bits = std::conditional_t<single, uint32_t, uint64_t>;
  constexpr G shift = static_cast<G>(1.5) * (Bits(1) << mantissa);  // adding it rounds to an integer
  constexpr G largest = single ? 87 : 708;
  // ln 2 in two parts, of which the first has few enough digits that its multiples by integers are exact.
  constexpr G high = single ? 0x1.62e4p-1 : 0x1.62e42feep-1;
  constexpr G low = single ? 0x1.7f7d1cf79abcap-20 : 0x1.a39ef35793c76p-33;
  x = x > largest ? largest : x;
  const G shifted = x * static_cast<G>(-1.4426950408889634) + shift;
  const G power = shifted - shift, rest = -x - power * high - power * low;
  G sum = 1;
  for (int n = terms - 1; n > 0; n--) sum = 1 + sum * rest * (static_cast<G>(1) / n);
  return sum * bit_cast<G>((bit_cast<Bits>(shifted) << mantissa) + bit_cast<Bits>(G(1)));
}

// InfluenceRule::strength of a block of squared distances.
template <class G>
KP_WIDE_BODY void strengths(const InfluenceRule<G>& rule, const G* squared, G* __restrict strength) {
  const G inverse_extent = rule.inverse_extent, inverse_two_sigma2 = rule.inverse_two_sigma2;
  switch (rule.kind) {
    case Influence::linear:
#pragma omp simd
      for (int64_t l = 0; l < block<G>; l++) {
        const G h = 1 - std::sqrt(squared[l]) * inverse_extent;
        strength[l] = h < 0 ? 0 : h;
      }
      break;
    case Influence::constant: std::fill(strength, strength + block<G>, G(1)); break;
    default:
#pragma omp simd
      for (int64_t l = 0; l < block<G>; l++) strength[l] = exp_of_negative(squared[l] * inverse_two_sigma2);
  }
}

// Finds what the kernel points do to the neighbours first[0], first[1]... of `hood`. own: each neighbour has a set.
template <bool own, class G>
KP_WIDE_BODY void find_acting(Hood<G>& hood, const KernelPoints<G>& kernel, const int32_t* first,
                              const InfluenceRule<G>& rule) {
  constexpr int64_t width = block<G>, step = own ? width : 1;
  using Bits = std::conditional_t<sizeof(G) == 4, uint32_t, uint64_t>;  // a vector of it is as long as one of G
  const int64_t pairs = kernel.count * hood.size;
  if (static_cast<int64_t>(hood.strength.size()) < pairs) hood.strength.resize(pairs);
  hood.acting.assign(kernel.count * hood.words, 0);

  for (int64_t start = 0; start < hood.size; start += width) {
    const G *x = hood.x.data() + start, *y = hood.y.data() + start, *z = hood.z.data() + start;
    const G *points = kernel.points, *modulations = kernel.modulations;
    const int64_t valid = std::min(width, hood.count - start);
    if constexpr (own) {
      for (int64_t l = 0; l < valid; l++) {
        const KernelPoints<G> set = kernel.of(first[start + l]);
        for (int t = 0; t < 3 * kernel.count; t++) hood.own_points[t * width + l] = set.points[t];
        for (int p = 0; p < kernel.count && modulations; p++) hood.own_modulations[p * width + l] = set.modulations[p];
      }
      points = hood.own_points;
      if (modulations) modulations = hood.own_modulations;
    }

    alignas(64) G squared[width], smallest[width];
    alignas(64) Bits nearest[width] = {};
    if (rule.closest) {
      std::fill(smallest, smallest + width, static_cast<G>(INFINITY));
      for (int p = 0; p < kernel.count; p++) {
        squared_distances<G, own>(x, y, z, points + 3 * p * step, squared);
#pragma omp simd
        for (int64_t l = 0; l < width; l++) {
          nearest[l] = squared[l] < smallest[l] ? p : nearest[l];
          smallest[l] = squared[l] < smallest[l] ? squared[l] : smallest[l];
        }
      }
    }

    for (int p = 0; p < kernel.count; p++) {
      squared_distances<G, own>(x, y, z, points + 3 * p * step, squared);
      Bits reached = 0, chosen = 0;
      const G reach = rule.squared_reach;
#pragma omp simd reduction(| : reached)  // as InfluenceRule::reaches
      for (int64_t l = 0; l < width; l++) reached |= squared[l] >= reach ? 0 : Bits(1) << l;
      if (rule.closest) {
#pragma omp simd reduction(| : chosen)
        for (int64_t l = 0; l < width; l++) chosen |= nearest[l] == Bits(p) ? Bits(1) << l : 0;
        reached &= chosen;
      }
      reached &= (Bits(2) << (valid - 1)) - 1;
      hood.acting[p * hood.words + start / 64] |= static_cast<uint64_t>(reached) << start % 64;

      G* strength = hood.strength.data() + p * hood.size + start;
      strengths(rule, squared, strength);
      if (modulations) {
        const G* modulation = modulations + p * step;
#pragma omp simd
        for (int64_t l = 0; l < width; l++) strength[l] *= modulation[own ? l : 0];
      }
    }
  }
}

}  // namespace kp
