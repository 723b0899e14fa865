// One channel of a pooled neighbourhood; shared by the CPU and the CUDA build.
#pragma once
#include "core/accumulator.h"
#include "core/core.h"

namespace kp {

// Whether a value replaces the maximum so far: the first maximum stays, the first NaN wins over everything.
template <class A>
KP_HD bool replaces(A value, A maximum) {
  return (value > maximum) | ((value != value) & (maximum == maximum));  // no branches: it runs over channels
}

}  // namespace kp
