// Code for several vector widths. Loops over `lanes` elements, marked `omp simd`, become one or a few vector
// instructions, whatever width is compiled for; results do not depend on it.
#pragma once
#include <cstdint>

// Compiles a function for several x86-64 vector widths; the loader picks the widest this processor has.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define KP_WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KP_WIDE
#endif
// The body of such a function, when it is a template: it must be inlined to take the caller's vector width.
#define KP_WIDE_BODY inline __attribute__((always_inline))

namespace kp {

// Elements of the widest vector.
template <class T>
constexpr int64_t lanes = 64 / sizeof(T);

// The smallest multiple of `lanes` that is not below n.
template <class T>
constexpr int64_t whole_vectors(int64_t n) {
  return (n + lanes<T> - 1) / lanes<T> * lanes<T>;
}

}  // namespace kp
