#include <atomic>
#include <numeric>

// Before the header with the tiles: sums of products become fused multiply-adds where there are any.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include "core/accumulator.h"
#include "cpu/cpu.h"
#include "cpu/csr.h"
#include "cpu/tile.h"

namespace kp {

// A kernel map. Blocks of outputs are worked on tap by tap: what they read stays in the cache from tap to tap.
struct Table {
  const int32_t* rows;  // [taps, num_out], of num_in inputs
  int64_t taps, num_out, num_in;
  mutable std::atomic<bool> valid{true};

  void check() const {
    if (!valid) throw_map_rows_outside(num_in);
  }
};

// What a tap reads for a block of outputs.
struct Reads {
  std::vector<int32_t> in, out;  // rows of inputs, places in the block
  int64_t count = 0;

  // `spare`: so many more pairs have room.
  KP_WIDE_BODY void find(const Table& table, int64_t tap, int64_t begin, int64_t end, int64_t spare) {
    if (static_cast<int64_t>(in.size()) < end - begin + spare)
      for (auto* each : {&in, &out}) each->resize(end - begin + spare);
    const int32_t* rows = table.rows + tap * table.num_out + begin;
    int32_t *in_rows = in.data(), *places = out.data();
    uint32_t highest = 0;
    count = 0;
    for (int64_t o = 0; o < end - begin; o++) {
      in_rows[count] = rows[o];
      places[count] = static_cast<int32_t>(o);
      count += rows[o] != -1;
      highest = std::max(highest, static_cast<uint32_t>(rows[o]) + 1);  // -1 becomes 0, below it the largest of all
    }
    if (highest > static_cast<uint64_t>(table.num_in)) {
      table.valid = false;
      count = 0;
    }
  }
};

// ---- values, and gradients of features

template <class A>
struct Convolution {
  const Table& table;
  const A* features;  // [num_in, in_channels]
  int64_t in_channels;
  const A* weights;  // [taps, in_channels, out_channels], or transposed [taps, out_channels, in_channels]
  bool transposed;
  int64_t out_channels;
  A* out;  // [num_out, out_channels]
};

// Memory of a thread.
template <class A>
struct ConvolutionBuffers {
  Reads reads;
  Lines<A> panel, sums;
};

// The weights of a tap from `in_channels` to the `width` channels from `first`, in rows of whole vectors.
template <class A>
KP_WIDE_BODY void pack_weights(const Convolution<A>& c, int64_t tap, int64_t first, int64_t width, int64_t stride,
                               A* __restrict panel) {
  const A* weights = c.weights + tap * c.in_channels * c.out_channels;
  constexpr int64_t block = lanes<A>;  // input channels: what they read of transposed weights is whole cache lines
  for (int64_t begin = 0; begin < c.in_channels; begin += block) {
    const int64_t size = std::min(block, c.in_channels - begin);
    A* __restrict to = panel + begin * stride;
    if (c.transposed)
      for (int64_t o = 0; o < width; o++)
        for (int64_t i = 0; i < size; i++) to[i * stride + o] = weights[(first + o) * c.in_channels + begin + i];
    else
      for (int64_t i = 0; i < size; i++)
        for (int64_t o = 0; o < width; o++) to[i * stride + o] = weights[(begin + i) * c.out_channels + first + o];
    for (int64_t i = 0; i < size; i++) std::fill(to + i * stride + width, to + (i + 1) * stride, A(0));
  }
}

// Channels from `first` on, V vectors at most, of the outputs from `begin` to `end`.
template <class L, int V, class A>
KP_WIDE_BODY void convolve_block(const Convolution<A>& c, int64_t begin, int64_t end, int64_t first,
                                 ConvolutionBuffers<A>& buffers) {
  constexpr int64_t stride = V * L::template lanes<A>, tile = L::rows;
  const int64_t rows = end - begin, width = std::min(stride, c.out_channels - first);
  A *panel = buffers.panel.reserve(c.in_channels * stride), *sums = buffers.sums.reserve((rows + 1) * stride);
  std::fill_n(sums, rows * stride, A(0));
  Reads& reads = buffers.reads;
  for (int64_t tap = 0; tap < c.table.taps; tap++) {
    reads.find(c.table, tap, begin, end, 2 * tile);
    if (!reads.count) continue;
    pack_weights(c, tap, first, width, stride, panel);
    for (int64_t t = 0; t < tile; t++) {  // what fills up the last tile goes to a row of its own
      reads.in[reads.count + t] = reads.in[0];
      reads.out[reads.count + t] = static_cast<int32_t>(rows);
    }
    for (int64_t n = 0; n < reads.count; n += tile) {
      const A* in[tile];
      A* out[tile];
      for (int64_t t = 0; t < tile; t++) {
        in[t] = c.features + reads.in[n + t] * c.in_channels;
        out[t] = sums + reads.out[n + t] * stride;
        __builtin_prefetch(c.features + reads.in[n + tile + t] * c.in_channels);  // of the next tile
      }
      add_products<L, V>(in, panel, c.in_channels, out);
    }
  }
  for (int64_t o = 0; o < rows; o++)
    std::copy_n(sums + o * stride, width, c.out + (begin + o) * c.out_channels + first);
}

template <class L, class A>
KP_WIDE_BODY void convolve_panel(const Convolution<A>& c, int64_t begin, int64_t end, int64_t panel,
                                 ConvolutionBuffers<A>& buffers) {
  const Panels<L, A> panels(c.out_channels);
  with_vectors<L>(panels.vectors, [&](auto vectors) __attribute__((always_inline)) {
    convolve_block<L, decltype(vectors)::value>(c, begin, end, panels.first(panel), buffers);
  });
}

// ---- gradients of weights

template <class A>
struct WeightGradient {
  const Table& table;
  const A* features;  // [num_in, in_channels]
  int64_t in_channels;
  const A* gradient;  // [num_out, out_channels]
  int64_t out_channels;
  A* out;  // [taps, in_channels, out_channels]

