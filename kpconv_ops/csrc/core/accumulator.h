// The type that sums of features are formed in: float for everything narrower than double.
#pragma once
#include <type_traits>

namespace kp {

template <class Feature>
using Accumulator = std::conditional_t<std::is_same_v<Feature, double>, double, float>;

}  // namespace kp
