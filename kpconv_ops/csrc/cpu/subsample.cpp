#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/accumulator.h"
#include "core/grid.h"
#include "core/segments.h"
#include "cpu/cpu.h"
#include "cpu/vector.h"

namespace kp {

// The extremes of n points, all NaN if a coordinate is not finite. Sixteen points at a time: lane k holds axis k % 3.
template <class T>
KP_WIDE_BODY void bounds_of(const T* points, int64_t n, T* low, T* high) {
  constexpr int64_t kLanes = 48;
  T lows[kLanes], highs[kLanes], probe[kLanes] = {};
  std::fill(lows, lows + kLanes, highest<T>());
  std::fill(highs, highs + kLanes, -highest<T>());
  auto take = [&](const T* values, int64_t count) __attribute__((always_inline)) {
    for (int64_t k = 0; k < count; k++) {
      lows[k] = values[k] < lows[k] ? values[k] : lows[k];
      highs[k] = values[k] > highs[k] ? values[k] : highs[k];
      probe[k] += values[k] * 0;
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= 3 * n; i += kLanes) take(points + i, kLanes);
  take(points + i, 3 * n - i);
  T valid = 0;
  for (int64_t k = 0; k < kLanes; k++) valid += probe[k];
  for (int64_t axis = 0; axis < 3; axis++) {
    low[axis] = highest<T>(), high[axis] = -highest<T>();
    for (int64_t k = axis; k < kLanes; k += 3) {
      low[axis] = std::min(low[axis], lows[k]);
      high[axis] = std::max(high[axis], highs[k]);
    }
    low[axis] += valid, high[axis] += valid;
  }
}

// The keys of n points of one sample: as cell_key, in a form that is vectorised.
template <class T>
KP_WIDE_BODY void keys_of(const SampleGrid& grid, const T* points, int64_t n, int64_t* keys) {
  const double ox = grid.origin[0], oy = grid.origin[1], oz = grid.origin[2], cell = grid.cell;
  const int64_t nx = grid.nx, ny = grid.ny, nz = grid.nz, first = grid.first_key;
  auto along = [cell](double coordinate, double origin, int64_t cells) __attribute__((always_inline)) {
    double index = floor((coordinate - origin) / cell), last = static_cast<double>(cells - 1);
    return static_cast<int64_t>(index < 0 ? 0 : index > last ? last : index);
  };
  for (int64_t i = 0; i < n; i++) {
    const T* p = points + 3 * i;
    keys[i] = first + along(p[0], ox, nx) + nx * (along(p[1], oy, ny) + ny * along(p[2], oz, nz));
  }
}

template <class T, class Sum>
KP_WIDE_BODY void add_row(const T* row, const T* first, int64_t channels, Sum* sums) {
  for (int64_t c = 0; c < channels; c++) sums[c] += static_cast<Sum>(row[c]) - static_cast<Sum>(first[c]);
}

// The means of n rows: as mean_of, all channels at a time. `rows` go on to `last`: what follows is fetched in advance,
// because reading them in this order mostly waits for memory.
template <class T>
KP_WIDE_BODY void mean_rows(const T* values, int64_t channels, const int32_t* rows, int64_t n, const int32_t* last,
                            double* sums, T* mean) {
  constexpr int64_t kAhead = 32;
  for (int64_t i = 0; i < n && rows + i + kAhead < last; i++) __builtin_prefetch(values + rows[i + kAhead] * channels);
  if (n == 0) return void(std::fill(mean, mean + channels, static_cast<T>(0)));
  const T* first = values + rows[0] * channels;
  std::fill(sums, sums + channels, 0.0);
  for (int64_t i = 1; i < n; i++) add_row(values + rows[i] * channels, first, channels, sums);
  const double count = static_cast<double>(n);
  for (int64_t c = 0; c < channels; c++) mean[c] = static_cast<T>(static_cast<double>(first[c]) + sums[c] / count);
}

template <class T>
KP_WIDE_BODY void mean_segments(const T* values, int64_t channels, const int32_t* order, const int64_t* splits,
                                int64_t begin, int64_t end, double* sums, T* means) {
  const int32_t* last = order + splits[end];
  for (int64_t s = begin; s < end; s++) {
    const int32_t* rows = order + splits[s];
    const int64_t n = splits[s + 1] - splits[s];
    if (channels == 3) mean_rows(values, 3, rows, n, last, sums, means + s * 3);  // coordinates, colours: in registers
    else mean_rows(values, channels, rows, n, last, sums, means + s * channels);
  }
}

template <class T>
KP_WIDE_BODY void sum_segments(const T* values, int64_t channels, const int32_t* order, const int64_t* splits,
                               int64_t begin, int64_t end, Accumulator<T>* sums, T* out) {
  for (int64_t s = begin; s < end; s++) {
    std::fill(sums, sums + channels, Accumulator<T>(0));
    for (int64_t i = splits[s]; i < splits[s + 1]; i++) {
      const T* row = values + order[i] * channels;
      for (int64_t c = 0; c < channels; c++) sums[c] += static_cast<Accumulator<T>>(row[c]);
    }
    for (int64_t c = 0; c < channels; c++) out[s * channels + c] = static_cast<T>(sums[c]);
  }
}

#define KP_BOUNDS(T) \
  KP_WIDE void bounds(const T* points, int64_t n, T* low, T* high) { bounds_of(points, n, low, high); }
KP_BOUNDS(float)
KP_BOUNDS(double)
KP_BOUNDS(int64_t)
#undef KP_BOUNDS

#define KP_COORDINATES(T)                                                                                \
  KP_WIDE void cell_keys(const SampleGrid& grid, const T* points, int64_t n, int64_t* keys) {            \
    keys_of(grid, points, n, keys);                                                                      \
  }
KP_COORDINATES(float)
KP_COORDINATES(double)
#undef KP_COORDINATES

#define KP_SEGMENTS(T)                                                                                             \
  KP_WIDE void means_of(const T* values, int64_t channels, const int32_t* order, const int64_t* splits,            \
                        int64_t begin, int64_t end, T* means) {                                                    \
    std::vector<double> sums(channels);                                                                            \
    mean_segments(values, channels, order, splits, begin, end, sums.data(), means);                                \
  }                                                                                                                \
  KP_WIDE void sums_of(const T* values, int64_t channels, const int32_t* order, const int64_t* splits,             \
                       int64_t begin, int64_t end, T* out) {                                                       \
    std::vector<Accumulator<T>> sums(channels);                                                                    \
    sum_segments(values, channels, order, splits, begin, end, sums.data(), out);                                   \
  }
KP_SEGMENTS(float)
KP_SEGMENTS(double)
KP_SEGMENTS(Half)
KP_SEGMENTS(BFloat16)
#undef KP_SEGMENTS

}  // namespace kp

KP_OP(kp_bounds)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, int64_t pieces,
                 void* low, void* high, int, void*) {
  return kp::guarded([=] {
    kp::with_positions(dtype, [=](auto type) {
      using T = decltype(type);
      kp::parallel_for(pieces * batch, std::max<int64_t>(1, pieces * batch * 4096 / (n + 1)), [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          kp::Range rows = kp::piece_of(offsets, n, i % batch, i / batch, pieces);
          kp::bounds(static_cast<const T*>(points) + 3 * rows.begin, rows.end - rows.begin,
                     static_cast<T*>(low) + 3 * i, static_cast<T*>(high) + 3 * i);
        }
      });
    });
  });
}

