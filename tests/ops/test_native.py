"""Loading the libraries and calling into them."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import torch

from kpconv_ops import Neighbors, _native, grid_subsample, kpconv

HEADER = (_native._FOLDER / "csrc" / "api.h").read_text()


def test_signatures_are_read_from_the_header():
    header = """
    KP_OP(kp_one)(int dtype, const void* points, int64_t n, double size,  // a comment, with (parentheses);
                  int64_t* out, int device, void* stream);
    """
    pointer = ctypes.c_void_p
    expected = [ctypes.c_int, pointer, ctypes.c_int64, ctypes.c_double, pointer, ctypes.c_int, pointer]
    assert _native.signatures(header) == {"kp_one": expected}


def test_every_operator_of_the_header_has_a_signature_that_ends_with_device_and_stream():
    found = _native.signatures(HEADER)
    assert len(found) == HEADER.count("\nKP_OP(") + HEADER.count("\nKP_CUDA_OP(") >= 6
    assert all(arguments[-2:] == [ctypes.c_int, ctypes.c_void_p] for arguments in found.values())


def test_both_libraries_are_built_from_sources_of_the_same_names():
    names = {
        device: {path.stem for path in (_native._FOLDER / "csrc" / device).glob("*.c*")} for device in ("cpu", "cuda")
    }
    assert names["cpu"] == names["cuda"]


def test_without_the_cuda_library_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "_cuda", None)
    monkeypatch.setattr(_native, "CUDA_LIBRARY", tmp_path / "libkpconv_cuda.so")
    with pytest.raises(RuntimeError, match=r"without its CUDA library.*KPCONV_OPS_CUDA=1 pip install"):
        _native._cuda_library()


def test_a_library_older_than_the_header_is_refused(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path / "libkpconv_cpu.so"
    subprocess.run(["g++", "-shared", "-x", "c++", "/dev/null", "-o", str(library)], check=True)
    with pytest.raises(ImportError, match=r"libkpconv_cpu.so is older than api.h: it lacks kp_\w+_cpu"):
        _native._load(library, "_cpu")


@pytest.mark.parametrize(
    ("built", "torch_cuda", "warns"), [(12040, "13.0", True), (13000, "13.2", False), (0, "13.0", False)]
)
def test_another_major_version_of_cuda_is_a_warning(monkeypatch, recwarn, built, torch_cuda, warns):
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    _native._check_cuda_version(built)
    assert ["built with CUDA 12.4, torch with CUDA 13.0" in str(warning.message) for warning in recwarn] == [
        True
    ] * warns


def cell_keys(dtype, points):
    empty = torch.zeros(0, device=points.device)
    _native.call("kp_cell_keys", points, dtype, points, len(points), empty, empty, empty, 0, empty)


def test_an_error_of_the_library_is_raised_with_its_message(device):
    with pytest.raises(RuntimeError, match="kp_cell_keys: coordinates must be float32 or float64"):
        cell_keys(torch.float16, torch.zeros(0, 3, device=device))


def test_pointers_of_strided_tensors_are_refused(device):
    with pytest.raises(RuntimeError, match="contiguous"):
        cell_keys(torch.float32, torch.zeros(3, 4, device=device).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_influences_are_exact_to_two_units_in_the_last_place(dtype):
    distances = torch.linspace(0, 3.9, 5001, dtype=dtype)
    n, extent = len(distances), 1.0
    supports = torch.stack([distances, torch.zeros_like(distances), torch.zeros_like(distances)], 1)
    nb = Neighbors(torch.arange(n, dtype=torch.int32), torch.arange(n + 1), n)
    one = torch.ones(1, dtype=dtype)
    kernel_points, weights = torch.zeros(1, 3, dtype=dtype), one.view(1, 1, 1)
    out = kpconv(
        one.expand(n, 1), torch.zeros_like(supports), supports, nb, kernel_points, weights, extent, "gaussian"
    )[:, 0]
    exponents = distances.square() * torch.tensor(
        1 / (0.18 * extent**2 + 1e-9), dtype=dtype
    )  # rounded as in the kernel
    assert 80 < exponents[-1] < 87
    exact = numpy.exp(-exponents.numpy().astype(numpy.longdouble))
    unit = torch.finfo(dtype).eps * 2.0 ** numpy.floor(numpy.log2(exact))
    assert (abs(out.numpy().astype(numpy.longdouble) - exact) <= 2 * unit).all()


def test_the_emulator_is_left_with_its_context(emulated_library):
    points, offsets = torch.zeros(1, 3), torch.tensor([0, 1])
    assert not _native.on_cuda(points)
    with pytest.raises(ValueError, match="cell_size"), _native.emulated_cuda(emulated_library):
        assert _native.on_cuda(points)
        grid_subsample(points, offsets, -1.0)
    assert not _native.on_cuda(points)


def test_threads_come_from_torch():
    """torch exports the function that lends its thread pool; without it everything would run on one thread."""
    library = next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    assert hasattr(ctypes.CDLL(str(library)), "torch_parallel_for")
