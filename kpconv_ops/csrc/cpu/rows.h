// Rows of features as whole vectors of the type that sums are formed in.
#pragma once
#include <type_traits>
#include <vector>

#include "core/accumulator.h"
#include "cpu/vector.h"

namespace kp {

// Whether rows of so many channels are such vectors already.
template <class F>
constexpr bool are_vectors(int64_t channels) {
  return std::is_same_v<F, Accumulator<F>> && channels % lanes<F> == 0;
}

// Some rows, copied (and filled up with zeros) where they are not.
template <class F>
class VectorRows {
  using A = Accumulator<F>;

 public:
  explicit VectorRows(int64_t channels) : channels(channels), stride(whole_vectors<A>(channels)) {}

  // Rows first[0], first[1]... of all rows.
  KP_WIDE_BODY void gather(const F* all, const int32_t* first, const int32_t* last) {
    reserve(last - first);
    for (int64_t j = 0; j < last - first; j++) set(j, all + first[j] * channels);
  }

  // `count` rows that follow each other.
  KP_WIDE_BODY void take(const F* rows, int64_t count) {
    reserve(count);
    for (int64_t j = 0; j < count; j++) set(j, rows + j * channels);
  }

  KP_WIDE_BODY const A* operator[](int64_t j) const { return rows[j]; }

 private:
  int64_t channels, stride;
  std::vector<const A*> rows;
  std::vector<A> copies;

  KP_WIDE_BODY void reserve(int64_t count) {
    if (static_cast<int64_t>(rows.size()) >= count) return;
    rows.resize(count);
    if (!are_vectors<F>(channels)) copies.assign(count * stride, A(0));
  }

  KP_WIDE_BODY void set(int64_t j, const F* row) {
    if constexpr (std::is_same_v<F, A>)
      if (are_vectors<F>(channels)) {
        rows[j] = row;
        return;
      }
    A* __restrict copy = copies.data() + j * stride;
    for (int64_t c = 0; c < channels; c++) copy[c] = static_cast<A>(row[c]);
    rows[j] = copy;
  }
};

}  // namespace kp
