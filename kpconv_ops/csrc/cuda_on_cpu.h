// Runs the CUDA sources on the CPU, for tests on machines without a GPU:
//
//   g++ -std=c++17 -DKP_EMULATED -include cuda_on_cpu.h -I . -fPIC -shared -x c++ cuda/*.cu -o libkpconv_cuda.so
//
// Every CUDA thread of a block is a fiber on the one calling thread. Barriers, warp shuffles and votes give way to the
// other fibers until all live threads of the block (or warp) have arrived. Fibers run in a shuffled order and shared
// memory is filled with NaNs before every block, so that a missing barrier or initialisation shows. Launch limits are
// checked; a barrier that not every thread reaches aborts. Not modelled: speed, and races between blocks.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kSharedBytes = 48 * 1024, kStackBytes = 128 * 1024;
enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 thread;
  unsigned rank = 0;  // of the thread in its block
  State state = State::kReady;
};

inline cudaError_t last_error = cudaSuccess;
inline std::vector<Fiber> fibers;
inline Fiber* running = nullptr;
inline ucontext_t scheduler;
inline std::function<void()> kernel_body;
inline uint64_t exchanged[kMaxThreads];  // what each thread offers to its warp

inline void wait_as(State state) {
  running->state = state;
  swapcontext(&running->context, &scheduler);
}

inline void fiber_main() {
  kernel_body();
  wait_as(State::kDone);
}

// Shared memory: every array is known here, so that it can be poisoned before each block.
struct SharedRange {
  void* begin;
  size_t bytes;
  void poison() const { std::memset(begin, 0xff, bytes); }
};
inline std::vector<SharedRange> shared_ranges;
alignas(16) inline unsigned char dynamic_shared[kSharedBytes];

template <class T, size_t N>
struct SharedArray {
  T values[N];
  SharedArray() {
    shared_ranges.push_back({values, sizeof(values)});
    shared_ranges.back().poison();
  }
};

// Makes the threads in [begin, end) ready again when all that are still alive wait in `state`.
inline bool release(unsigned begin, unsigned end, State state) {
  bool waiting = false;
  for (unsigned i = begin; i < end; i++) {
    if (fibers[i].state == state) waiting = true;
    else if (fibers[i].state != State::kDone) return false;
  }
  for (unsigned i = begin; waiting && i < end; i++)
    if (fibers[i].state == state) fibers[i].state = State::kReady;
  return waiting;
}

inline void run_block(unsigned threads, std::mt19937& shuffle_source) {
  std::memset(dynamic_shared, 0xff, sizeof(dynamic_shared));
  for (const SharedRange& range : shared_ranges) range.poison();
  std::vector<Fiber*> order;
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.rank = i;
    fiber.thread = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    fiber.state = State::kReady;
    order.push_back(&fiber);
  }
  while (true) {
    std::shuffle(order.begin(), order.end(), shuffle_source);
    for (Fiber* fiber : order) {
      if (fiber->state != State::kReady) continue;
      running = fiber;
      threadIdx = fiber->thread;
      swapcontext(&scheduler, &fiber->context);
    }
    bool progress = false;
    for (unsigned warp = 0; warp < threads; warp += kWarp)
      progress |= release(warp, std::min(warp + kWarp, threads), State::kAtWarpBarrier);
    progress |= release(0, threads, State::kAtBlockBarrier);
    if (progress) continue;
    if (std::all_of(order.begin(), order.end(), [](Fiber* fiber) { return fiber->state == State::kDone; })) return;
    std::fprintf(stderr, "cuda_on_cpu: a barrier that not every thread of the block or warp reaches\n");
    std::abort();
  }
}

template <class F>
void launch(dim3 grid, dim3 block, size_t shared, F body) {
  size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 ||
      grid.z == 0 || grid.z > 65535 || shared > kSharedBytes) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  while (fibers.size() < threads) fibers.emplace_back();
  kernel_body = body;
  gridDim = grid;
  blockDim = block;
  std::mt19937 shuffle_source(1);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = dim3(x, y, z);
        run_block(static_cast<unsigned>(threads), shuffle_source);
      }
}

// The value that lane `source` of this warp offers.
template <class T>
T from_lane(T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  std::memcpy(&exchanged[running->rank], &value, sizeof(T));
  wait_as(State::kAtWarpBarrier);
  std::memcpy(&value, &exchanged[running->rank / kWarp * kWarp + source % kWarp], sizeof(T));
  wait_as(State::kAtWarpBarrier);
  return value;
}

inline unsigned lane() { return running->rank % kWarp; }

}  // namespace emulator

#define KP_LAUNCH(kernel, grid, block, shared, stream, ...) \
  emulator::launch(dim3(grid), dim3(block), shared, [=] { kernel(__VA_ARGS__); })
#define KP_SHARED(type, name, count)                          \
  static emulator::SharedArray<type, (count)> name##_storage; \
  type* name = name##_storage.values
#define KP_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)

inline void __syncthreads() { emulator::wait_as(emulator::State::kAtBlockBarrier); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait_as(emulator::State::kAtWarpBarrier); }

template <class T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
  return emulator::from_lane(value, (emulator::lane() & ~(width - 1u)) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  unsigned lane = emulator::lane();
  return emulator::from_lane(value, (lane & (width - 1u)) + delta < unsigned(width) ? lane + delta : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  unsigned lane = emulator::lane();
  return emulator::from_lane(value, (lane & (width - 1u)) >= delta ? lane - delta : lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulator::from_lane(value, emulator::lane() ^ mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; lane++)
    if (emulator::from_lane(predicate, lane) && (mask >> lane & 1)) votes |= 1u << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// One fiber runs at a time, so plain operations are atomic.
template <class T>
T atomicAdd(T* address, T value) {
  T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicMax(T* address, T value) {
  T old = *address;
  *address = std::max(old, value);
  return old;
}
template <class T>
T atomicMin(T* address, T value) {
  T old = *address;
  *address = std::min(old, value);
  return old;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  T old = *address;
  if (old == expected) *address = value;
  return old;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}

inline cudaError_t cudaGetDevice(int* device) { return *device = -1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* begin, int value, size_t bytes, cudaStream_t) {
  return std::memset(begin, value, bytes), cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
  cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
