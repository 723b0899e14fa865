"""Trilinear interpolation: points take a weighted mean of the voxels around them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _native
from ._boxes import Box, extents_of
from ._checks import (
    COORDINATE_DTYPES,
    FEATURE_DTYPES,
    check_count,
    check_points,
    check_positive,
    check_size,
    check_tensor,
)
from ._csr import splits_of
from ._keys import MAX_CELLS, sort_keys
from ._precision import accumulator


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Weighted rows that each of N points takes its features from: point n has `indices[splits[n]:splits[n + 1]]`.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, tensors on two devices, no splits at all. What uses it raises it, on the CPU, for
            splits that do not rise within [0, E] and indices outside [0, num_supports).
    """

    indices: Tensor  # [E] int32, rows of the supports
    splits: Tensor  # [N + 1] int64
    weights: Tensor  # [E] float32 or float64
    num_supports: int
    _transposed: list["Interpolation"] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        check_tensor("indices", self.indices, (None,), (torch.int32,))
        check_tensor("splits", self.splits, (None,), (torch.int64,), like=self.indices)
        check_tensor("weights", self.weights, (len(self.indices),), COORDINATE_DTYPES, like=self.indices)
        if len(self.splits) < 1:
            raise ValueError("splits must have at least one entry, got none")
        check_size("num_supports", self.num_supports)

    @property
    def transposed(self) -> "Interpolation":
        """For every support the points that take from it, ascending: what the gradient is gathered through.

        Computed once.
        """
        if not self._transposed:
            swapped = torch.ops.kpconv_ops.transpose_weighted(
                self.indices, self.splits, self.weights, self.num_supports
            )
            self._transposed.append(Interpolation(*swapped, len(self.splits) - 1))
        return self._transposed[0]


def trilinear(
    points: Tensor, point_offsets: Tensor, coords: Tensor, offsets: Tensor, voxel_size: float, stride: int = 1
) -> Interpolation:
    """Trilinear weights of the occupied ones among the eight voxels of its sample whose centres surround each point.

    The weights of a point sum to 1; one that lies in an occupied voxel has at least that. A point without any occupied
    voxel around takes nothing. No gradient flows to coordinates.

    Args:
        points: `[N, 3]` float32 or float64; `voxel_size` is in the same unit.
        point_offsets: `[B + 1]` int64, rising from 0 to N.
        coords: `[V, 3]` int64 multiples of `stride`, unique within a sample, in any order: from `voxelize` with this
            size, or from `stride_coords` after it.
        offsets: `[B + 1]` int64, rising from 0 to V.
        voxel_size: edge length of the voxels of stride 1.
        stride: edge length of the voxels in units of `coords`.

    Returns:
        For `interpolate`; weights of the dtype of the points, rows in ascending order of (z, y, x).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe the rows or differ in batch size, a size or
            stride that is not positive, coordinates that are not finite or span too many voxels to number them in 64
            bits.
    """
    check_points("points", points, "point_offsets", point_offsets)
    check_tensor("coords", coords, (None, 3), (torch.int64,), like=points)
    check_tensor("offsets", offsets, (len(point_offsets),), (torch.int64,), like=points)
    voxel_size, stride = check_positive("voxel_size", voxel_size), check_count("stride", stride)
    weighted = torch.ops.kpconv_ops.trilinear(points.detach(), point_offsets, coords, offsets, voxel_size, stride)
    return Interpolation(*weighted, len(coords))


def interpolate(features: Tensor, interpolation: Interpolation) -> Tensor:
    """The weighted sum of the features that each point takes.

    The gradient flows to `features`, through `interpolation.transposed`. Sums are formed in float32 (float64 for
    float64 features). The result is the same on every run and for any number of threads.

    Args:
        features: `[V, C]` of the voxels; float32, float64, float16 or bfloat16.
        interpolation: from `trilinear`.

    Returns:
        `[N, C]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, an interpolation of other voxels or, on the CPU, outside them.
    """
    check_tensor("features", features, (None, None), FEATURE_DTYPES)
    if not isinstance(interpolation, Interpolation):
        raise TypeError(f"interpolation must be an Interpolation, got {type(interpolation).__name__}")
    if interpolation.num_supports != len(features):
        raise ValueError(f"interpolation must be of {len(features)} features, got one of {interpolation.num_supports}")
    if interpolation.indices.device != features.device:
        raise ValueError(f"interpolation must be on {features.device}, got {interpolation.indices.device}")

    def parts(of: Interpolation):
        return of.indices, of.splits, of.weights.to(accumulator(features.dtype))

    needs_gradient = features.requires_grad and torch.is_grad_enabled()
    taken = parts(interpolation.transposed) if needs_gradient else (None, None, None)
    return torch.ops.kpconv_ops.weighted_sum(features, *parts(interpolation), *taken)


