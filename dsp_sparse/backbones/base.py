"""The feature interface: a network that can be cut at its tap and decoded several times."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..ragged import Ragged

P, R = ParamSpec("P"), TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of what `torch.compile` runs as it is, in a break of its graph.

    `torch.compiler.disable` itself loads the compiler, which takes as long as loading torch.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class TapInfo:
    """What reallocation needs to know of the tap.

    Args:
        channels: features per tap point, K.
        stride: spacing of the tap points in input grid cells (1, 2, 4, …).
        out_channels: logits per input point, the number of classes.
    """

    channels: int
    stride: int
    out_channels: int


class TapBackbone(nn.Module, ABC):
    """A segmentation network `f = f_dec ∘ f_enc`, cut at its tap (after the first upsampling stage by default).

    `decode` is re-entrant and leaves `state` untouched, so that the plain and the reallocated features of one
    encoding share one state. Rows never leak between the samples of a batch.
    """

    tap: TapInfo

    @abstractmethod
    def geometry(self, batch: Ragged) -> Any:
        """Everything that depends on coordinates alone (neighbourhoods, kernel maps); no gradient, no parameter.

        Raises:
            UserError: a coordinate that is not finite.
        """

    @abstractmethod
    def encode(self, batch: Ragged, geometry: Any = None) -> tuple[Ragged, Any]:
        """Run `f_enc`.

        Args:
            batch: N points with `in_channels` features.
            geometry: result of `geometry(batch)`; computed here when omitted.

        Returns:
            The tap: M points with `tap.channels` features and their coordinates; and the state `decode` needs.

        Raises:
            UserError: another number of features, or a coordinate that is not finite.
        """

    @abstractmethod
    def decode(self, features: Tensor, state: Any) -> Tensor:
        """Run `f_dec` on `[M, tap.channels]` features at the tap: `[N, tap.out_channels]` logits in input order."""

    def regularization(self, state: Any, rows: Sequence[int] | None = None) -> Tensor | None:
        """A scalar that the encoding of `state` adds to a training loss; None if the network has no such term.

        Args:
            state: what `encode` returned.
            rows: `regularized_rows` of the whole of which this batch is a part: the terms of the parts add up to that
                of the whole. None: this batch is the whole.
        """
        return None

    def regularized_rows(self, geometry: Any) -> list[int]:
        """How many rows each mean in the regularisation is taken over."""
        return []

    def offset_parameters(self) -> list[nn.Parameter]:
        """Parameters that move kernel points: they train with a smaller learning rate than the others."""
        return []

    def forward(self, batch: Ragged, geometry: Any = None) -> Tensor:
        """`[N, tap.out_channels]` logits, one row an input point, in input order."""
        tap, state = self.encode(batch, geometry)
        return self.decode(tap.feat, state)


def check_coordinates(batch: Ragged) -> None:
    """Raise a UserError that names the first row whose coordinate is NaN or infinite."""
    finite = torch.isfinite(batch.coord).all(dim=1)
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise UserError(f"coord must be finite, got {batch.coord[row].tolist()} in row {row}")


def check_channels(batch: Ragged, in_channels: int) -> None:
    """Raise a UserError unless the points carry the features that the network was built for."""
    if batch.feat.shape[1] != in_channels:
        raise UserError(f"feat must have {in_channels} channels (in_channels), got {batch.feat.shape[1]}")


def check_tap_stage(tap_stage: int, stages: int) -> None:
    """Raise a UserError unless `tap_stage` counts decoder stages of a network that has `stages` of them."""
    if not 0 <= tap_stage <= stages:
        raise UserError(f"tap_stage must be from 0 (bottleneck) to {stages} (last decoder stage), got {tap_stage}")
