"""The two native libraries: loading, C signatures, calls.

`libkpconv_cpu.so` is loaded at import, `libkpconv_cuda.so` at its first use. Their signatures are read from
`csrc/api.h`, the header the libraries themselves are compiled with.
"""

import contextlib
import ctypes
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent
_C_TYPES = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "double": ctypes.c_double}
_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.int64: 4}


def signatures(header: str, suffix: str = "_cuda") -> dict[str, list]:
    """The ctypes argument types of every `KP_OP(name)(arguments);` in the text of api.h, or KP_CPU_OP or KP_CUDA_OP."""
    code = re.sub(r"//[^\n]*", "", header)
    macro = rf"KP_(?:{suffix[1:].upper()}_)?OP"
    return {
        name: [ctypes.c_void_p if "*" in each else _C_TYPES[each.split()[0]] for each in arguments.split(",")]
        for name, arguments in re.findall(rf"{macro}\((\w+)\)\(([^)]*)\);", code)
    }


def _load(path: Path, suffix: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, arguments in signatures((_FOLDER / "csrc" / "api.h").read_text(), suffix).items():
        function = getattr(library, name + suffix, None)
        if function is None:
            raise ImportError(f"{path} is older than api.h: it lacks {name}{suffix}, build it anew")
        function.argtypes, function.restype = arguments, ctypes.c_int
        setattr(library, name, function)
    library.last_error = getattr(library, "kp_last_error" + suffix)
    library.last_error.restype = ctypes.c_char_p
    return library


def _load_cpu() -> ctypes.CDLL:
    path = _FOLDER / "libkpconv_cpu.so"
    if not path.exists():
        raise ImportError(
            f"{path} is missing. In the source folder, which hides an installed package, run `pip install -e .` or "
            "`python setup.py build_ext --inplace`; or run Python in another folder"
        )
    library = _load(path, "_cpu")
    # Threads come from torch's pool, so that torch.set_num_threads rules. A torch that does not offer it: one thread.
    with contextlib.suppress(OSError, AttributeError):
        torch_library = next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"), "")
        parallel_for = ctypes.CDLL(str(torch_library)).torch_parallel_for
        library.kp_set_parallel_for_cpu.argtypes = [ctypes.c_void_p]
        library.kp_set_parallel_for_cpu.restype = None
        library.kp_set_parallel_for_cpu(ctypes.cast(parallel_for, ctypes.c_void_p))
    return library


def _load_cuda(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise RuntimeError(
            "kpconv_ops was built without its CUDA library: move the tensors to the CPU, or run "
            "`KPCONV_OPS_CUDA=1 pip install --no-deps --force-reinstall .` in its source folder"
        )
    library = _load(path, "_cuda")
    _check_cuda_version(library.kp_runtime_version_cuda())
    return library


def _check_cuda_version(built: int) -> None:
    """Warn when torch was built with another major version (`built`: 1000 * major + 10 * minor, 0 for the emulator)."""
    if built and torch.version.cuda and built // 1000 != int(torch.version.cuda.split(".")[0]):
        built_name = f"{built // 1000}.{built % 1000 // 10}"
        warnings.warn(
            f"kpconv_ops was built with CUDA {built_name}, torch with CUDA {torch.version.cuda}: "
            "if the driver supports only one of them, reinstall kpconv_ops with that CUDA toolkit",
            stacklevel=2,
        )


CUDA_LIBRARY = _FOLDER / "libkpconv_cuda.so"
_cpu = _load_cpu()
_cuda: ctypes.CDLL | None = None
_emulated: ctypes.CDLL | None = None


def _cuda_library() -> ctypes.CDLL:
    global _cuda
    if _cuda is None:
        _cuda = _load_cuda(CUDA_LIBRARY)
    return _cuda


@contextlib.contextmanager
def emulated_cuda(path: Path) -> Iterator[None]:
    """Inside, CPU tensors take the CUDA road through the emulator-built library at `path` (csrc/cuda_on_cpu.h)."""
    global _emulated
    _emulated = _load_cuda(Path(path))
    try:
        yield
    finally:
        _emulated = None


def on_cuda(tensor: Tensor) -> bool:
    """Whether `call` runs the CUDA library for this tensor. Code that differs by device asks this."""
    return tensor.is_cuda or _emulated is not None


def call(name: str, device_of: Tensor, *arguments: Tensor | float | torch.dtype | None, owner: str = "nb") -> None:
    """Call operator `name` of the library for the device of tensor `device_of`, on its current stream.

    Tensors go as pointers (contiguous, on that device), dtypes as codes, None as a null pointer.
    Raises ValueError for rows that point outside their array, `owner` being what Python calls their neighbourhoods;
    otherwise, when the operator fails, RuntimeError with the library's message.
    """
    values = [_as_c(argument, device_of.device) for argument in arguments]
    if device_of.is_cuda:
        library, device = _cuda_library(), device_of.get_device()
        stream = torch.cuda.current_stream(device).cuda_stream
    else:
        library, device, stream = _emulated or _cpu, -1, None
    if getattr(library, name)(*values, device, stream):
        message = library.last_error().decode()
        argument, _, expected = message.partition(" ")
        if argument in ("indices", "splits"):
            raise ValueError(f"{owner}.{message}")
        if argument == "rows":
            raise ValueError(f"rows of kernel_map {expected}")
        raise RuntimeError(f"{name}: {message}")


def _as_c(argument, device: torch.device):
    if isinstance(argument, Tensor):
        if argument.device != device or not argument.is_contiguous():
            raise RuntimeError(f"native operators need contiguous tensors on {device}")
        return argument.data_ptr()
    return _DTYPE_CODES[argument] if isinstance(argument, torch.dtype) else argument
