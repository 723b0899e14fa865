"""Building the native libraries, from a copy of the sources as a release archive would hold them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    """The files the build needs, without a repository around them."""
    folder = tmp_path / "source"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("kpconv_ops", "dsp_sparse", "tools"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "README.md").touch()
    return folder


# Stands for compiling and linking: creates the file after -o.
TOUCH = 'while [ "$1" != -o ]; do shift; done; touch "$2"'


def compiler(path, action=TOUCH):
    """A compiler that only records how it was called, in the file `path`.calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" >> {path}.calls\n{action}\n')
    path.chmod(0o755)
    return str(path)


def build(source, **environment):
    """`setup.py build_ext --inplace` with a stand-in for g++, without a CUDA toolkit unless `environment` names one."""
    names = ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "KPCONV_OPS_CUDA", "TORCH_CUDA_ARCH_LIST")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    stand_in = {"CXX": compiler(source.parent / "g++"), "MAX_JOBS": "1"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=source, env=inherited | stand_in | environment, capture_output=True, text=True)


def cuda_home(folder, action=TOUCH):
    compiler(folder / "cuda" / "bin" / "nvcc", action)
    return {"CUDA_HOME": str(folder / "cuda")}


def test_the_cpu_library_is_built_once(source):
    first = build(source, KPCONV_OPS_CUDA="0")
    assert first.returncode == 0, first.stderr
    assert "no CUDA library" in first.stdout and " -c " in first.stdout
    assert {path.name for path in source.rglob("*.so") if path.parent.name == "kpconv_ops"} == {"libkpconv_cpu.so"}
    again = build(source, KPCONV_OPS_CUDA="0")
    assert " -c " not in again.stdout
    next(source.glob("kpconv_ops/csrc/core/*.h")).touch()
    assert " -c " in build(source, KPCONV_OPS_CUDA="0").stdout


def test_every_cuda_source_is_compiled_for_the_listed_architectures(source, tmp_path):
    environment = cuda_home(tmp_path) | {"TORCH_CUDA_ARCH_LIST": "8.6;9.0+PTX"}
    built = build(source, **environment)
    assert built.returncode == 0, built.stderr
    assert (source / "kpconv_ops" / "libkpconv_cuda.so").exists()
    *compiled, linked = (tmp_path / "cuda/bin/nvcc.calls").read_text().splitlines()
    assert sorted(Path(call.split(" -c ")[1].split()[0]).name for call in compiled) == sorted(
        path.name for path in source.glob("kpconv_ops/csrc/cuda/*.cu")
    )
    codes = [word.split("code=")[1] for word in compiled[0].split() if word.startswith("arch=")]
    assert codes == ["sm_86", "sm_90", "compute_90"]
    assert "-fPIC,-fvisibility=hidden" in compiled[0] and "-cudart static" in linked

    # An install without CUDA must not pick up the library of an earlier one.
    assert build(source, KPCONV_OPS_CUDA="0").returncode == 0
    assert not (source / "kpconv_ops" / "libkpconv_cuda.so").exists()


def test_a_compiler_that_fails_fails_the_build(source, tmp_path):
    assert build(source, **cuda_home(tmp_path, "exit 1")).returncode != 0
    assert not (source / "kpconv_ops" / "libkpconv_cuda.so").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"KPCONV_OPS_CUDA": "maybe"}, "KPCONV_OPS_CUDA must be auto, 1 or 0, got 'maybe'"),
        ({"TORCH_CUDA_ARCH_LIST": "hopper"}, "TORCH_CUDA_ARCH_LIST must look like '8.0;9.0+PTX', got 'hopper'"),
        ({"TORCH_CUDA_ARCH_LIST": "7.5"}, "TORCH_CUDA_ARCH_LIST must list 8.0 or later (bfloat16, TF32), got '7.5'"),
    ],
)
def test_wrong_settings_are_named(source, tmp_path, environment, message):
    built = build(source, **(cuda_home(tmp_path) | environment))
    assert built.returncode != 0 and message in built.stderr


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """tools/build_backend.py on a machine without any CUDA toolkit."""
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    import build_backend

    for name in ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "KPCONV_OPS_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build_backend.shutil, "which", lambda name: None)
    monkeypatch.setattr(build_backend.os, "access", lambda path, mode: str(path).startswith(str(tmp_path)))
    return build_backend


def test_the_toolkit_is_a_build_requirement_only_where_cuda_is_wanted_and_missing(backend, monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "_has_gpu", lambda: False)
    assert backend.get_requires_for_build_wheel() == []
    monkeypatch.setattr(backend, "_has_gpu", lambda: True)
    assert backend.get_requires_for_build_wheel() == [backend.TOOLKIT]
    assert backend.get_requires_for_build_editable() == [backend.TOOLKIT]
    monkeypatch.setenv("KPCONV_OPS_CUDA", "0")
    assert backend.get_requires_for_build_wheel() == []
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert backend.get_requires_for_build_wheel() == [backend.TOOLKIT]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert backend.find_nvcc() == str(tmp_path / "bin" / "nvcc")
    assert backend.get_requires_for_build_wheel() == []
