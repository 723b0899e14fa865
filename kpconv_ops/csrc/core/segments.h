// Summaries of segments: rows that were merged into one.
#pragma once
#include "core/core.h"

namespace kp {

// Point i of n in the order of their cells, in the cell ranks[i + 1] - 1: writes where the cell begins, and the cell of
// the point's row.
KP_HD void place_in_cell(const int64_t* keys, const int32_t* order, const int64_t* ranks, int64_t n, int64_t i,
                         int64_t* splits, int64_t* inverse) {
  inverse[order[i]] = ranks[i + 1] - 1;
  if (i == 0 || keys[i] != keys[i - 1]) splits[ranks[i]] = i;
  if (i == n - 1) splits[ranks[n]] = n;
}

// The mean of one channel of n rows, 0 of none. Summing differences from the first row keeps coordinates far from zero exact.
template <class T>
KP_HD T mean_of(const T* channel, int64_t channels, const int32_t* rows, int64_t n) {
  if (n == 0) return static_cast<T>(0);
  double first = static_cast<double>(channel[rows[0] * channels]), sum = 0;
  for (int64_t i = 1; i < n; i++) sum += static_cast<double>(channel[rows[i] * channels]) - first;
  return static_cast<T>(first + sum / static_cast<double>(n));
}

// The most frequent of n ascending values, of equally frequent ones the smallest.
KP_HD int64_t mode_of_sorted(const int64_t* values, int64_t n) {
  int64_t mode = values[0], most = 0;
  for (int64_t begin = 0, end; begin < n; begin = end) {
    for (end = begin + 1; end < n && values[end] == values[begin];) end++;
    if (end - begin > most) mode = values[begin], most = end - begin;
  }
  return mode;
}

}  // namespace kp
