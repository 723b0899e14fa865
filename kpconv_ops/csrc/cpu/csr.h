// Neighbourhoods that point outside their arrays are an error, not a crash: checked before a kernel trusts them.
#pragma once
#include <atomic>
#include <string>

#include "cpu/cpu.h"

namespace kp {

// Throws unless all rows are in [0, limit).
inline void check_rows(const char* name, const int32_t* rows, int64_t count, int64_t limit) {
  std::atomic<bool> valid{true};
  parallel_for(count, 1 << 16, [&](int64_t begin, int64_t end) {
    bool inside = true;
    for (int64_t i = begin; i < end; i++) inside &= rows[i] >= 0 && rows[i] < limit;
    if (!inside) valid = false;
  });
  if (!valid) throw std::invalid_argument(std::string(name) + " must be in [0, " + std::to_string(limit) + ")");
}

// Throws unless the `count` CSR rows that `splits` describes lie in `indices`, and these in [0, limit).
inline void check_csr(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t count, int64_t limit) {
  if (count == 0) return;
  bool rising = splits[0] >= 0 && splits[count] <= num_indices;
  for (int64_t i = 0; i < count; i++) rising &= splits[i] <= splits[i + 1];
  if (!rising) throw std::invalid_argument("splits must rise within [0, " + std::to_string(num_indices) + "]");
  check_rows("indices", indices + splits[0], splits[count] - splits[0], limit);
}

}  // namespace kp
