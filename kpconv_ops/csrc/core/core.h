// What the CPU and the CUDA build share: element types and the functions that run on both.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#ifdef __CUDACC__
#define KP_HD __host__ __device__ inline
#else
#define KP_HD inline
#endif

namespace kp {

template <class To, class From>
KP_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// Storage types: they convert to and from float, all arithmetic is done in float.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  KP_HD explicit BFloat16(float value) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    uint32_t u = bit_cast<uint32_t>(value);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);  // nearest, ties to even
#endif
  }
  KP_HD operator float() const { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct Half {
  uint16_t bits;
  Half() = default;
  KP_HD explicit Half(float value) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    uint32_t u = bit_cast<uint32_t>(value), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      bits = static_cast<uint16_t>(sign | 0x7e00u);  // NaN
    } else if (magnitude >= 0x477ff000u) {
      bits = static_cast<uint16_t>(sign | 0x7c00u);  // rounds past the largest half: infinity
    } else if (magnitude < 0x38800000u) {            // subnormal: adding 0.5 lines the mantissa up, and rounds it
      bits = static_cast<uint16_t>(sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
    } else {
      uint32_t odd = (magnitude >> 13) & 1;
      bits = static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
    }
#endif
  }
  KP_HD operator float() const {
#ifdef __CUDA_ARCH__
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
#else
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    float value = bit_cast<float>(magnitude << 13) * 5.192296858534828e33f;  // times 2^112
    uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0;                // infinity or NaN
    return bit_cast<float>(bit_cast<uint32_t>(value) | special | sign);
#endif
  }
};

// A product that no compiler fuses with a following addition: the same bits on every device.
KP_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
KP_HD double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// A square root to within a rounding: one instruction on the GPU, where the exact one takes ten.
KP_HD float root(float value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  return sqrt(value);
#endif
}
KP_HD double root(double value) { return sqrt(value); }

// The value, or 0 if it is negative. NaN stays NaN.
KP_HD float positive_part(float value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
#else
  return value < 0 ? 0 : value;
#endif
}
KP_HD double positive_part(double value) { return value < 0 ? 0 : value; }

// Calls f with a value of the coordinate type of this code.
template <class F>
void with_coordinates(int dtype, F f) {
  switch (dtype) {
    case 0: return f(float{});
    case 1: return f(double{});
    default: throw std::invalid_argument("coordinates must be float32 or float64");
  }
}

// The same for coordinates that may also be whole numbers.
template <class F>
void with_positions(int dtype, F f) {
  if (dtype == 4) f(int64_t{});
  else with_coordinates(dtype, f);
}

// Larger than any other value of a coordinate's type.
template <class T>
KP_HD T highest() { return static_cast<T>(INFINITY); }
template <>
KP_HD int64_t highest<int64_t>() { return INT64_MAX; }

// Calls f with a value of the feature type of this code.
template <class F>
void with_features(int dtype, F f) {
  switch (dtype) {
    case 0: return f(float{});
    case 1: return f(double{});
    case 2: return f(Half{});
    case 3: return f(BFloat16{});
    default: throw std::invalid_argument("features must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace kp
