// Which elements of an array belong together.
#pragma once
#include "core/core.h"

namespace kp {

KP_HD int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

struct Range {
  int64_t begin, end;
};

// What CSR splits give element i of n rows; never outside them, whatever the splits say.
KP_HD Range range_of(const int64_t* splits, int64_t i, int64_t n) {
  const int64_t begin = clamp(splits[i], 0, n);
  return {begin, clamp(splits[i + 1], begin, n)};
}

}  // namespace kp