KP_OP(kp_cell_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, const double* boxes,
                    const int64_t* cells, int64_t batch, int64_t* keys, int, void*) {
  return kp::guarded([=] {
    kp::with_coordinates(dtype, [=](auto type) {
      auto* p = static_cast<const decltype(type)*>(points);
      kp::Grid grid{boxes, cells, batch};
      kp::parallel_for(n, 4096, [=](int64_t begin, int64_t end) {
        for (int64_t b = kp::sample_of(begin, offsets, batch); begin < end; b++) {
          int64_t last = std::min(end, offsets[b + 1]);
          kp::cell_keys(grid.sample(b), p + 3 * begin, last - begin, keys + begin);
          begin = last;
        }
      });
    });
  });
}

// Radix sort by digits, the lowest first. Each of some tasks counts its share of the values, and knows where they go
// from the counts of all.
KP_CPU_OP(kp_sort_keys)(const int64_t* keys, int64_t n, int64_t num_keys, int64_t* sorted, int32_t* order, int, void*) {
  return kp::guarded([=] {
    int bits = 1;
    while (bits < 62 && (num_keys - 1) >> bits) bits++;
    const int passes = (bits + 10) / 11, width = (bits + passes - 1) / passes;
    const int64_t digits = int64_t{1} << width, tasks = std::clamp<int64_t>(n / 8192, 1, 16);
    std::unique_ptr<int64_t[]> counts(new int64_t[tasks * digits]), other_keys(new int64_t[passes > 1 ? n : 0]);
    std::unique_ptr<int32_t[]> other_order(new int32_t[passes > 1 ? n : 0]);
    for (int pass = 0; pass < passes; pass++) {
      const bool last = (passes - pass) % 2;  // the buffers take turns, and the results' own are the last
      int64_t* to_keys = last ? sorted : other_keys.get();
      int32_t* to_order = last ? order : other_order.get();
      const int64_t* from_keys = pass == 0 ? keys : last ? other_keys.get() : sorted;
      const int32_t* from_order = pass == 0 ? nullptr : last ? other_order.get() : order;
      auto for_each_value = [&](auto prepare, auto f) {
        kp::parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; task++) {
            int64_t* own = counts.get() + task * digits;
            prepare(own);
            for (int64_t i = task * n / tasks; i < (task + 1) * n / tasks; i++)
              f(i, own[from_keys[i] >> (pass * width) & (digits - 1)]);
          }
        });
      };
      for_each_value([=](int64_t* own) { std::fill(own, own + digits, 0); }, [](int64_t, int64_t& count) { count++; });
      int64_t before = 0;
      for (int64_t digit = 0; digit < digits; digit++)
        for (int64_t task = 0; task < tasks; task++) before += std::exchange(counts[task * digits + digit], before);
      for_each_value([](int64_t*) {}, [=](int64_t i, int64_t& place) {
        to_keys[place] = from_keys[i];
        to_order[place++] = from_order ? from_order[i] : static_cast<int32_t>(i);
      });
    }
  });
}

