// Rows that point outside their array are an error, not a crash: they are checked before a kernel trusts them.
#pragma once
#include <atomic>
#include <string>
#include <utility>

#include "cpu/cpu.h"
#include "cpu/vector.h"

namespace kp {

KP_WIDE_BODY bool rows_inside(const int32_t* first, const int32_t* last, int64_t limit) {
  bool inside = true;
  for (; first < last; first++) inside &= *first >= 0 && *first < limit;
  return inside;
}

[[noreturn]] inline void throw_rows_outside(const char* name, int64_t limit) {
  throw std::invalid_argument(std::string(name) + " must be in [0, " + std::to_string(limit) + ")");
}

[[noreturn]] inline void throw_map_rows_outside(int64_t limit) {
  throw std::invalid_argument("rows must be in [-1, " + std::to_string(limit) + ")");
}

// CSR neighbourhoods: query i sees indices[splits[i]] to indices[splits[i + 1]]. Each is checked when it is asked for: a
// pass of its own would read them all twice.
class Neighborhoods {
 public:
  Neighborhoods(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t limit)
      : indices(indices), num_indices(num_indices), splits(splits), limit(limit) {}

  // Begin and end of the neighbours of a query; none if they are not valid, which `check` tells.
  KP_WIDE_BODY std::pair<const int32_t*, const int32_t*> operator[](int64_t query) const {
    const int64_t begin = splits[query], end = splits[query + 1];
    if (begin < 0 || begin > end || end > num_indices) splits_valid = false;
    else if (!rows_inside(indices + begin, indices + end, limit)) indices_valid = false;
    else return {indices + begin, indices + end};
    return {indices, indices};
  }

  void check() const {
    if (!splits_valid) throw std::invalid_argument("splits must rise within [0, " + std::to_string(num_indices) + "]");
    if (!indices_valid) throw_rows_outside("indices", limit);
  }

 private:
  const int32_t* indices;
  int64_t num_indices;
  const int64_t* splits;
  int64_t limit;
  mutable std::atomic<bool> splits_valid{true}, indices_valid{true};
};

}  // namespace kp
