"""The CUDA emulator finds the mistakes it is there for."""

import ctypes
import subprocess
import sys

import pytest
import torch

from kpconv_ops import _native
from kpconv_ops._checks import FEATURE_DTYPES

SOURCE = """
#include "cuda/tensor.h"

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
// Lane l gets the sum of the lanes before it; every exchange follows the last one at once.
__global__ void scan(int* out) {
  int sum = threadIdx.x;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(~0u, sum, step);
    if (threadIdx.x % 32 >= step) sum += before;
  }
  out[threadIdx.x] = __shfl_xor_sync(~0u, sum, 1);
}
// out [16, 8] = left [16, 16] x right [16, 8]; the quarters of the inner dimension are four elements in a row.
template <class F>
__global__ void product(const kp::Accumulator<F>* left, const F* right, kp::Accumulator<F>* out) {
  const int group = threadIdx.x / 4, quarter = threadIdx.x % 4;
  kp::Accumulator<F> rows[2][4], sums[4] = {};
  kp::Vector<F, 1> column[4];
  for (int i = 0; i < 4; i++) {
    for (int r = 0; r < 2; r++) rows[r][i] = left[(group + 8 * r) * 16 + 4 * quarter + i];
    column[i].at[0] = right[(4 * quarter + i) * 8 + group];
  }
  kp::Left<F>(rows).multiply_add(sums, column, 0);
  for (int i = 0; i < 4; i++) out[(group + i / 2 * 8) * 8 + 2 * quarter + i % 2] = sums[i];
}
__global__ void copy_four(const float* in, float* out) { kp::store(out, kp::load<4>(in)); }
__global__ void dynamic(float* out) {
  KP_DYNAMIC_SHARED(float, shared);
  out[threadIdx.x] = shared[threadIdx.x];
}

KP_API int run_reverse(const float* in, float* out, int barrier) {
  return kp::guarded(-1, [=] { KP_LAUNCH(reverse, 1, 64, 0, nullptr, in, out, barrier != 0); });
}
KP_API int run_half_a_barrier() { return kp::guarded(-1, [=] { KP_LAUNCH(half_a_barrier, 1, 32, 0, nullptr); }); }
KP_API int run_sums(float* out) { return kp::guarded(-1, [=] { KP_LAUNCH(sums, 1, 64, 0, nullptr, out); }); }
KP_API int run_scan(int* out) { return kp::guarded(-1, [=] { KP_LAUNCH(scan, 1, 64, 0, nullptr, out); }); }
KP_API int run_copy_four(const float* in, float* out) {
  return kp::guarded(-1, [=] { KP_LAUNCH(copy_four, 1, 1, 0, nullptr, in, out); });
}
KP_API int run_product(int dtype, const void* left, const void* right, void* out) {
  return kp::guarded(-1, [=] {
    kp::with_features(dtype, [=](auto feature) {
      using F = decltype(feature);
      using R = kp::Accumulator<F>;
      KP_LAUNCH((product<F>), 1, 32, 0, nullptr, static_cast<const R*>(left), static_cast<const F*>(right),
                static_cast<R*>(out));
    });
  });
}
KP_API int run_dynamic(float* out, int threads, int bytes) {
  return kp::guarded(-1, [=] { KP_LAUNCH(dynamic, 1, threads, bytes, nullptr, out); });
}
KP_API const char* error() { return kp::last_error.c_str(); }
"""


@pytest.fixture(scope="module")
def library_path(tmp_path_factory, compile_for_emulator):
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cu").write_text(SOURCE)
    return compile_for_emulator(folder / "kernels.so", folder / "kernels.cu")


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


def test_exchanges_in_a_row(library):
    sums = (ctypes.c_int * 64)()
    assert library.run_scan(sums) == 0
    upto = torch.arange(64).view(2, 32).cumsum(1)
    assert torch.equal(torch.tensor(list(sums)).view(2, 16, 2), upto.view(2, 16, 2).flip(2))


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_matrix_products(library, dtype):
    """Only the product of two low parts is lost: 2^-22 of a float32, 2^-18 of one that meets bfloat16."""
    random = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    left, right = torch.randn(16, 16, generator=random).to(wide), torch.randn(16, 8, generator=random).to(dtype)
    out = left.new_full((16, 8), torch.nan)
    assert (
        library.run_product(_native._DTYPE_CODES[dtype], *(ctypes.c_void_p(t.data_ptr()) for t in (left, right, out)))
        == 0
    )
    lost = {torch.float64: 2**-52, torch.float32: 2**-22, torch.float16: 2**-22, torch.bfloat16: 2**-17}[dtype]
    bound = 2 * (lost + 2**-24 * (dtype != torch.float64)) * (left.double().abs() @ right.double().abs())
    assert ((out.double() - left.double() @ right.double()).abs() <= bound).all()


def test_a_vector_at_an_address_that_is_not_its_multiple_aborts(library_path):
    code = f"""
import ctypes
values = (ctypes.c_float * 12)()
start = (-ctypes.addressof(values)) % 16
at = [ctypes.c_void_p(ctypes.addressof(values) + start + offset) for offset in (0, 16, 4)]
library = ctypes.CDLL({str(library_path)!r})
assert library.run_copy_four(at[0], at[1]) == 0
print("aligned", flush=True)
library.run_copy_four(at[2], at[1])
print("not aligned", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0 and ended.stdout == "aligned\n"


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
