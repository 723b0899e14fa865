// What every CUDA source needs: names that end in _cuda, errors, launches. cuda_on_cpu.h replaces the CUDA part when
// the sources are compiled for the emulator.
#pragma once
#define KP_SUFFIX _cuda
#include <exception>
#include <string>
#include <type_traits>

#include "api.h"
#include "core/core.h"

#ifndef KP_EMULATED
#include <cuda_runtime.h>
// Launches `kernel` (in parentheses when it is a template) with `shared` bytes of dynamic shared memory.
#define KP_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// Shared memory: a fixed number of elements, or the launch's dynamic bytes.
#define KP_SHARED(type, name, count) __shared__ type name[count]
#define KP_DYNAMIC_SHARED(type, name)                               \
  extern __shared__ __align__(16) unsigned char kp_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(kp_dynamic_shared)
#endif

namespace kp {

inline thread_local std::string last_error;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

// Runs f (which launches kernels) on `device` and turns an exception or a failed launch into the return code.
template <class F>
int guarded(int device, F f) {
  int caller = device;
  try {
    check(cudaGetDevice(&caller));
    if (caller != device) check(cudaSetDevice(device));
    f();
    check(cudaGetLastError());
    if (caller != device) check(cudaSetDevice(caller));
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    if (caller != device) cudaSetDevice(caller);
    return 1;
  }
}

// A size that kernels count in 32 bits.
inline int narrow(int64_t size) {
  if (size > INT32_MAX) throw std::invalid_argument("more than 2^31 - 1 rows or channels");
  return static_cast<int>(size);
}

// Blocks that give every one of n elements a thread.
inline unsigned blocks(int64_t n, int64_t threads) { return static_cast<unsigned>((n + threads - 1) / threads); }

// V neighbouring elements, moved in one access: `vector_width` of them are 16 bytes, the widest there is.
template <class T, int V>
struct alignas(V * sizeof(T)) Vector {
  T at[V];
};
template <class T>
constexpr int vector_width = 16 / sizeof(T);

// They are moved as machine words: the compiler takes halves of words one by one.
template <int bytes>
using Words = std::conditional_t<
    bytes == 16, uint4, std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;

template <int V, class T>
__device__ Vector<T, V> load(const T* address) {
  return bit_cast<Vector<T, V>>(*reinterpret_cast<const Words<V * sizeof(T)>*>(address));
}
template <int V, class T>
__device__ Vector<T, V> load_or_zeros(bool exists, const T* address) {
  Words<V * sizeof(T)> words{};
  if (exists) words = *reinterpret_cast<const Words<V * sizeof(T)>*>(address);
  return bit_cast<Vector<T, V>>(words);
}
template <int V, class T>
__device__ void store(T* address, const Vector<T, V>& values) {
  *reinterpret_cast<Words<V * sizeof(T)>*>(address) = bit_cast<Words<V * sizeof(T)>>(values);
}

// Whether arrays start at multiples of so many bytes.
template <class... T>
bool aligned(size_t bytes, const T*... arrays) {
  return ((reinterpret_cast<uintptr_t>(arrays) % bytes == 0) && ...);
}

// Whether the rows of arrays with so many channels of F consist of 16-byte vectors.
template <class F, class... T>
bool in_vectors(int64_t channels, const T*... arrays) {
  return channels % vector_width<F> == 0 && aligned(16, arrays...);
}
// Calls f with the number of elements to move at a time, as a constant: a vector or one.
template <class F, class Body>
void with_width(bool vectors, Body f) {
  if (vectors) f(std::integral_constant<int, vector_width<F>>{});
  else f(std::integral_constant<int, 1>{});
}

// A thread for each of a number of rows and columns.
struct RowLaunch {
  dim3 grid, block;

  RowLaunch(int64_t rows, int64_t columns) {
    constexpr unsigned threads = 256;
    while (block.x < columns && block.x < threads) block.x *= 2;
    block.y = threads / block.x;
    grid = dim3(blocks(rows, block.y), blocks(columns, block.x));
  }
  bool empty() const { return grid.x == 0 || grid.y == 0; }
};
__device__ inline int64_t thread_row() { return blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y; }
__device__ inline int64_t thread_column() { return blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x; }

__device__ inline int64_t thread_index() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }

}  // namespace kp
