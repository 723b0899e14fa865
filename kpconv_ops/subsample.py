"""Grid subsampling: the points of a cell become one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _native
from ._checks import FEATURE_DTYPES, check_points, check_positive, check_row_count, check_tensor
from ._grid import Extent, Grid
from ._keys import cells_of


@dataclass(frozen=True, eq=False)
class GridSubsample:
    """One row for every occupied cell: sample by sample, in a sample by cell (x fastest, then y, then z)."""

    points: Tensor  # [M, 3] barycentre of the cell's points, dtype of the points
    offsets: Tensor  # [B + 1] int64
    features: Tensor | None  # [M, C] mean, dtype of the features
    labels: Tensor | None  # [M] int64, most frequent label; of equally frequent ones the smallest
    inverse: Tensor  # [N] int64, the row each input point went into


def grid_subsample(
    points: Tensor,
    offsets: Tensor,
    cell_size: float,
    features: Tensor | None = None,
    labels: Tensor | None = None,
    origin: Tensor | None = None,
) -> GridSubsample:
    """Merge the points of every cell of a cubic grid into one, as KPConv (Thomas et al. 2019) does.

    The grid of a sample is anchored at the sample's own smallest coordinates, so that a batch equals its samples one
    by one and coordinates far from zero lose nothing. The result is the same on every run and device. Gradients flow
    to `points` and `features`.

    Pieces of one cloud get the cells of the whole cloud from a common `origin`.

    Args:
        points: `[N, 3]` float32 or float64; `cell_size` is in the same unit.
        offsets: `[B + 1]` int64, rising from 0 to N; samples may be empty.
        cell_size: edge length of a cell.
        features: `[N, C]` float32, float64, float16 or bfloat16, averaged in float64.
        labels: `[N]` int64.
        origin: `[B, 3]` float64, for each sample a corner of its cells, not above any coordinate of the sample; None:
            the sample's smallest coordinates.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe N rows, a cell size that is not positive or
            so small that cells cannot be counted in 64 bits, coordinates that are not finite, points below the origin.
    """
    check_points("points", points, "offsets", offsets)
    cell_size = check_positive("cell_size", cell_size)
    if features is not None:
        check_tensor("features", features, (len(points), None), FEATURE_DTYPES, like=points)
    if labels is not None:
        check_tensor("labels", labels, (len(points),), (torch.int64,), like=points)
    if origin is not None:
        check_tensor("origin", origin, (len(offsets) - 1, 3), (torch.float64,), like=points)
    order, splits, inverse, cell_offsets = torch.ops.kpconv_ops.grid_cells(points.detach(), offsets, cell_size, origin)
    return GridSubsample(
        torch.ops.kpconv_ops.segment_mean(points, order, splits, inverse),
        cell_offsets,
        None if features is None else torch.ops.kpconv_ops.segment_mean(features, order, splits, inverse),
        None if labels is None else torch.ops.kpconv_ops.segment_mode(labels, order, splits),
        inverse,
    )


# Rows grouped by cell: order[splits[m]:splits[m + 1]] (int32) are the rows of cell m, ascending.
torch.library.define(
    "kpconv_ops::grid_cells",
    "(Tensor points, Tensor offsets, float cell_size, Tensor? origin=None)"
    " -> (Tensor order, Tensor splits, Tensor inverse, Tensor offsets)",
)
torch.library.define(
    "kpconv_ops::segment_mean", "(Tensor values, Tensor order, Tensor splits, Tensor inverse) -> Tensor"
)
torch.library.define("kpconv_ops::segment_mode", "(Tensor labels, Tensor order, Tensor splits) -> Tensor")


@torch.library.impl("kpconv_ops::grid_cells", ("cpu", "cuda"))
def _grid_cells(points, offsets, cell_size, origin=None):
    points, offsets = points.contiguous(), offsets.contiguous()
    check_row_count("points", points)
    extent = Extent.of("points", points, "offsets", offsets)
    if origin is not None:
        extent = extent.down_to("points", "origin", origin)
    return grid_cells(points, offsets, cell_grid(extent, cell_size, points.device))


def cell_grid(extent: Extent, cell_size: float, device: torch.device) -> Grid:
    """Cells of this size."""
    return Grid.over(extent, torch.full((len(extent.low),), cell_size, dtype=torch.float64), "cell_size", device)


def grid_cells(points: Tensor, offsets: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of the operator. Waits for the device."""
    keys, order = grid.sort(points, offsets)
    return order, *cells_of(keys, order, offsets)


@torch.library.register_fake("kpconv_ops::grid_cells")
def _grid_cells_fake(points, offsets, cell_size, origin=None):
    splits = torch.library.get_ctx().new_dynamic_size(min=1)
    inverse = offsets.new_empty(points.shape[0])
    order = torch.empty_like(inverse, dtype=torch.int32)
    return order, offsets.new_empty(splits), inverse, torch.empty_like(offsets)


@torch.library.impl("kpconv_ops::segment_mean", ("cpu", "cuda"))
def _segment_mean(values, order, splits, inverse):
    values = values.contiguous()
    means = values.new_empty(len(splits) - 1, values.shape[1])
    _native.call("kp_segment_mean", values, values.dtype, values, values.shape[1], order, splits, len(means), means)
    return means


@torch.library.register_fake("kpconv_ops::segment_mean")
def _segment_mean_fake(values, order, splits, inverse):
    return values.new_empty(splits.shape[0] - 1, values.shape[1])


def _segment_mean_setup(ctx, inputs, output):
    _, _, splits, inverse = inputs
    ctx.save_for_backward(splits, inverse)


def _segment_mean_backward(ctx, grad):
    splits, inverse = ctx.saved_tensors
    return (grad / splits.diff()[:, None]).to(grad.dtype)[inverse], None, None, None


torch.library.register_autograd("kpconv_ops::segment_mean", _segment_mean_backward, setup_context=_segment_mean_setup)


@torch.library.impl("kpconv_ops::segment_mode", ("cpu", "cuda"))
def _segment_mode(labels, order, splits):
    labels = labels.contiguous()
    scratch, modes = torch.empty_like(labels), labels.new_empty(len(splits) - 1)
    _native.call("kp_segment_mode", labels, labels, order, splits, len(modes), scratch, modes)
    return modes


@torch.library.register_fake("kpconv_ops::segment_mode")
def _segment_mode_fake(labels, order, splits):
    return labels.new_empty(splits.shape[0] - 1)