  static constexpr int64_t block = 1024;  // outputs; it decides the order of summation
  static constexpr int64_t chunk = 96;    // pairs whose gradients stay in the first cache
};

template <class A>
struct WeightBuffers {
  Reads reads;
  Lines<A> gradients;
};

// `width` values of some rows, `stride` apart, filled up with zeros.
template <class A>
KP_WIDE_BODY void pack_rows(const A* all, int64_t row_size, const int32_t* rows, int64_t count, int64_t width,
                            int64_t stride, A* __restrict packed) {
  for (int64_t n = 0; n < count; n++) {
    const A* row = all + rows[n] * row_size;
    A* __restrict to = packed + n * stride;
    for (int64_t c = 0; c < width; c++) to[c] = row[c];
    for (int64_t c = width; c < stride; c++) to[c] = 0;
  }
}

// Adds what the outputs from `begin` to `end` contribute to the rows from `first` to `last` of a tap's weights.
template <class L, class A>
KP_WIDE_BODY void add_weight_gradient(const WeightGradient<A>& w, int64_t tap, int64_t first, int64_t last,
                                      int64_t begin, int64_t end, WeightBuffers<A>& buffers) {
  const Panels<L, A> panels(w.out_channels);
  Reads& reads = buffers.reads;
  reads.find(w.table, tap, begin, end, 0);
  const int64_t chunks = (reads.count + w.chunk - 1) / w.chunk;
  const A* features[WeightGradient<A>::chunk];
  A* gradients = buffers.gradients.reserve(w.chunk * panels.vectors * L::template lanes<A>);
  for (int64_t n = 0; n < chunks; n++) {
    const int64_t start = reads.count * n / chunks, count = reads.count * (n + 1) / chunks - start;
    for (int64_t p = 0; p < count; p++) features[p] = w.features + reads.in[start + p] * w.in_channels;
    for (int64_t panel = 0; panel < panels.count; panel++)
      with_vectors<L>(panels.vectors, [&](auto vectors) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        constexpr int64_t whole = V * L::template lanes<A>;
        const int64_t column = panels.first(panel), width = std::min(whole, w.out_channels - column);
        pack_rows(w.gradient + begin * w.out_channels + column, w.out_channels, reads.out.data() + start, count, width,
                  whole, gradients);
        for (int64_t c = first; c < last; c += L::rows)
          add_outer_products<L, V>(features, c, last - c, gradients, count, width,
                                   w.out + (tap * w.in_channels + c) * w.out_channels + column, w.out_channels);
      });
  }
}

// ---- code for each level

#define KP_SPARSE(target, L, A)                                                                              \
  target void convolve(L, const Convolution<A>& c, int64_t begin, int64_t end, int64_t panel,                 \
                       ConvolutionBuffers<A>& buffers) {                                                      \
    convolve_panel<L>(c, begin, end, panel, buffers);                                                         \
  }                                                                                                           \
  target void add_weight_gradient(L, const WeightGradient<A>& w, int64_t tap, int64_t first, int64_t last,    \
                                  int64_t begin, int64_t end, WeightBuffers<A>& buffers) {                    \
    add_weight_gradient<L>(w, tap, first, last, begin, end, buffers);                                         \
  }
