// Runs the CUDA sources on the CPU, for tests on machines without a GPU:
//
//   g++ -std=c++17 -DKP_EMULATED -include cuda_on_cpu.h -I . -fPIC -shared -x c++ cuda/*.cu -o libkpconv_cuda.so
//
// Every CUDA thread of a block is a fiber on the one calling thread. Barriers, warp shuffles, votes and matrix products
// give way to the other fibers until all live threads of the block (or warp) have arrived. Fibers run in shuffled order
// and shared memory is filled with NaNs before every block, so that a missing barrier or initialisation shows. Launch
// limits are checked; a barrier that not every thread reaches aborts. Not modelled: speed, and races between blocks.
#pragma once
#undef _FORTIFY_SOURCE  // its longjmp refuses to change stacks
#include <setjmp.h>
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
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kSharedBytes = 48 * 1024, kStackBytes = 128 * 1024;
enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  unsigned rank = 0;  // of the thread in its block
  State state = State::kDone;
};

// What a thread shows to its warp; two of them, so that one exchange may begin while the last is still being read.
struct alignas(8) Shown {
  unsigned char bytes[32];
};

inline cudaError_t last_error = cudaSuccess;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* running = nullptr;
inline jmp_buf scheduler;
inline std::function<void()> kernel_body;
inline Shown shown[kMaxThreads][2];
inline unsigned exchanges[kMaxThreads];  // so far, of each thread

// _setjmp and _longjmp change stacks without the system call that swapcontext makes.
inline void wait_as(State state) {
  running->state = state;
  if (!_setjmp(running->resume)) _longjmp(scheduler, 1);
}

inline void fiber_main() {
  while (true) {
    kernel_body();
    wait_as(State::kDone);  // until the next block
  }
}

inline void run(Fiber* fiber) {
  running = fiber;
  threadIdx = fiber->thread;
  if (_setjmp(scheduler)) return;
  if (fiber->stack) _longjmp(fiber->resume, 1);
  fiber->stack.reset(new char[kStackBytes]);
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = fiber->stack.get();
  fiber->start.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber->start, fiber_main, 0);
  setcontext(&fiber->start);
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
    if (fibers[i]->state == state) waiting = true;
    else if (fibers[i]->state != State::kDone) return false;
  }
  for (unsigned i = begin; waiting && i < end; i++)
    if (fibers[i]->state == state) fibers[i]->state = State::kReady;
  return waiting;
}

inline void run_block(unsigned threads, size_t shared, std::mt19937& shuffle_source) {
  std::memset(dynamic_shared, 0xff, shared);
  for (const SharedRange& range : shared_ranges) range.poison();
  std::vector<Fiber*> order;
  for (unsigned i = 0; i < threads; i++) {
    Fiber* fiber = fibers[i].get();
    fiber->rank = i;
    fiber->thread = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    fiber->state = State::kReady;
    exchanges[i] = 0;
    order.push_back(fiber);
  }
  while (true) {
    std::shuffle(order.begin(), order.end(), shuffle_source);
    for (Fiber* fiber : order)
      if (fiber->state == State::kReady) run(fiber);
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
  while (fibers.size() < threads) fibers.emplace_back(new Fiber);
  kernel_body = body;
  gridDim = grid;
  blockDim = block;
  std::mt19937 shuffle_source(1);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = dim3(x, y, z);
        run_block(static_cast<unsigned>(threads), shared, shuffle_source);
      }
}

// Shows a value to the warp; returns what lane i shows.
template <class T>
auto exchange(const T& value) {
  static_assert(sizeof(T) <= sizeof(Shown));
  const unsigned turn = exchanges[running->rank]++ % 2, first = running->rank / kWarp * kWarp;
  std::memcpy(&shown[running->rank][turn], &value, sizeof(T));
  wait_as(State::kAtWarpBarrier);
  return [=](unsigned lane) {
    T other;
    std::memcpy(&other, &shown[first + lane % kWarp][turn], sizeof(T));
    return other;
  };
}

inline unsigned lane() { return running->rank % kWarp; }

// mma.sync.m16n8k16 (per_word = 2 elements in a register) and m16n8k8 (1): sums += left x right. element(word, i) is
// the i-th element of a register.
template <int per_word, class Element>
void mma(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], Element element) {
  struct Fragments {
    uint32_t left[4], right[2];
  } mine{{left[0], left[1], left[2], left[3]}, {right[0], right[1]}};
  const auto fragments = exchange(mine);
  for (int i = 0; i < 4; i++) {
    const unsigned row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 8 * per_word; k++) {
      const unsigned quarter = k / per_word % 4, half = k / (4 * per_word);
      sums[i] += element(fragments(row % 8 * 4 + quarter).left[row / 8 + 2 * half], k % per_word) *
                 element(fragments(column * 4 + quarter).right[half], k % per_word);
    }
  }
}
// mma.sync.m8n8k4 of float64.
inline void mma(double (&sums)[2], double left, double right) {
  struct Fragments {
    double left, right;
  } mine{left, right};
  const auto fragments = exchange(mine);
  for (unsigned i = 0; i < 2; i++)
    for (unsigned k = 0; k < 4; k++)
      sums[i] += fragments(lane() / 4 * 4 + k).left * fragments((lane() % 4 * 2 + i) * 4 + k).right;
}

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
  return emulator::exchange(value)((emulator::lane() & ~(width - 1u)) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  unsigned lane = emulator::lane();
  return emulator::exchange(value)((lane & (width - 1u)) + delta < unsigned(width) ? lane + delta : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  unsigned lane = emulator::lane();
  return emulator::exchange(value)((lane & (width - 1u)) >= delta ? lane - delta : lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulator::exchange(value)(emulator::lane() ^ mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto predicates = emulator::exchange(predicate);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; lane++)
    if ((mask >> lane & 1) && predicates(lane)) votes |= 1u << lane;
  return votes;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; i++) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return result;
}

// One fiber runs at a time, so a plain addition is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  T old = *address;
  *address = old + value;
  return old;
}

inline cudaError_t cudaGetDevice(int* device) { return *device = -1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaGetLastError() {
  cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
