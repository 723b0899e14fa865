"""Building MinkowskiEngine 0.5.4 on the torch that is here: `dsp-sparse doctor --install-minkowski`."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

import torch

from .backbones.engines import build_engine
from .errors import UserError

REQUIREMENT = "MinkowskiEngine==0.5.4"
BUILD_TOOLS = ("setuptools>=77", "wheel", "ninja", "numpy")
LOG = Path("minkowski-install.log")
COMPATIBILITY = Path(__file__).parent / "minkowski_cuda"
INTRODUCTION = """\
{requirement} for {kind}, torch {torch} and Python {python}, into {prefix}
Hazard: the setup of this package runs `pip uninstall MinkowskiEngine -y` whenever pip asks for its metadata, even in a
dry run; after a bare `pip install MinkowskiEngine`, which fails, a copy that worked is gone. Here it finds no pip;
but for build tools (setuptools, wheel, ninja, numpy), nothing is installed until the wheel is whole.
The build takes {duration}. Log: {log}"""

DURATION = {"cpu": "about 10 minutes of one core", "cuda": "more than 23 minutes of one core"}


def install_minkowski(cuda: bool) -> int:
    """Build MinkowskiEngine, install it into the running Python's environment, and try it; in the main thread.

    A copy that works is left as it is. After a failure or an interruption the environment is as it was, but for the
    build tools (setuptools, wheel, ninja, numpy).

    Args:
        cuda: build it for CUDA too, not for the CPU alone.

    Returns:
        The exit code: 0, or 130 after SIGINT (Ctrl-C), SIGTERM or SIGHUP (a terminal that is closed).

    Raises:
        UserError: something is missing here, a working CPU build stands in the way of a CUDA build, or the build
            failed; then its last lines are on stderr and all of them in the log.
    """
    present = try_out()
    if present.returncode == 0:
        built_for = present.stdout.split()[-1]
        if cuda and built_for == "cpu":
            raise UserError(
                "MinkowskiEngine works already, built for the CPU alone: run `pip uninstall MinkowskiEngine` first"
            )
        print(f"MinkowskiEngine works already, built for {built_for}: left as it is")
        return 0
    if missing := [*missing_for_cpu(), *(missing_for_cuda() if cuda else [])]:
        raise UserError(f"MinkowskiEngine cannot be built here; missing: {'; '.join(missing)}")
    print(
        INTRODUCTION.format(
            requirement=REQUIREMENT,
            kind="CPU and CUDA" if cuda else "CPU",
            torch=torch.__version__,
            python=sysconfig.get_python_version(),
            prefix=sys.prefix,
            duration=DURATION["cuda" if cuda else "cpu"],
            log=LOG.absolute(),
        ),
        flush=True,
    )
    try:
        with (
            interruptible(),
            LOG.open("w", buffering=1) as log,
            tempfile.TemporaryDirectory(prefix="minkowski-") as folder,
        ):
            build_and_install(Path(folder), cuda, log)
    except subprocess.CalledProcessError as error:
        print(*LOG.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
        raise UserError(
            f"MinkowskiEngine was not installed: `{shlex.join(error.cmd[1:4])}` ended with code {error.returncode}; "
            f"its last lines are above, all of them in {LOG.absolute()}"
        ) from None
    except KeyboardInterrupt:
        print("interrupted: MinkowskiEngine was not installed", file=sys.stderr)
        return 130
    installed = try_out()
    if installed.returncode:
        reason = (installed.stderr.strip().splitlines() or [f"exit code {installed.returncode}"])[-1]
        raise UserError(f"MinkowskiEngine was built and installed, but does not work: {reason}")
    devices = "CPU and GPU" if cuda and torch.cuda.is_available() else "CPU"
    print(f"MinkowskiEngine works: on the {devices}, its convolution and gradients are those of the native engine")
    return 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first signal to end is a KeyboardInterrupt, so that the compilers end, too; more do not disturb that."""
    signals = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]

    def interrupt(*_) -> NoReturn:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)


