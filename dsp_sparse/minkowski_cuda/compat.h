// Included ahead of every CUDA source of MinkowskiEngine 0.5.4 (NVCC_PREPEND_FLAGS), which was written for CUDA 11:
// what CUDA 12 and 13 took away, given back. Nothing of that package is changed on disk.
#pragma once

#ifdef __cplusplus

#include <cuda_runtime_api.h>

// Its sources name these algorithms without including them: older thrust headers included each other.
#include <thrust/device_vector.h>
#include <thrust/execution_policy.h>
#include <thrust/functional.h>
#include <thrust/host_vector.h>
#include <thrust/reduce.h>
#include <thrust/remove.h>
#include <thrust/sequence.h>
#include <thrust/sort.h>
#include <thrust/unique.h>
#include <thrust/version.h>

// spmm.cu asks for tensors of a type that torch's other headers only declare.
#include <ATen/core/Tensor.h>

#include <memory>

// Its hash map holds a thrust::pair, whose namespace has a function of this name since thrust 3; so does libstdc++, where
// shared_ptr calls it, and the call was ambiguous. This one fits its map better than both.
template <typename Key, typename Element, typename Hasher, typename Equality, typename Allocator>
class concurrent_unordered_map;
template <typename... Parameters>
constexpr concurrent_unordered_map<Parameters...> *__to_address(concurrent_unordered_map<Parameters...> *map) noexcept {
  return map;
}

#if THRUST_VERSION >= 300000
namespace thrust {
// Removed from thrust 3, after std::unary_function; it only ever held two names.
template <typename Argument, typename Result>
struct unary_function {
  using argument_type = Argument;
  using result_type = Result;
};
}  // namespace thrust
#endif

#if CUDART_VERSION >= 13000
// CUDA 13 takes a location instead of a device's number.
inline cudaError_t cudaMemPrefetchAsync(const void *memory, size_t bytes, int device, cudaStream_t stream) {
  cudaMemLocation location{};
  location.type = device == cudaCpuDeviceId ? cudaMemLocationTypeHost : cudaMemLocationTypeDevice;
  location.id = device == cudaCpuDeviceId ? 0 : device;
  return cudaMemPrefetchAsync(memory, bytes, location, 0, stream);
}
#endif

#endif
