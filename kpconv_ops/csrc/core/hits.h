// What a search found, in the order (squared distance, row).
#pragma once
#include "core/core.h"

namespace kp {

template <class T>
struct Hit {
  T squared_distance;
  int32_t index;
  Hit() = default;
  KP_HD Hit(T squared_distance, int32_t row) : squared_distance(squared_distance), index(row) {}
  KP_HD int32_t row() const { return index; }
  KP_HD T distance2() const { return squared_distance; }
  KP_HD bool operator<(const Hit& other) const {
    return squared_distance < other.squared_distance ||
           (squared_distance == other.squared_distance && index < other.index);
  }
};

// The bits of a non-negative float ascend with its value, so distance and row compare as one integer.
template <>
struct Hit<float> {
  uint64_t bits;
  Hit() = default;
  KP_HD Hit(float squared_distance, int32_t row)
      : bits(static_cast<uint64_t>(bit_cast<uint32_t>(squared_distance)) << 32 | static_cast<uint32_t>(row)) {}
  KP_HD int32_t row() const { return static_cast<int32_t>(bits & 0xffffffffu); }
  KP_HD float distance2() const { return bit_cast<float>(static_cast<uint32_t>(bits >> 32)); }
  KP_HD bool operator<(const Hit& other) const { return bits < other.bits; }
};

// Restores the heap (largest on top) of n elements below `root`.
template <class T>
KP_HD void sift_down(T* heap, int64_t n, int64_t root) {
  T value = heap[root];
  for (int64_t child; (child = 2 * root + 1) < n; root = child) {
    if (child + 1 < n && heap[child] < heap[child + 1]) child++;
    if (!(value < heap[child])) break;
    heap[root] = heap[child];
  }
  heap[root] = value;
}

template <class T>
KP_HD void make_heap(T* values, int64_t n) {
  for (int64_t root = n / 2; root-- > 0;) sift_down(values, n, root);
}

template <class T>
KP_HD void sort_heap(T* heap, int64_t n) {
  while (n > 1) {
    T largest = heap[0];
    heap[0] = heap[--n];
    heap[n] = largest;
    sift_down(heap, n, 0);
  }
}

}  // namespace kp
