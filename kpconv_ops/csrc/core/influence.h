// How strongly a kernel point acts on a neighbour (KPConv, Thomas et al. 2019, Eq. 3 and its released variants).
#pragma once
#include "core/core.h"

namespace kp {

enum class Influence : int { linear = 0, constant = 1, gaussian = 2 };

// Bounds the scratch memory of a block of neighbours on the CPU; kpconv.py checks it.
constexpr int max_kernel_points = 64;

// What the geometry needs besides positions, prepared once a call.
template <class G>
struct InfluenceRule {
  Influence kind;
  bool closest;          // only the nearest kernel point of a neighbour acts, the first one in a tie
  G inverse_extent;
  G squared_reach;       // beyond it a kernel point has no influence
  G inverse_two_sigma2;  // gaussian: sigma = 0.3 extent

  InfluenceRule(int kind, int closest, double extent)
      : kind(static_cast<Influence>(kind)),
        closest(closest != 0),
        inverse_extent(static_cast<G>(1 / extent)),
        squared_reach(kind == 0 ? static_cast<G>(extent * extent) : static_cast<G>(INFINITY)),
        inverse_two_sigma2(static_cast<G>(1 / (2 * 0.09 * extent * extent + 1e-9))) {}

  KP_HD bool reaches(G squared_distance) const { return !(squared_distance >= squared_reach); }

  // Influence at a distance that `reaches`. NaN stays NaN.
  KP_HD G strength(G squared_distance) const {
    switch (kind) {
      case Influence::linear: return positive_part(1 - root(squared_distance) * inverse_extent);
      case Influence::constant: return 1;
      default: return exp(-squared_distance * inverse_two_sigma2);
    }
  }

  // How fast the influence falls with the distance, over the distance: times the way from the kernel point to the
  // neighbour, it is the gradient of the influence with respect to the kernel point. 0 where they coincide.
  KP_HD G slope(G squared_distance, G strength) const {
    switch (kind) {
      case Influence::linear: return squared_distance > 0 ? inverse_extent / std::sqrt(squared_distance) : 0;
      case Influence::constant: return 0;
      default: return 2 * inverse_two_sigma2 * strength;
    }
  }
};

// Squared distance of a neighbour, given relative to its query, to a kernel point. Negating both arguments gives the same
// bits, so that the gradient, which looks from the support to the query, sees the same influences.
template <class G>
KP_HD G squared_distance(G x, G y, G z, G kx, G ky, G kz) {
  G dx = x - kx, dy = y - ky, dz = z - kz;
  return dx * dx + dy * dy + dz * dz;
}

}  // namespace kp
