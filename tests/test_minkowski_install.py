"""`dsp-sparse doctor --install-minkowski` without the ten minutes: real subprocesses, stubs at the other end."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dsp_sparse import minkowski_install
from dsp_sparse.cli import main

# In place of Python: notes its arguments, does what pip and the trial of MinkowskiEngine would do.
PYTHON = """\
#!/bin/sh
echo "$*" >> calls
case "$*" in
-c*) test -e installed && echo "$(cat installed)" ;;
*"pip wheel "*)
    env > environment
    pip uninstall MinkowskiEngine -y || exit 9  # as its setup does
    echo "  Preparing metadata"
    echo "  [1/2] c++ one.cpp"
    {outcome}
    echo "  [2/2] c++ two.cpp"
    for last in "$@"; do previous=$folder; folder=$last; done
    touch "$previous/minkowskiengine-0.5.4.whl" ;;
*" --no-index "*) for last in "$@"; do :; done; test -e "$last" && echo {built_for} > installed ;;
esac
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory on a machine with all that a CPU build takes, and a stub in place of Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "cxx", "#!/bin/sh\nexit 0\n")))
    script(tmp_path / "bin" / "pip", "#!/bin/sh\necho pip >> calls\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    real = minkowski_install.sysconfig.get_path
    monkeypatch.setattr(
        minkowski_install.sysconfig, "get_path", lambda name: str(headers) if name == "include" else real(name)
    )
    stub(tmp_path, monkeypatch)
    return tmp_path


def stub(folder, monkeypatch, outcome=":", built_for="cpu"):
    text = PYTHON.replace("{outcome}", outcome).replace("{built_for}", built_for)
    monkeypatch.setattr(sys, "executable", str(script(folder / "bin" / "python", text)))


def doctor(*arguments) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["doctor", *arguments])
    return exit.value.code


def calls(folder) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_cpu_build(folder, capsys):
    """Tools, wheel, installation, trial, in this order; the setup that uninstalls the package finds a pip that does
    nothing; the steps of the compilation are shown and the whole output is in the log that is named."""
    assert doctor("--install-minkowski") == 0
    first, tools, wheel, install, last = calls(folder)
    assert first == last and "convolve()" in first
    assert shlex.split(tools) == ["-m", "pip", "install", "setuptools>=77", "wheel", "ninja", "numpy"]
    assert "--no-build-isolation --use-pep517 --config-settings=--global-option=--blas=openblas --cpu_only" in wheel
    assert "--no-cache-dir" in wheel and wheel.endswith(" MinkowskiEngine==0.5.4")
    assert "--no-index --force-reinstall" in install and install.endswith("minkowskiengine-0.5.4.whl")
    printed = capsys.readouterr().out
    assert "Hazard" in printed and "pip uninstall MinkowskiEngine -y" in printed and "10 minutes" in printed
    assert "1 of 2 steps" in printed and "2 of 2 steps" in printed
    log = folder / "minkowski-install.log"
    assert str(log) in printed and "[1/2] c++ one.cpp" in log.read_text()
    assert "MinkowskiEngine works: on the CPU" in printed
    environment = (folder / "environment").read_text()
    (temporary,) = re.findall(r"^TMPDIR=(.*)$", environment, re.MULTILINE)
    assert f"--wheel-dir {temporary} " in wheel and not Path(temporary).exists(), "all that the build leaves is gone"
    assert "NVCC_PREPEND_FLAGS" not in environment


@pytest.mark.parametrize(("built_for", "arguments"), [("cpu", []), ("cuda", []), ("cuda", ["--cuda"])])
def test_a_copy_that_works_is_left_as_it_is(folder, built_for, arguments, capsys):
    (folder / "installed").write_text(built_for)
    assert doctor("--install-minkowski", *arguments) == 0
    assert len(calls(folder)) == 1, "the trial, nothing else"
    assert "left as it is" in capsys.readouterr().out


def one_line(capsys) -> str:
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and message.startswith("dsp-sparse doctor: error: ")
    return message


def test_a_cpu_build_that_works_is_not_replaced_by_a_cuda_build(folder, capsys):
    (folder / "installed").write_text("cpu")
    assert doctor("--install-minkowski", "--cuda") == 2
    assert len(calls(folder)) == 1
    assert "pip uninstall MinkowskiEngine" in one_line(capsys)


def test_cuda_alone_is_a_mistake(folder, capsys):
    assert doctor("--cuda") == 2
    assert "--install-minkowski" in one_line(capsys)


def no_headers(folder, monkeypatch):
    (folder / "include" / "Python.h").unlink()


def no_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", str(folder / "none"))


def no_blas(folder, monkeypatch):
    script(folder / "bin" / "cxx", '#!/bin/sh\ncase "$*" in *-lopenblas) exit 1 ;; esac\n')


def no_pip(folder, monkeypatch):
    real = minkowski_install.importlib.util.find_spec
    monkeypatch.setattr(
        minkowski_install.importlib.util, "find_spec", lambda name: None if name == "pip" else real(name)
    )


