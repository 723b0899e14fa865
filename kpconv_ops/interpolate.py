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
    check_tensor,
)
from ._csr import splits_of
from ._precision import accumulator
from ._weighted_sum import weighted_sum
from .neighbors import Neighbors


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
        Neighbors(self.indices, self.splits, self.num_supports)  # checks them
        check_tensor("weights", self.weights, (len(self.indices),), COORDINATE_DTYPES, like=self.indices)

    @property
    def transposed(self) -> "Interpolation":
        """For every support the points that take from it, ascending: what the gradient is gathered through.

        Computed once.
        """
        if not self._transposed:
            transpose = torch.ops.kpconv_ops.transpose
            points, splits = transpose(self.indices, self.splits, self.num_supports, "interpolation")
            # The weights go where the entries go: those of the points, each as a row of its own.
            entries = torch.arange(len(self.indices) + 1, device=self.splits.device)
            alone = entries.clamp(self.splits[0], self.splits[-1])
            order, _ = transpose(self.indices, alone, self.num_supports, "interpolation")
            weights = self.weights[order.long()]
            self._transposed.append(Interpolation(points, splits, weights, len(self.splits) - 1))
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
            size, or from `stride_coords` after it. In voxels of another size points find wrong ones or none.
        offsets: `[B + 1]` int64, rising from 0 to V.
        voxel_size: edge length of the voxels of stride 1.
        stride: edge length of the voxels in units of `coords`.

    Returns:
        For `interpolate`; weights of the dtype of the points, rows in ascending order of (z, y, x).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe the rows or differ in batch size, a size or
            stride that is not positive, coordinates that are not finite, no multiples of `stride`, span too many
            voxels to number them in 64 bits or, on the CPU, come twice.
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
    return weighted_sum(features, parts(interpolation), taken, "interpolation")


torch.library.define(
    "kpconv_ops::trilinear",
    "(Tensor points, Tensor point_offsets, Tensor coords, Tensor offsets, float voxel_size, int stride) "
    "-> (Tensor indices, Tensor splits, Tensor weights)",
)


@torch.library.impl("kpconv_ops::trilinear", ("cpu", "cuda"))
def _trilinear(points, point_offsets, coords, offsets, voxel_size, stride):
    points, point_offsets = points.contiguous(), point_offsets.contiguous()
    coords, offsets = coords.contiguous(), offsets.contiguous()
    extents_of("points", points, voxel_size, "point_offsets", point_offsets)  # only checks them: far ones take nothing
    if stride > 1 and (coords % stride).any():
        raise ValueError(f"coords must be multiples of stride, {stride}")
    extents = extents_of("coords", coords, stride, "offsets", offsets)
    box = Box("coords", [extents], ([-1, -1, -1], [1, 1, 1]), coords.device)
    keys, order = box.ascending_keys("coords", coords, stride, offsets)
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