torch.library.define(
    "kpconv_ops::trilinear",
    "(Tensor points, Tensor point_offsets, Tensor coords, Tensor offsets, float voxel_size, int stride) "
    "-> (Tensor indices, Tensor splits, Tensor weights)",
)
torch.library.define(
    "kpconv_ops::transpose_weighted",
    "(Tensor indices, Tensor splits, Tensor weights, SymInt num_supports) "
    "-> (Tensor indices, Tensor splits, Tensor weights)",
)
# Without weights all are 1. taken: the transposed neighbourhoods, needed for the gradient only.
torch.library.define(
    "kpconv_ops::weighted_sum",
    "(Tensor features, Tensor indices, Tensor splits, Tensor? weights, Tensor? taken_indices, Tensor? taken_splits, "
    "Tensor? taken_weights) -> Tensor",
)


@torch.library.impl("kpconv_ops::trilinear", ("cpu", "cuda"))
def _trilinear(points, point_offsets, coords, offsets, voxel_size, stride):
    points, point_offsets = points.contiguous(), point_offsets.contiguous()
    coords, offsets = coords.contiguous(), offsets.contiguous()
    extents_of("points", points, voxel_size, "point_offsets", point_offsets)  # checks them
    extents = extents_of("coords", coords, stride, "offsets", offsets)
    box = Box("coords", [extents], ([-1, -1, -1], [1, 1, 1]), coords.device)
    keys, order = sort_keys(box.keys(coords, stride, offsets), box.num_keys)
    keys = torch.nn.functional.pad(keys, (0, 1), value=MAX_CELLS)
    rows, weights = coords.new_empty(len(points), 8, dtype=torch.int32), points.new_empty(len(points), 8)
    queries = points, points.dtype, points, len(points), point_offsets, len(point_offsets) - 1, voxel_size, stride
    _native.call("kp_trilinear", *queries, keys, order, len(coords), *box.layout, rows, weights)
    exists = rows >= 0
    taken = exists.flatten().nonzero()[:, 0]
    return rows.flatten()[taken], splits_of(exists.sum(1)), weights.flatten()[taken]


@torch.library.register_fake("kpconv_ops::trilinear")
def _trilinear_fake(points, point_offsets, coords, offsets, voxel_size, stride):
    taken = torch.library.get_ctx().new_dynamic_size()
    splits = point_offsets.new_empty(points.shape[0] + 1)
    return coords.new_empty(taken, dtype=torch.int32), splits, points.new_empty(taken)


@torch.library.impl("kpconv_ops::transpose_weighted", ("cpu", "cuda"))
def _transpose_weighted(indices, splits, weights, num_supports):
    if not _native.on_cuda(indices) and ((indices < 0) | (indices >= num_supports)).any():
        raise ValueError(f"interpolation.indices must be in [0, {num_supports})")
    points = torch.arange(len(splits) - 1, dtype=torch.int32, device=indices.device)
    points = points.repeat_interleave(splits.diff(), output_size=len(indices))
    keys, order = sort_keys(indices.long(), num_supports)
    bounds = torch.searchsorted(keys, torch.arange(num_supports + 1, device=keys.device))
    return points[order], bounds, weights[order]


@torch.library.register_fake("kpconv_ops::transpose_weighted")
def _transpose_weighted_fake(indices, splits, weights, num_supports):
    return torch.empty_like(indices), splits.new_empty(num_supports + 1), torch.empty_like(weights)


@torch.library.impl("kpconv_ops::weighted_sum", ("cpu", "cuda"))
def _weighted_sum(features, indices, splits, weights, _indices, _splits, _weights):
    features, indices, splits = features.contiguous(), indices.contiguous(), splits.contiguous()
    weights = None if weights is None else weights.contiguous()
    out = features.new_empty(len(splits) - 1, features.shape[1])
    among = features, *features.shape, indices, len(indices), splits, weights
    try:
        _native.call("kp_weighted_sum", features, features.dtype, *among, len(out), out)
    except ValueError as error:  # it speaks of the neighbourhoods that pooling takes
        raise error if weights is None else ValueError(str(error).replace("nb.", "interpolation.")) from None
    return out


@torch.library.register_fake("kpconv_ops::weighted_sum")
def _weighted_sum_fake(features, indices, splits, weights, _indices, _splits, _weights):
    return features.new_empty(splits.shape[0] - 1, features.shape[1])


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


# The gradient is the same sum with the roles swapped.
def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    return torch.ops.kpconv_ops.weighted_sum(grad, *tensors[3:], *tensors[:3]), *[None] * 6


torch.library.register_autograd("kpconv_ops::weighted_sum", _backward, setup_context=_setup)
