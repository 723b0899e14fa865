"""Nearest upsampling: every point takes the features of one coarser point."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _native
from ._checks import FEATURE_DTYPES, check_size, check_tensor
from .neighbors import Neighbors, gradient_gather


@dataclass(frozen=True, eq=False)
class Upsampling:
    """Which of `num_supports` coarser points each point takes its features from, to be used in many layers.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, a negative number of supports. `transposed` raises it, on the CPU, for rows outside
            [0, num_supports).
    """

    rows: Tensor  # [N] int64
    num_supports: int
    _transposed: list[Neighbors] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        check_tensor("rows", self.rows, (None,), (torch.int64,))
        check_size("num_supports", self.num_supports)

    @property
    def transposed(self) -> Neighbors:
        """For every coarser point the points that take its features, ascending. Computed once."""
        if not self._transposed:
            splits = torch.arange(len(self.rows) + 1, device=self.rows.device)
            try:
                self._transposed.append(Neighbors(self.rows.int(), splits, self.num_supports).transposed)
            except ValueError:  # it would speak of indices
                raise _rows_outside(self.num_supports) from None
        return self._transposed[0]


def upsample(features: Tensor, rows: Tensor | Upsampling) -> Tensor:
    """`features[rows]`, with a gradient that is the same on every run.

    The gradient of a coarser point is the sum over the points that took its features, in ascending order, formed in
    float32 (float64 for float64 features).

    Args:
        features: `[M, C]` of the coarser points; float32, float64, float16 or bfloat16.
        rows: `[N]` int64 in [0, M), for example from `nearest`; or an `Upsampling`, from `pyramid`, which remembers
            what the gradient needs.

    Returns:
        `[N, C]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, an upsampling from other points or, on the CPU, a row outside [0, M).
    """
    check_tensor("features", features, (None, None), FEATURE_DTYPES)
    if not isinstance(rows, Upsampling):
        rows = Upsampling(rows, len(features))
    if rows.num_supports != len(features):
        raise ValueError(f"rows must be rows of {len(features)} features, got rows of {rows.num_supports}")
    if rows.rows.device != features.device:
        raise ValueError(f"rows must be on {features.device}, got {rows.rows.device}")
    return torch.ops.kpconv_ops.upsample(features, rows.rows, *gradient_gather(rows, features))


def _rows_outside(num_supports: int) -> ValueError:
    return ValueError(f"rows must be in [0, {num_supports})")


# taken: for every feature row the rows of the result that it went to; needed for the gradient only.
torch.library.define(
    "kpconv_ops::upsample", "(Tensor features, Tensor rows, Tensor? taken_indices, Tensor? taken_splits) -> Tensor"
)
torch.library.define(
    "kpconv_ops::segment_sum", "(Tensor values, Tensor order, Tensor splits, Tensor segment_of) -> Tensor"
)


@torch.library.impl("kpconv_ops::upsample", ("cpu", "cuda"))
def _upsample(features, rows, taken_indices, taken_splits):
    try:
        return features.index_select(0, rows)
    except IndexError:
        raise _rows_outside(len(features)) from None


@torch.library.register_fake("kpconv_ops::upsample")
def _upsample_fake(features, rows, taken_indices, taken_splits):
    return features.new_empty(rows.shape[0], features.shape[1])


@torch.library.impl("kpconv_ops::segment_sum", ("cpu", "cuda"))
def _segment_sum(values, order, splits, segment_of):
    values = values.contiguous()
    sums = values.new_empty(len(splits) - 1, values.shape[1])
    _native.call("kp_segment_sum", values, values.dtype, values, values.shape[1], order, splits, len(sums), sums)
    return sums


@torch.library.register_fake("kpconv_ops::segment_sum")
def _segment_sum_fake(values, order, splits, segment_of):
    return values.new_empty(splits.shape[0] - 1, values.shape[1])


def _upsample_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _upsample_backward(ctx, grad):
    rows, order, splits = ctx.saved_tensors
    return torch.ops.kpconv_ops.segment_sum(grad, order, splits, rows), None, None, None


# The gradient of each is the other.
def _segment_sum_backward(ctx, grad):
    order, splits, rows = ctx.saved_tensors
    return torch.ops.kpconv_ops.upsample(grad, rows, order, splits), None, None, None


torch.library.register_autograd("kpconv_ops::upsample", _upsample_backward, setup_context=_upsample_setup)
torch.library.register_autograd("kpconv_ops::segment_sum", _segment_sum_backward, setup_context=_upsample_setup)
