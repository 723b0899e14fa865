"""Argument checks that the operators share. Each error names the argument, what it was and what was expected."""

import math

import torch
from torch import Tensor

COORDINATE_DTYPES = (torch.float32, torch.float64)
FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple, like: Tensor | None = None):
    """Shape (None: any size), dtype and, with `like`, device of one tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(_dtype_name, dtypes))}, got {_dtype_name(tensor.dtype)}")
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
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


def check_positive(name: str, value: float):
    """A positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