KP_SPARSE(KP_AVX512, Avx512, float)
KP_SPARSE(KP_AVX512, Avx512, double)
KP_SPARSE(KP_AVX2, Avx2, float)
KP_SPARSE(KP_AVX2, Avx2, double)
KP_SPARSE(, Baseline, float)
KP_SPARSE(, Baseline, double)
#undef KP_SPARSE

template <class L, class A>
void convolve_all(const Convolution<A>& c) {
  const int64_t num_out = c.table.num_out, panels = Panels<L, A>(c.out_channels).count;
  // Each block packs the weights anew, which should cost little; the threads should find enough tasks.
  const int64_t block = std::clamp(num_out * panels / 64, int64_t{256}, int64_t{1024});
  const int64_t tasks = (num_out + block - 1) / block * panels;
  std::atomic<int64_t> next{0};
  parallel_for(tasks, 1, [&](int64_t, int64_t) {  // tasks are taken in turn: some have more pairs than others
    ConvolutionBuffers<A> buffers;
    for (int64_t task; (task = next++) < tasks;) {
      const int64_t begin = task / panels * block;
      convolve(L{}, c, begin, std::min(begin + block, num_out), task % panels, buffers);
    }
  });
}

// Each thread owns rows of the weights, about as many as have the same number of pairs, and adds up blocks of outputs.
template <class L, class A>
void add_all_weight_gradients(const WeightGradient<A>& w) {
  const Table& table = w.table;
  std::vector<int64_t> ends(table.taps);  // of the taps' shares of the work: for each of its rows a tap's pairs
  parallel_for(table.taps, 1, [&](int64_t first, int64_t last) {
    for (int64_t tap = first; tap < last; tap++) {
      const int32_t* rows = table.rows + tap * table.num_out;
      const int64_t pairs = table.num_out - std::count(rows, rows + table.num_out, -1);
      ends[tap] = (pairs + 1) * w.in_channels;
    }
  });
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  parallel_for(ends.empty() ? 0 : ends.back(), 1 << 16, [&](int64_t work_begin, int64_t work_end) {
    WeightBuffers<A> buffers;
    for (int64_t begin = 0; begin < table.num_out; begin += w.block)
      for (int64_t tap = 0; tap < table.taps; tap++) {
        const int64_t start = tap ? ends[tap - 1] : 0, size = (ends[tap] - start) / std::max(w.in_channels, int64_t{1});
        const auto row = [&](int64_t work) {  // the first that begins there or later, in whole tiles
          const int64_t each = size * L::rows, n = std::max(work - start, int64_t{0});
          return std::min((n + each - 1) / each * L::rows, w.in_channels);
        };
        const int64_t first = row(work_begin), last = row(work_end);
        if (first < last)
          add_weight_gradient(L{}, w, tap, first, last, begin, std::min(begin + w.block, table.num_out), buffers);
      }
  });
}

}  // namespace kp

KP_CPU_OP(kp_sparse_conv)(int dtype, const void* features, int64_t num_in, int64_t in_channels, const void* weights,
                          int transposed, const int32_t* rows, int64_t num_taps, int64_t num_out, void* out,
                          int64_t out_channels, int, void*) {
  return kp::guarded([&] {
    const kp::Table table{rows, num_taps, num_out, num_in};
    kp::with_coordinates(dtype, [&](auto accumulator) {
      using A = decltype(accumulator);
      kp::Convolution<A> c{table, static_cast<const A*>(features), in_channels, static_cast<const A*>(weights),
                           transposed != 0, out_channels, static_cast<A*>(out)};
      kp::with_level([&](auto level) { kp::convolve_all<decltype(level)>(c); });
    });
    table.check();
  });
}

KP_CPU_OP(kp_sparse_conv_weights)(int dtype, const void* features, int64_t num_in, int64_t in_channels,
                                  const void* gradient, const int32_t* rows, int64_t num_taps, int64_t num_out,
                                  int64_t out_channels, void* grad_weights, int, void*) {
  return kp::guarded([&] {
    const kp::Table table{rows, num_taps, num_out, num_in};
    kp::with_coordinates(dtype, [&](auto accumulator) {
      using A = decltype(accumulator);
      const kp::WeightGradient<A> w{table, static_cast<const A*>(features), in_channels,
                                    static_cast<const A*>(gradient), out_channels, static_cast<A*>(grad_weights)};
      kp::with_level([&](auto level) { kp::add_all_weight_gradients<decltype(level)>(w); });
    });
    table.check();
  });
}
