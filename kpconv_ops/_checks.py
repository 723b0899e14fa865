"""Argument checks that the operators share. Each error names the argument, what it was and what was expected."""

import math
import numbers
import operator

import torch
from torch import Tensor

COORDINATE_DTYPES = (torch.float32, torch.float64)
FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple, like: Tensor | None = None):
    """A dense tensor; shape (None: any size), dtype and, with `like`, device of one tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {_short(tensor.layout)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(_short, dtypes))}, got {_short(tensor.dtype)}")
    fits = tensor.dim() == len(shape) and all(
        want is None or want == size for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(tensor.shape)}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")


def check_points(name: str, points: Tensor, offsets_name: str, offsets: Tensor, like: Tensor | None = None):
    """Packed points `[N, 3]` with their offsets `[B + 1]`; with `like`, of its dtype and on its device."""
    check_tensor(name, points, (None, 3), COORDINATE_DTYPES if like is None else (like.dtype,), like)
    check_tensor(offsets_name, offsets, (None,), (torch.int64,), points)


def check_positive(name: str, value: float) -> float:
    """A positive, finite number, also of numpy's types; as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not 0 < value < math.inf:  # not math.isfinite: torch.compile cannot trace it
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def check_length(name: str, value: float, dtype: torch.dtype) -> float:
    """A positive number whose square the dtype can hold; as a float."""
    value, limits = check_positive(name, value), torch.finfo(dtype)
    if not limits.tiny <= value * value <= limits.max:
        raise ValueError(f"{name} must have a square between {limits.tiny:.3g} and {limits.max:.3g}, got {value}")
    return value


def check_count(name: str, value: int) -> int:
    """A positive whole number that fits int32, also of numpy's types; as an int."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 1 <= value < 2**31:
        raise ValueError(f"{name} must be at least 1 and less than 2^31, got {value}")
    return operator.index(value)


def check_size(name: str, value: int):
    """A number of rows. It has no upper limit: torch.compile could not tell of every size whether it keeps it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]):
    """One of some words."""
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_row_count(name: str, points: Tensor):
    """Few enough rows for int32."""
    if len(points) >= 2**31:
        raise ValueError(f"{name} must have fewer than 2^31 rows, got {len(points)}")


def offset_bounds(name: str, offsets: Tensor, rows: int) -> list[int]:
    """The offsets as Python integers (waits for the device), after checking that they describe `rows` rows."""
    bounds = offsets.tolist()
    if not bounds or bounds[0] != 0 or bounds[-1] != rows or any(map(int.__gt__, bounds, bounds[1:])):
        raise ValueError(f"{name} must rise from 0 to {rows}, got {bounds}")
    return bounds


def _short(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")
