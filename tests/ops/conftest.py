"""The `device` fixture: every operator test runs on the CPU, through the CUDA emulator, and on a GPU if any."""

import shutil
import subprocess

import pytest
import torch

from kpconv_ops import _native

CSRC = _native._FOLDER / "csrc"


@pytest.fixture(scope="session")
def compile_for_emulator():
    """Compiles CUDA sources by g++ to a library that runs them on the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("the CUDA emulator needs g++")
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden"]
    flags += ["-DKP_EMULATED", "-include", CSRC / "cuda_on_cpu.h", "-I", CSRC]
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # refuses addresses that a GPU refuses

    def compile(library, *sources):
        subprocess.run([*map(str, ["g++", *flags, "-x", "c++", *sources, "-o", library])], check=True)
        return library

    return compile


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory, compile_for_emulator):
    """The CUDA sources, compiled for the emulator."""
    return compile_for_emulator(tmp_path_factory.mktemp("emulator") / "libkpconv_cuda.so", *CSRC.glob("cuda/*.cu"))


HAS_CUDA = torch.cuda.is_available() and _native.CUDA_LIBRARY.exists()


@pytest.fixture(params=["cpu", "emulated", *(["cuda"] if HAS_CUDA else [])])
def device(request):
    """`cpu`; `emulated`: tensors on the CPU, operators through the CUDA sources; `cuda`."""
    if request.param == "emulated":
        with _native.emulated_cuda(request.getfixturevalue("emulated_library")):
            yield torch.device("cpu")
    else:
        yield torch.device(request.param)