@pytest.mark.parametrize(
    ("lack", "expected"),
    [
        (no_headers, ["headers of Python", "python3-dev"]),
        (no_compiler, ["C++ compiler", "none", "g++"]),
        (no_blas, ["OpenBLAS", "apt-get install libopenblas-dev"]),
        (no_pip, ["pip", "ensurepip"]),
    ],
)
def test_what_a_cpu_build_lacks_is_named_before_anything_is_done(lack, expected, folder, monkeypatch, capsys):
    lack(folder, monkeypatch)
    assert doctor("--install-minkowski") == 2
    message = one_line(capsys)
    assert all(word in message for word in expected)
    assert len(calls(folder)) == 1 and not (folder / "minkowski-install.log").exists()


def test_everything_that_is_missing_is_named_at_once(folder, monkeypatch, capsys):
    no_blas(folder, monkeypatch)
    no_headers(folder, monkeypatch)
    assert doctor("--install-minkowski") == 2
    message = one_line(capsys)
    assert "libopenblas-dev" in message and "python3-dev" in message


NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n"


@pytest.fixture
def cuda(folder, monkeypatch):
    """A toolkit and a torch of CUDA 13, on a machine without a GPU."""
    script(folder / "cuda" / "bin" / "nvcc", NVCC.format(release="13.0"))
    monkeypatch.setenv("CUDA_HOME", str(folder / "cuda"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


def test_cuda_build(cuda, monkeypatch, capsys):
    """nvcc reads the header that gives back what CUDA 13 took away, ahead of everything else and of the flags that the
    user has set; the header is there."""
    stub(cuda, monkeypatch, built_for="cuda")
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-lineinfo")
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", "/mine")
    assert doctor("--install-minkowski", "--cuda") == 0
    assert "--blas=openblas --force_cuda" in calls(cuda)[2]
    environment = dict(line.partition("=")[::2] for line in (cuda / "environment").read_text().splitlines())
    search, include, header, rest = environment["NVCC_PREPEND_FLAGS"].split(" ")
    assert (include, rest) == ("-include", "-lineinfo")
    assert environment["CUDA_HOME"] == str(cuda / "cuda")
    assert environment["CPLUS_INCLUDE_PATH"] == f"{cuda / 'cuda' / 'include' / 'cccl'}:/mine"
    assert Path(header).is_file() and Path(search.removeprefix("-I"), "cudf/detail/nvtx/ranges.hpp").is_file()
    assert "for CPU and CUDA" in capsys.readouterr().out


def cpu_torch(folder, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)


def no_nvcc(folder, monkeypatch):
    (folder / "cuda" / "bin" / "nvcc").unlink()


def other_nvcc(folder, monkeypatch):
    script(folder / "cuda" / "bin" / "nvcc", NVCC.format(release="12.4"))


def no_cusparse(folder, monkeypatch):
    script(folder / "bin" / "cxx", '#!/bin/sh\ncase "$*" in *-lcusparse) exit 1 ;; esac\n')


def no_target(folder, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")


@pytest.mark.parametrize(
    ("lack", "expected"),
    [
        (cpu_torch, ["CUDA build of torch", torch.__version__]),
        (no_nvcc, ["nvcc of CUDA 13.0", "CUDA_HOME"]),
        (other_nvcc, ["nvcc of CUDA 13", "release 12.4"]),
        (no_cusparse, ["cuSPARSE", "CPATH"]),
        (no_target, ["TORCH_CUDA_ARCH_LIST=9.0"]),
    ],
)
def test_what_a_cuda_build_lacks_is_named_before_anything_is_done(lack, expected, cuda, monkeypatch, capsys):
    lack(cuda, monkeypatch)
    assert doctor("--install-minkowski", "--cuda") == 2
    message = one_line(capsys)
    assert all(word in message for word in expected)
    assert len(calls(cuda)) == 1 and not (cuda / "minkowski-install.log").exists()


def test_a_build_that_fails_shows_its_last_lines_and_installs_nothing(folder, monkeypatch, capsys):
    stub(folder, monkeypatch, outcome="for i in $(seq 30); do echo line $i; done; echo 'fatal error: no luck'; exit 3")
    assert doctor("--install-minkowski") == 2
    *shown, message = capsys.readouterr().err.strip().splitlines()
    assert "fatal error: no luck" in shown and "line 30" in shown and "line 1" not in shown
    log = folder / "minkowski-install.log"
    assert "`-m pip wheel` ended with code 3" in message and str(log) in message
    assert "line 1\n" in log.read_text()
    assert not (folder / "installed").exists() and "--no-index" not in calls(folder)[-1]


def test_an_installation_that_does_not_work_is_an_error_with_its_reason(folder, monkeypatch, capsys):
    text = PYTHON.replace("{outcome}", ":").replace("{built_for}", "cpu")
    text = text.replace("-c*) ", "-c*) echo 'undefined symbol: f' >&2; exit 1; ")
    monkeypatch.setattr(sys, "executable", str(script(folder / "bin" / "python", text)))
    assert doctor("--install-minkowski") == 2
    assert "does not work: undefined symbol: f" in one_line(capsys)


@pytest.mark.parametrize("mistake", ["--install-minkowsk", "--install", "--install-minkowsky"])
def test_a_misspelt_flag_builds_nothing(folder, mistake, capsys):
    assert doctor(mistake) == 2
    assert mistake in one_line(capsys) and not calls(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_an_interruption_ends_the_compilers_and_leaves_nothing(number, folder, monkeypatch, tmp_path_factory):
    """Ctrl-C, an end or a closed terminal while it compiles, and once more at once: exit code 130, no compiler left, no
    temporary folder, nothing installed."""
    stub(folder, monkeypatch, outcome="trap 'sleep 1' INT; echo $$ > compiler; sleep 60 & wait; exit 1")
    temporary = tmp_path_factory.mktemp("temporary")
    code = (
        "import sys; python, sys.executable = sys.executable, sys.argv[1]\n"
        "from pathlib import Path; from dsp_sparse import minkowski_install\n"
        "minkowski_install.missing_for_cpu = list\n"
        "sys.exit(minkowski_install.install_minkowski(cuda=False))"
    )
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])}
    python = minkowski_install.shutil.which("python3", path=sys.prefix + "/bin")
    command = [python, "-c", code, sys.executable]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    compiler = folder / "compiler"
    deadline = time.monotonic() + 60
    while not (compiler.exists() and compiler.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted: MinkowskiEngine was not installed" in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(compiler.read_text()), 0)
    assert not list(temporary.iterdir()) and not (folder / "installed").exists()


@pytest.mark.skipif(importlib.util.find_spec("MinkowskiEngine") is None, reason="MinkowskiEngine is not installed")
def test_an_installed_copy_works():
    """In a Python of its own, as after an installation."""
    done = minkowski_install.try_out()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] in ("cpu", "cuda")


# What MinkowskiEngine's CUDA sources do that today's toolkits no longer let them.
OLD_CUDA = """
#include <cudf/detail/nvtx/ranges.hpp>
template <typename Key, typename Element, typename Hasher, typename Equality, typename Allocator>
class concurrent_unordered_map {};
using map_type = concurrent_unordered_map<int, int, int, int, thrust::pair<int, int>>;

struct twice : thrust::unary_function<int, int> {
  __host__ __device__ int operator()(int x) const { return 2 * x; }
};

int algorithms(thrust::device_vector<int> &v) {
  thrust::sequence(thrust::device, v.begin(), v.end());
  thrust::sort(thrust::device, v.begin(), v.end());
  thrust::remove(thrust::device, v.begin(), v.end(), 1);
  thrust::unique(thrust::device, v.begin(), v.end());
  return thrust::reduce(thrust::device, v.begin(), v.end());
}

std::shared_ptr<map_type> share(std::unique_ptr<map_type> map) { return std::shared_ptr<map_type>(std::move(map)); }

cudaError_t fetch(void *memory, cudaStream_t stream) {
  CUDF_FUNC_RANGE();
  return cudaMemPrefetchAsync(memory, 8, 0, stream);
}

long rows(at::Tensor const &x) { return x.size(0); }
"""


@pytest.mark.slow
@pytest.mark.skipif(minkowski_install.shutil.which("nvcc") is None, reason="no nvcc")
def test_the_header_gives_back_what_cuda_took_away(tmp_path):
    """With it a source like MinkowskiEngine's compiles; with the headers that such a source includes it does not."""
    source = tmp_path / "old.cu"
    source.write_text(OLD_CUDA)
    torch_headers = Path(torch.__file__).parent / "include"
    command = ["nvcc", "-std=c++20", "-arch=sm_80", f"-I{torch_headers}", "-c", str(source)]
    command += ["-o", str(tmp_path / "old.o"), f"-I{minkowski_install.COMPATIBILITY}"]
    with_header = subprocess.run([*command, "-include", "compat.h"], capture_output=True, text=True)
    assert with_header.returncode == 0, with_header.stderr
    for header in ("memory", "thrust/device_vector.h", "ATen/core/Tensor.h"):
        command += ["-include", header]
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_the_trial_compares_with_the_native_engine(monkeypatch):
    """What `convolve` accepts is an engine with the native results, and nothing else."""
    from dsp_sparse.backbones.engines import NativeEngine, minkowski

    class Twice(NativeEngine):
        def conv(self, *arguments):
            return 2 * super().conv(*arguments)

    class Built:
        @staticmethod
        def is_cuda_available() -> bool:
            return False

    monkeypatch.setattr(minkowski, "load", lambda: Built)
    monkeypatch.setattr(minkowski_install, "build_engine", lambda name: NativeEngine())
    assert minkowski_install.convolve() == "cpu"
    engines = {"native": NativeEngine, "minkowski": Twice}
    monkeypatch.setattr(minkowski_install, "build_engine", lambda name: engines[name]())
    with pytest.raises(AssertionError):
        minkowski_install.convolve()
