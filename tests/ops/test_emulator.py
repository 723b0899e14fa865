"""The CUDA emulator finds the mistakes it is there for."""

import ctypes
import shutil
import subprocess
import sys

import pytest

from kpconv_ops import _native

CSRC = _native._FOLDER / "csrc"
SOURCE = """
#include "cuda/cuda.h"

// Reverses a block's values through shared memory.
__global__ void reverse(const float* in, float* out, bool barrier) {
  KP_SHARED(float, shared, 64);
  shared[threadIdx.x] = in[threadIdx.x];
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
__global__ void half_a_barrier() {
  if (threadIdx.x % 2) __syncthreads();
  else __syncwarp();
}
__global__ void sums(float* out) {
  float value = threadIdx.x;
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  unsigned odd = __ballot_sync(~0u, threadIdx.x % 2);
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = value + __popc(odd);
}
__global__ void dynamic(float* out) {
  KP_DYNAMIC_SHARED(float, shared);
  out[threadIdx.x] = shared[threadIdx.x];
}

KP_API int run_reverse(const float* in, float* out, int barrier) {
  return kp::guarded(-1, [=] { KP_LAUNCH(reverse, 1, 64, 0, nullptr, in, out, barrier != 0); });
}
KP_API int run_half_a_barrier() { return kp::guarded(-1, [=] { KP_LAUNCH(half_a_barrier, 1, 32, 0, nullptr); }); }
KP_API int run_sums(float* out) { return kp::guarded(-1, [=] { KP_LAUNCH(sums, 1, 64, 0, nullptr, out); }); }
KP_API int run_dynamic(float* out, int threads, int bytes) {
  return kp::guarded(-1, [=] { KP_LAUNCH(dynamic, 1, threads, bytes, nullptr, out); });
}
KP_API const char* error() { return kp::last_error.c_str(); }
"""


@pytest.fixture(scope="module")
def library_path(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("the CUDA emulator needs g++")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cu").write_text(SOURCE)
    flags = ["-std=c++17", "-DKP_EMULATED", "-include", CSRC / "cuda_on_cpu.h", "-I", CSRC, "-fPIC", "-shared"]
    command = ["g++", *flags, "-x", "c++", folder / "kernels.cu", "-o", folder / "kernels.so"]
    subprocess.run([*map(str, command)], check=True)
    return folder / "kernels.so"


@pytest.fixture(scope="module")
def library(library_path):
    loaded = ctypes.CDLL(str(library_path))
    loaded.error.restype = ctypes.c_char_p
    return loaded


def test_a_missing_barrier_shows(library):
    values, reversed_ = (ctypes.c_float * 64)(*range(64)), (ctypes.c_float * 64)()
    assert library.run_reverse(values, reversed_, 1) == 0
    assert list(reversed_) == list(values)[::-1]
    assert library.run_reverse(values, reversed_, 0) == 0
    assert list(reversed_) != list(values)[::-1]


def test_warp_operations(library):
    sums = (ctypes.c_float * 2)()
    assert library.run_sums(sums) == 0
    assert list(sums) == [sum(range(32)) + 16, sum(range(32, 64)) + 16]


def test_shared_memory_starts_as_nan(library):
    values = (ctypes.c_float * 4)()
    assert library.run_dynamic(values, 4, 16) == 0
    assert all(value != value for value in values)


@pytest.mark.parametrize(("threads", "shared"), [(1025, 0), (0, 0), (32, 48 * 1024 + 1)])
def test_launches_beyond_the_limits_fail(library, threads, shared):
    assert library.run_dynamic(None, threads, shared) != 0
    assert b"invalid configuration" in library.error()


def test_a_barrier_that_some_threads_miss_aborts(library_path):
    code = f"import ctypes; ctypes.CDLL({str(library_path)!r}).run_half_a_barrier()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0 and "not every thread" in ended.stderr
