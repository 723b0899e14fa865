"""The `device` fixture: every operator test runs on the CPU, through the CUDA emulator, and on a GPU if any."""

import shutil
import subprocess

import pytest
import torch

from kpconv_ops import _native

CSRC = _native._FOLDER / "csrc"


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """The CUDA sources, compiled by g++ for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("the CUDA emulator needs g++")
    library = tmp_path_factory.mktemp("emulator") / "libkpconv_cuda.so"
    sources = sorted(CSRC.glob("cuda/*.cu"))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-DKP_EMULATED", "-include", CSRC / "cuda_on_cpu.h"]
    command = ["g++", *flags, "-I", CSRC, "-fPIC", "-shared", "-fvisibility=hidden", "-x", "c++", *sources]
    subprocess.run([*map(str, command), "-o", str(library)], check=True)
    return library


HAS_CUDA = torch.cuda.is_available() and _native.CUDA_LIBRARY.exists()


@pytest.fixture(params=["cpu", "emulated", *(["cuda"] if HAS_CUDA else [])])
def device(request):
    """`cpu`; `emulated`: tensors on the CPU, operators through the CUDA sources; `cuda`."""
    if request.param == "emulated":
        with _native.emulated_cuda(request.getfixturevalue("emulated_library")):
            yield torch.device("cpu")
    else:
        yield torch.device(request.param)