def missing_for_cpu() -> list[str]:
    """What a CPU build lacks on this machine, each with a way to get it."""
    missing = []
    if not sys.platform.startswith("linux"):
        missing.append(f"Linux (this is {sys.platform})")
    if importlib.util.find_spec("pip") is None:
        missing.append("pip (python -m ensurepip)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("the headers of Python (apt-get install python3-dev, or equivalent)")
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        missing.append(f"a C++ compiler, here {compiler[0]!r} (apt-get install g++, or equivalent; or set CXX)")
    elif not compiles([*compiler, "-x", "c++"], ["cblas.h"], "openblas"):
        missing.append("OpenBLAS with its headers (apt-get install libopenblas-dev, or equivalent)")
    return missing


def missing_for_cuda() -> list[str]:
    """What a CUDA build lacks beside that."""
    if torch.version.cuda is None:
        return [f"a CUDA build of torch (this is {torch.__version__}; without --cuda it is built for the CPU)"]
    missing = []
    if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        missing.append("a GPU, or the setting for which to build (for example TORCH_CUDA_ARCH_LIST=9.0)")
    home = cuda_home()
    nvcc = shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None:
        return [*missing, f"nvcc of CUDA {torch.version.cuda} (none in {home}/bin; set CUDA_HOME to a CUDA toolkit)"]
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.\d+", text)
    major = torch.version.cuda.partition(".")[0]
    if release is None or release[1] != major:
        found = release[0] if release else "no release"
        missing.append(f"nvcc of CUDA {major}, which this torch was built for ({nvcc} says {found}; set CUDA_HOME)")
    # The C++ compiler reads them, too: of nvcc alone one may have an alias on the path, and the rest elsewhere.
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    compiler += ["-x", "c++", f"-I{home}/include", f"-I{home}/include/cccl", f"-L{home}/lib64"]
    headers = ("cuda_runtime.h", "thrust/host_vector.h", "cusparse.h", "cublas_v2.h", "cusolverDn.h")
    if shutil.which(compiler[0]) and not compiles(compiler, headers, "cusparse"):
        missing.append(
            f"a whole CUDA toolkit with thrust, cuSPARSE, cuBLAS and cuSOLVER (not in {home}; set CUDA_HOME, or add "
            "folders with CPATH and LIBRARY_PATH)"
        )
    return missing


def cuda_home() -> str:
    """The folder of the CUDA toolkit, found as torch finds it."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return home
    nvcc = shutil.which("nvcc")
    return str(Path(nvcc).parents[1]) if nvcc else "/usr/local/cuda"


def compiles(command: list[str], headers: Iterable[str], library: str) -> bool:
    """Whether a program with these headers and this library can be compiled and linked."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.cpp"
        program.write_text("".join(f"#include <{header}>\n" for header in headers) + "int main() { return 0; }\n")
        command = [*command, str(program), "-o", f"{folder}/program", f"-l{library}"]
        return subprocess.run(command, capture_output=True).returncode == 0


def build_and_install(folder: Path, cuda: bool, log: TextIO) -> None:
    """Get the build tools, build the wheel in `folder`, install it. CalledProcessError: the step that failed."""
    pip = [sys.executable, "-m", "pip"]
    run_logged([*pip, "install", *BUILD_TOOLS], os.environ, log)
    run_logged([*pip, *wheel_arguments(folder, cuda)], build_environment(folder, cuda), log)
    wheels = [str(wheel) for wheel in folder.glob("*.whl")]
    run_logged([*pip, "install", "--no-deps", "--no-index", "--force-reinstall", *wheels], os.environ, log)


def wheel_arguments(folder: Path, cuda: bool) -> list[str]:
    """How pip builds the wheel.

    Without `--blas` the setup looks for BLAS with a module that numpy no longer has. A cached wheel may be one that was
    built on another torch, which it would crash with.
    """
    options = f"--blas=openblas {'--force_cuda' if cuda else '--cpu_only'}"
    arguments = ["wheel", "--verbose", "--no-deps", "--no-cache-dir", "--no-binary", "MinkowskiEngine"]
    # The setup needs the torch it is built on; without PEP 517 pip drops the settings.
    arguments += ["--no-build-isolation", "--use-pep517", f"--config-settings=--global-option={options}"]
    return [*arguments, "--wheel-dir", str(folder), REQUIREMENT]


def build_environment(folder: Path, cuda: bool) -> dict[str, str]:
    """The environment of the build: its `pip` does nothing, `ninja` is found, compilers find what CUDA moved."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "pip").write_text("#!/bin/sh\n# in place of the uninstallation that MinkowskiEngine's setup asks for\n")
    (tools / "pip").chmod(0o755)
    path = os.pathsep.join([str(tools), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "TMPDIR": str(folder)}
    if cuda:
        ours = f"-I{COMPATIBILITY} -include {COMPATIBILITY / 'compat.h'}"
        environment["NVCC_PREPEND_FLAGS"] = f"{ours} {os.environ.get('NVCC_PREPEND_FLAGS', '')}".strip()
        # Since CUDA 13 thrust lies in a folder of its own, where nvcc looks for it, but not the C++ compiler.
        headers = [f"{cuda_home()}/include/cccl", *filter(None, [os.environ.get("CPLUS_INCLUDE_PATH")])]
        environment |= {"CUDA_HOME": cuda_home(), "CPLUS_INCLUDE_PATH": os.pathsep.join(headers)}
    return environment


def run_logged(command: list[str], environment: dict[str, str], log: TextIO) -> None:
    """Run a command with its output in the log; show how many files are compiled. CalledProcessError: it failed."""
    log.write(f"$ {shlex.join(command)}\n")
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own, compilers included
    )
    try:
        for line in process.stdout:
            log.write(line)
            if step := re.match(r"\s*\[(\d+)/(\d+)\] ", line):
                print(f"  {step[1]} of {step[2]} steps, {time.monotonic() - start:.0f} s", flush=True)
        code = process.wait()
    except BaseException:
        with contextlib.suppress(subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)  # pip takes back what it has begun to install
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def try_out() -> subprocess.CompletedProcess:
    """Run `convolve` in a Python of its own: what a broken installation does there, a crash too, stays there."""
    code = "from dsp_sparse.minkowski_install import convolve; print(convolve())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def convolve() -> str:
    """Convolve a small cloud with MinkowskiEngine and with the native engine, and differentiate.

    Returns:
        What MinkowskiEngine was built for: `cpu` or `cuda`.

    Raises:
        UserError: MinkowskiEngine is not installed, or cannot be imported.
        AssertionError: results or gradients differ.
    """
    from .backbones.engines import minkowski

    built_for = "cuda" if minkowski.load().is_cuda_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 3, generator=generator)
    features = torch.rand(300, 8, generator=generator)
    kernel = torch.rand(27, 8, 6, generator=generator)
    for device in {"cpu", "cuda" if built_for == "cuda" and torch.cuda.is_available() else "cpu"}:
        offsets = torch.tensor([0, 200, 300], device=device)
        weights = kernel.to(device).requires_grad_()
        results = []
        for engine in map(build_engine, ("native", "minkowski")):
            grid, inverse = engine.quantize(points.to(device), offsets, 0.1)
            x = engine.average(features.to(device), inverse, grid).requires_grad_()
            y = engine.conv(x, weights, engine.kernel_map(grid, grid, kernel_size=3))
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, weights))))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    return built_for
