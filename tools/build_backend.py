"""Build backend: setuptools, plus where nvcc comes from.

When CUDA kernels are wanted and the machine has no nvcc, the compiler is fetched like any other build requirement,
into pip's temporary build environment (about 100 MB).
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

# Every part from one release: nvcc refuses the intermediate code of a newer nvvm.
TOOLKIT = "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.*"


def cuda_mode() -> str:
    """`1` CUDA kernels are required, `0` never built, `auto` built when a compiler is there."""
    if os.environ.get("FORCE_CUDA") == "1":
        return "1"
    mode = os.environ.get("KPCONV_OPS_CUDA", "auto")
    if mode not in ("auto", "1", "0"):
        raise SystemExit(f"KPCONV_OPS_CUDA must be auto, 1 or 0, got {mode!r}")
    return mode


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDA_HOME, then PATH, then the usual folder, then the build requirement above."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [Path(home, "bin", "nvcc") for home in homes]
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    candidates += [Path("/usr/local/cuda/bin/nvcc")]
    candidates += [path for folder in sys.path for path in sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"))]
    return next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _toolkit() -> list[str]:
    wanted = cuda_mode() == "1" or (cuda_mode() == "auto" and _has_gpu())
    return [TOOLKIT] if wanted and find_nvcc() is None else []


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _toolkit()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _toolkit()
