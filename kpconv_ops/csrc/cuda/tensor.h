// Products of small matrices on the tensor cores: the 32 lanes of a warp together add left [16, 16] x right [16, 8] to
// sums [16, 8].
//
// Lane 4 g + j holds rows g and g + 8 of `left` and column g of `right`, of both the four inner elements that make up
// quarter j (any division into quarters, the same on both sides); and of `sums` {[g][2j], [g][2j+1], [g+8][2j],
// [g+8][2j+1]}. That is how mma.sync deals out its operands (PTX ISA, "Matrix fragments for mma"), up to the order of
// the inner dimension.
//
// Nothing is lost to narrow factors: a float32 is split into a high and a low part that the tensor cores take exactly;
// only the product of two low parts, 2^-22 of the whole, is left out. Sums are float32, or float64 for float64.
// A factor that is not finite makes NaNs even of zeros.
#pragma once
#include "core/accumulator.h"
#include "cuda/cuda.h"

namespace kp {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "kpconv_ops needs GPUs of compute capability 8.0 or later (TORCH_CUDA_ARCH_LIST asks for an older one)"
#endif

// Two 16-bit numbers in a register, and one of them back.
template <class F>
__device__ uint32_t pack(F low, F high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}
template <class F>
__device__ float unpack(uint32_t both, int half) {
  return static_cast<float>(bit_cast<F>(static_cast<uint16_t>(both >> 16 * half)));
}
template <class F>
__device__ uint32_t round_and_pack(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t both;
  if (std::is_same_v<F, Half>) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return pack(F(low), F(high));
#endif
}
// Column v of four vectors of 16-bit numbers, in two registers.
template <int V, class F>
__device__ void pack_column(const Vector<F, V> (&rows)[4], int v, uint32_t (&column)[2]) {
  if constexpr (V == 1) {
    column[0] = pack(rows[0].at[0], rows[1].at[0]);
    column[1] = pack(rows[2].at[0], rows[3].at[0]);
  } else {  // words hold two columns; the compiler finds these permutations only when told
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = bit_cast<Vector<uint32_t, V / 2>>(rows[i]).at[v / 2];
    column[0] = __byte_perm(words[0], words[1], v % 2 ? 0x7632 : 0x5410);
    column[1] = __byte_perm(words[2], words[3], v % 2 ? 0x7632 : 0x5410);
  }
}

#ifdef KP_EMULATED
template <class F>
void mma(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  if constexpr (std::is_same_v<F, float>)
    emulator::mma<1>(sums, left, right, [](uint32_t u, int) { return bit_cast<float>(u & 0xffffe000u); });
  else
    emulator::mma<2>(sums, left, right, unpack<F>);
}
inline void mma(double (&sums)[2], double left, double right) { emulator::mma(sums, left, right); }
#else
#define KP_MMA(name, F)                                                                                             \
  template <>                                                                                                       \
  __device__ inline void mma<F>(float(&sums)[4], const uint32_t(&left)[4], const uint32_t(&right)[2]) {             \
    asm volatile("mma.sync.aligned." name " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                       \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));           \
  }
template <class F>
__device__ void mma(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]);
KP_MMA("m16n8k16.row.col.f32.f16.f16.f32", Half)
KP_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", BFloat16)
KP_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", float)
#undef KP_MMA
__device__ inline void mma(double (&sums)[2], double left, double right) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(sums[0]), "+d"(sums[1])
               : "d"(left), "d"(right));
}
#endif

// The left side of products with columns of 16-bit F.
template <class F>
struct Left {
  uint32_t high[4], low[4];

  __device__ explicit Left(const float (&rows)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float a = rows[i % 2][i / 2 * 2], b = rows[i % 2][i / 2 * 2 + 1];
      high[i] = round_and_pack<F>(a, b);
      low[i] = round_and_pack<F>(a - unpack<F>(high[i], 0), b - unpack<F>(high[i], 1));
    }
  }
  // Adds the product with column v of `rows` to sums.
  template <int V>
  __device__ void multiply_add(float (&sums)[4], const Vector<F, V> (&rows)[4], int v) const {
    uint32_t right[2];
    pack_column(rows, v, right);
    mma<F>(sums, high, right);
    mma<F>(sums, low, right);
  }
};

// Adds a product to sums whose left side has the elements `upper` and `lower` in this lane's two rows.
template <class F>
__device__ void multiply_add(float (&sums)[4], const Vector<F, 4>& upper, const Vector<F, 4>& lower,
                             const Vector<F, 4>& column) {
  using Pairs = Vector<uint32_t, 2>;
  const Pairs up = bit_cast<Pairs>(upper), low = bit_cast<Pairs>(lower), right = bit_cast<Pairs>(column);
  mma<F>(sums, {up.at[0], low.at[0], up.at[1], low.at[1]}, right.at);
}

// A float32 as the sum of two TF32 numbers, which have the first 19 of its 32 bits.
__device__ inline void split(float value, uint32_t& high, uint32_t& low) {
  high = bit_cast<uint32_t>(value) & 0xffffe000u;
  low = bit_cast<uint32_t>(value - bit_cast<float>(high)) & 0xffffe000u;
}

template <>
struct Left<float> {
  uint32_t high[2][4], low[2][4];  // two products with 8 inner elements each

  __device__ explicit Left(const float (&rows)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; i++) split(rows[i % 2][i / 2], high[i / 4][i % 4], low[i / 4][i % 4]);
  }
  template <int V>
  __device__ void multiply_add(float (&sums)[4], const Vector<float, V> (&right)[4], int v) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t right_high[2], right_low[2];
#pragma unroll
      for (int i = 0; i < 2; i++) split(right[2 * half + i].at[v], right_high[i], right_low[i]);
      mma<float>(sums, low[half], right_high);
      mma<float>(sums, high[half], right_low);
      mma<float>(sums, high[half], right_high);
    }
  }
};

template <>
struct Left<double> {
  double rows[2][4];

  __device__ explicit Left(const double (&values)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; i++) rows[i / 4][i % 4] = values[i / 4][i % 4];
  }
  template <int V>
  __device__ void multiply_add(double (&sums)[4], const Vector<double, V> (&right)[4], int v) const {
    double upper[2] = {sums[0], sums[1]}, lower[2] = {sums[2], sums[3]};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      mma(upper, rows[0][i], right[i].at[v]);
      mma(lower, rows[1][i], right[i].at[v]);
    }
    sums[0] = upper[0], sums[1] = upper[1], sums[2] = lower[0], sums[3] = lower[1];
  }
};

#define KP_MULTIPLY_ADD(R)                                                                                     \
  __device__ inline void multiply_add(R(&sums)[4], const Vector<R, 4>& upper, const Vector<R, 4>& lower,       \
                                      const Vector<R, 4>& column) {                                            \
    const R rows[2][4] = {{upper.at[0], upper.at[1], upper.at[2], upper.at[3]},                                \
                          {lower.at[0], lower.at[1], lower.at[2], lower.at[3]}};                               \
    const Vector<R, 1> right[4] = {{column.at[0]}, {column.at[1]}, {column.at[2]}, {column.at[3]}};            \
    Left<R>(rows).multiply_add(sums, right, 0);                                                                \
  }
KP_MULTIPLY_ADD(float)
KP_MULTIPLY_ADD(double)
#undef KP_MULTIPLY_ADD

}  // namespace kp
