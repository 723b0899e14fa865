"""Build of the native operators: two plain shared libraries, without torch headers and without Python.h.

    kpconv_ops/libkpconv_cpu.so     csrc/cpu/*.cpp    always (any C++17 compiler)
    kpconv_ops/libkpconv_cuda.so    csrc/cuda/*.cu    when nvcc is found (CUDA runtime linked statically)

Environment:
    KPCONV_OPS_CUDA=auto|1|0    build the CUDA library if nvcc is found (default), always, never
    FORCE_CUDA=1                the same as KPCONV_OPS_CUDA=1
    CUDA_HOME, CUDA_PATH        the CUDA toolkit (default: nvcc on PATH)
    TORCH_CUDA_ARCH_LIST        e.g. "8.0;9.0+PTX" (default: the GPUs of this machine, else four generations)
    MAX_JOBS, CXX               compilers at a time, the C++ compiler
"""

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "kpconv_ops" / "csrc"
sys.path.insert(0, str(ROOT / "tools"))
import build_backend  # noqa: E402

DEFAULT_ARCHS = "8.0;9.0;10.0;12.0+PTX"


def architectures() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, the machine's GPUs, or the default."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or local_gpus() or DEFAULT_ARCHS
    flags = []
    for arch in re.split(r"[;,\s]+", wanted):
        number = re.fullmatch(r"(\d+)\.(\d+a?)(\+PTX)?", arch)
        if not number:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must look like '8.0;9.0+PTX', got {wanted!r}")
        if int(number[1]) < 8:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must list 8.0 or later (bfloat16, TF32), got {wanted!r}")
        virtual = f"{number[1]}{number[2]}"
        flags += ["-gencode", f"arch=compute_{virtual},code=sm_{virtual}"]
        if number[3]:
            flags += ["-gencode", f"arch=compute_{virtual},code=compute_{virtual}"]
    return flags


def local_gpus() -> str:
    """The compute capabilities of this machine's GPUs that the kernels can be compiled for."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return ";".join(sorted({c for c in re.findall(r"\d+\.\d+", found) if float(c) >= 8}))


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


class BuildLibraries(build_ext):
    """Compiles each extension's sources to one shared library, unchanged objects are kept."""

    def run(self):
        self.nvcc = build_backend.find_nvcc() if build_backend.cuda_mode() != "0" else None
        if self.nvcc is None:
            if build_backend.cuda_mode() == "1":
                raise SystemExit("KPCONV_OPS_CUDA=1 needs nvcc: set CUDA_HOME, or install with build isolation")
            print("kpconv_ops: no CUDA library (no nvcc, or KPCONV_OPS_CUDA=0)", flush=True)
            self.extensions = [e for e in self.extensions if not e.name.endswith("_cuda")]
            # An earlier build's library must not slip into this one.
            Path(self.get_ext_fullpath("kpconv_ops.libkpconv_cuda")).unlink(missing_ok=True)
        super().run()

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"  # no Python version in the name: ctypes loads it

    def build_extension(self, ext):
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        # No contraction to fused multiply-add: the same numbers on every CPU. Nobody asks for errno or floating-point
        # traps: without them loops with square roots and comparisons can be vectorised.
        host = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
        host += ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        link = [*compiler, "-shared"]
        if ext.name.endswith("_cuda"):
            compiler = [self.nvcc, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
            host = ["-std=c++17", "-O3", *architectures()]
            libraries = Path(self.nvcc).resolve().parent.parent / "lib"  # where the packaged toolkit keeps cudart
            link = [self.nvcc, "-shared", "-cudart", "static", f"-L{libraries}"]

        objects = Path(self.build_temp).resolve() / ext.name
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        for folder in (objects, library.parent):
            folder.mkdir(parents=True, exist_ok=True)
        newest_header = max(path.stat().st_mtime for path in CSRC.rglob("*.h"))

        def compile_source(source: str) -> str:
            target = objects / f"{Path(source).name}.o"
            command = [*compiler, *host, "-I", str(CSRC), "-c", str(ROOT / source), "-o", str(target)]
            newest = max(newest_header, (ROOT / source).stat().st_mtime)
            stamp = target.with_suffix(".command")
            if not stamp.exists() or stamp.stat().st_mtime < newest or stamp.read_text() != shlex.join(command):
                run(command)
                stamp.write_text(shlex.join(command))
            return str(target)

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            run([*link, *pool.map(compile_source, ext.sources), "-o", str(library)])


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3: the libraries know nothing of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def library(device: str, pattern: str) -> Extension:
    sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.glob(pattern))
    return Extension(f"kpconv_ops.libkpconv_{device}", sources)


setup(
    ext_modules=[library("cpu", "cpu/*.cpp"), library("cuda", "cuda/*.cu")],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
)
