// What every CPU source needs: names that end in _cpu, errors, threads.
#pragma once
#define KP_SUFFIX _cpu
#include <exception>
#include <string>

#include "api.h"
#include "core/core.h"

namespace kp {

inline thread_local std::string last_error;

// Runs f and turns an exception into the C interface's return code.
template <class F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

// torch's own thread pool, handed over when the library is loaded; without it everything runs on the calling thread.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*), void*);
inline ParallelFor torch_parallel_for = nullptr;

// Calls f(begin, end) on pieces of [0, n) of at least `grain` elements.
template <class F>
void parallel_for(int64_t n, int64_t grain, F f) {
  if (!torch_parallel_for || n <= grain) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  auto body = [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); };
  if (torch_parallel_for(0, n, grain, body, &f)) throw std::runtime_error("a worker thread failed, likely out of memory");
}

}  // namespace kp