KP_OP(kp_cells)(const int64_t* keys, const int32_t* order, const int64_t* ranks, int64_t n, int64_t* splits,
                int64_t* inverse, int, void*) {
  return kp::guarded([=] {
    kp::parallel_for(n, 4096, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) kp::place_in_cell(keys, order, ranks, n, i, splits, inverse);
    });
  });
}

KP_OP(kp_segment_mean)(int dtype, const void* values, int64_t channels, const int32_t* order, const int64_t* splits,
                       int64_t segments, void* means, int, void*) {
  return kp::guarded([=] {
    kp::with_features(dtype, [=](auto type) {
      using T = decltype(type);
      kp::parallel_for(segments, 1024, [=](int64_t begin, int64_t end) {
        kp::means_of(static_cast<const T*>(values), channels, order, splits, begin, end, static_cast<T*>(means));
      });
    });
  });
}

KP_OP(kp_segment_sum)(int dtype, const void* values, int64_t channels, const int32_t* order, const int64_t* splits,
                      int64_t segments, void* sums, int, void*) {
  return kp::guarded([=] {
    kp::with_features(dtype, [=](auto type) {
      using T = decltype(type);
      kp::parallel_for(segments, 64, [=](int64_t begin, int64_t end) {
        kp::sums_of(static_cast<const T*>(values), channels, order, splits, begin, end, static_cast<T*>(sums));
      });
    });
  });
}

KP_OP(kp_segment_mode)(const int64_t* labels, const int32_t* order, const int64_t* splits, int64_t segments,
                       int64_t* scratch, int64_t* modes, int, void*) {
  return kp::guarded([=] {
    kp::parallel_for(segments, 1024, [=](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; s++) {
        int64_t *first = scratch + splits[s], *last = scratch + splits[s + 1];
        bool differ = false;
        for (int64_t i = 0; i < last - first; i++) {
          if (splits[s] + i + 32 < splits[end]) __builtin_prefetch(labels + order[splits[s] + i + 32]);
          first[i] = labels[order[splits[s] + i]];
          differ |= first[i] != first[0];
        }
        if (differ) std::sort(first, last);  // rare
        modes[s] = differ ? kp::mode_of_sorted(first, last - first) : first[0];
      }
    });
  });
}
