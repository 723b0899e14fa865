"""Rows of a benchmark: one operation, and the implementations that are measured on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .measure import Call

OURS = "ours"


def as_is(result):
    return result


@dataclass(frozen=True)
class Contender:
    """An implementation.

    Args:
        name: as shown; `OURS` for ours.
        setup: imports and converts what the call needs, untimed; returns the call that is measured. Raises
            ModuleNotFoundError when the library is not installed.
        plain: brings a result into the form in which results of the row are compared, untimed; None for one that
            cannot be compared.
        on_cpu: whether it runs on the CPU whatever device the others run on.
    """

    name: str
    setup: Callable[[], Call]
    plain: Callable[[Any], Any] = as_is
    on_cpu: bool = False


@dataclass(frozen=True)
class Work:
    """What an operation cannot do without: its dense products, and its inputs and results moved once each."""

    flops: float
    bytes: float
    dtype: str = "float32"

    def seconds(self, machine: dict) -> float:
        """The time that takes, were the other of the two free, at the rates of `measure.machine`."""
        return max(self.flops / machine[self.dtype], self.bytes / machine["copy"])


@dataclass(frozen=True)
class Row:
    """An operation.

    Args:
        name: as shown.
        work: gives the work, for the floor; it may take as long as a call.
        contenders: ours first.
        tolerance: largest difference of a result from ours; beyond it the implementation does not do the same.
        difference: how much two plain results differ.
        whole_process: whether the peak memory of the whole process is stated too, imports and weights included.
        amount: what a call gets done, in units of the rate that is stated; 0: none is.
        unit: unit of that rate, like "batches/s".
    """

    name: str
    work: Callable[[], Work]
    contenders: list[Contender]
    tolerance: float = 1e-3
    difference: Callable[[Any, Any], float] = field(default=lambda ours, other: tensors_differ(ours, other))
    whole_process: bool = False
    amount: float = 0
    unit: str = ""


def tensors_differ(ours: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """The worst of the tensors: norm of the difference over the norm; of integers the share that differ.

    Not the largest difference: where a pair of points lies at the very end of the influence, rounding decides whether
    it adds to the gradient of an offset.
    """
    worst = 0.0
    for a, b in zip(ours, other, strict=True):
        b = b.to(a.device)
        if a.shape != b.shape:
            return float("inf")
        if not a.is_floating_point():
            worst = max(worst, (a != b).double().mean().item() if a.numel() else 0.0)
        elif a.numel():
            worst = max(worst, ((a - b).double().norm() / a.double().norm().clamp(min=1e-30)).item())
    return worst


def edges_differ(ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Share of neighbour pairs that one of two `(indices, splits)` has alone, the order within a row left aside."""

    def pairs(indices, splits):
        rows = torch.arange(len(splits) - 1, device=splits.device).repeat_interleave(splits.diff())
        return (rows << 32 | indices.long()).cpu()

    both, counts = torch.cat([pairs(*ours), pairs(*other)]).unique(return_counts=True)
    return (counts == 1).sum().item() / max(len(both), 1)
