// Tiles of matrix products: sums that stay in registers, in code for several vector widths.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/vector.h"

namespace kp {

// A kind of processor: bytes of its vectors, and rows x vectors of a tile, so that sums and factors fill its registers.
template <int vector_bytes, int tile_rows, int tile_vectors>
struct Level {
  static constexpr int bytes = vector_bytes, rows = tile_rows, vectors = tile_vectors;

  template <class A>
  static constexpr int64_t lanes = vector_bytes / sizeof(A);
};
using Avx512 = Level<64, 4, 4>;
using Avx2 = Level<32, 6, 2>;
using Baseline = Level<16, 4, 2>;

// Functions marked KP_AVX512 and KP_AVX2 are compiled for these processors. target_clones (KP_WIDE) would not do: its
// clones cannot differ in the tile.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define KP_AVX512 __attribute__((target("arch=x86-64-v4")))
#define KP_AVX2 __attribute__((target("arch=x86-64-v3")))
#define KP_LEVELS 1
#else
#define KP_AVX512
#define KP_AVX2
#define KP_LEVELS 0
#endif

// Calls f with the highest level of this processor.
template <class F>
void with_level(F f) {
#if KP_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return f(Avx512{});
  if (__builtin_cpu_supports("x86-64-v3")) return f(Avx2{});
#endif
  f(Baseline{});
}

// A vector as the compiler knows it, which may lie anywhere in memory.
template <class L, class A>
struct Vector {
  typedef A type __attribute__((vector_size(L::bytes)));
  typedef A in_memory __attribute__((vector_size(L::bytes), aligned(sizeof(A)), may_alias));

  KP_WIDE_BODY static const in_memory& at(const A* place) { return *reinterpret_cast<const in_memory*>(place); }
  KP_WIDE_BODY static in_memory& at(A* place) { return *reinterpret_cast<in_memory*>(place); }
};

// Columns of a matrix in panels of whole vectors, as equal as they can be and as wide as a tile at most.
template <class L, class A>
struct Panels {
  int64_t columns, count, vectors;  // vectors: of each panel

  explicit Panels(int64_t columns) : columns(columns) {
    const int64_t all = (columns + L::template lanes<A> - 1) / L::template lanes<A>;
    count = (all + L::vectors - 1) / L::vectors;
    vectors = count ? (all + count - 1) / count : 0;
  }
  int64_t first(int64_t panel) const { return panel * vectors * L::template lanes<A>; }
};

// Calls f with the number of a tile's vectors as a constant.
template <class L, class F>
KP_WIDE_BODY void with_vectors(int64_t vectors, F f) {
  switch (vectors) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: if constexpr (L::vectors > 2) return f(std::integral_constant<int, 3>{}); break;
    case 4: if constexpr (L::vectors > 3) return f(std::integral_constant<int, 4>{}); break;
  }
}

// Memory that begins with a cache line, so that loads of vectors do not cross two.
template <class A>
class Lines {
 public:
  // Room for n values, which may be anything.
  KP_WIDE_BODY A* reserve(int64_t n) {
    const int64_t needed = (n + lanes<A> - 1) / lanes<A>;
    if (static_cast<int64_t>(lines.size()) < needed) lines.resize(needed);
    return reinterpret_cast<A*>(lines.data());
  }

 private:
  struct alignas(64) Line {
    A values[lanes<A>];
  };
  std::vector<Line> lines;
};

// Adds to a tile of sums the products of value(r), of each row r, with the V vectors from `panel` on.
template <class L, int V, class A, class Value>
KP_WIDE_BODY void add_outer_product(Value value, const A* panel, typename Vector<L, A>::type (&sums)[L::rows][V]) {
  using Vectors = Vector<L, A>;
  typename Vectors::type row[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) row[v] = Vectors::at(panel + v * L::template lanes<A>);
#pragma GCC unroll 8
  for (int r = 0; r < L::rows; r++) {
    const A factor = value(r);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] += row[v] * factor;
  }
}

// Adds the products of `depth` values of each row in[r] with the rows of a panel of V vectors to the row out[r].
template <class L, int V, class A>
KP_WIDE_BODY void add_products(const A* const* in, const A* panel, int64_t depth, A* const* out) {
  using Vectors = Vector<L, A>;
  constexpr int64_t lanes = L::template lanes<A>;
  typename Vectors::type sums[L::rows][V];
  const A* values[L::rows];
#pragma GCC unroll 8
  for (int r = 0; r < L::rows; r++) {
    values[r] = in[r];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = Vectors::at(out[r] + v * lanes);
  }
  for (int64_t k = 0; k < depth; k++) {
    const auto value = [&](int r) __attribute__((always_inline)) { return values[r][k]; };
    add_outer_product<L, V>(value, panel + k * V * lanes, sums);
  }
#pragma GCC unroll 8
  for (int r = 0; r < L::rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) Vectors::at(out[r] + v * lanes) = sums[r][v];
}

// The sum over `depth` rows of the outer products of `height` values of in[k] from `first` on, L::rows at most, with V
// vectors of `panel`; `width` of its columns are added to `out`, whose rows are `out_stride` apart.
template <class L, int V, class A>
KP_WIDE_BODY void add_outer_products(const A* const* in, int64_t first, int64_t height, const A* panel, int64_t depth,
                                     int64_t width, A* out, int64_t out_stride) {
  using Vectors = Vector<L, A>;
  constexpr int64_t lanes = L::template lanes<A>;
  typename Vectors::type sums[L::rows][V] = {};
  int64_t places[L::rows];
  for (int64_t r = 0; r < L::rows; r++) places[r] = first + std::min(r, height - 1);
  for (int64_t k = 0; k < depth; k++) {
    const auto value = [&](int r) __attribute__((always_inline)) { return in[k][places[r]]; };
    add_outer_product<L, V>(value, panel + k * V * lanes, sums);
  }
  alignas(64) A rest[V * lanes];
#pragma GCC unroll 8
  for (int r = 0; r < L::rows; r++) {
    A* to = out + r * out_stride;
    if (r >= height) break;
    if (width == V * lanes) {
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) Vectors::at(to + v * lanes) += sums[r][v];
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) Vectors::at(rest + v * lanes) = sums[r][v];
      for (int64_t c = 0; c < width; c++) to[c] += rest[c];
    }
  }
}

}  // namespace kp
