"""Sparse voxels: the occupied cells of a grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._boxes import Box, extents_of
from ._checks import COORDINATE_DTYPES, check_count, check_positive, check_tensor
from ._keys import cells_of, sort_keys


@dataclass(frozen=True, eq=False)
class Voxels:
    """Occupied cells, each once; sample by sample, in a sample ordered by (z, y, x): x runs fastest."""

    coords: Tensor  # [V, 3] int64 (x, y, z)
    offsets: Tensor  # [B + 1] int64
    inverse: Tensor  # [N] int64, the row of each input's cell


def voxelize(points: Tensor, offsets: Tensor, voxel_size: float) -> Voxels:
    """The occupied voxels of packed point sets: the unique `floor(points / voxel_size)` of each sample.

    Args:
        points: `[N, 3]` float32 or float64; `voxel_size` is in the same unit.
        offsets: `[B + 1]` int64, rising from 0 to N; samples may be empty.
        voxel_size: edge length.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe N rows, a size that is not positive,
            coordinates that are not finite or span too many voxels to number them in 64 bits.
    """
    check_tensor("points", points, (None, 3), COORDINATE_DTYPES)
    check_tensor("offsets", offsets, (None,), (torch.int64,), like=points)
    voxel_size = check_positive("voxel_size", voxel_size)
    return Voxels(*torch.ops.kpconv_ops.unique_voxels(points.detach(), offsets, voxel_size, "points"))


def stride_coords(coords: Tensor, offsets: Tensor, stride: int) -> Voxels:
    """The occupied voxels of a coarser grid: the unique `floor(coords / stride) * stride` of each sample.

    Args:
        coords: `[V, 3]` int64.
        offsets: `[B + 1]` int64, rising from 0 to V; samples may be empty.
        stride: edge length of the coarser voxels, in units of `coords`.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe V rows, a stride below 1, coordinates that
            span too many voxels to number them in 64 bits.
    """
    check_tensor("coords", coords, (None, 3), (torch.int64,))
    check_tensor("offsets", offsets, (None,), (torch.int64,), like=coords)
    stride = check_count("stride", stride)
    return Voxels(*torch.ops.kpconv_ops.unique_voxels(coords, offsets, float(stride), "coords"))


# The voxels floor(points / size) of floating point numbers, floor(points / size) * size of whole ones.
torch.library.define(
    "kpconv_ops::unique_voxels",
    "(Tensor points, Tensor offsets, float size, str name) -> (Tensor coords, Tensor offsets, Tensor inverse)",
)


@torch.library.impl("kpconv_ops::unique_voxels", ("cpu", "cuda"))
def _unique_voxels(points, offsets, size, name):
    points, offsets = points.contiguous(), offsets.contiguous()
    box = Box(name, [extents_of(name, points, size, "offsets", offsets)], ([0, 0, 0], [0, 0, 0]), points.device)
    keys, order = sort_keys(box.keys(points, size, offsets), box.num_keys)
    splits, inverse, voxel_offsets = cells_of(keys, order, offsets)
    coords = box.voxels(keys, splits[:-1], 1 if points.is_floating_point() else int(size))
    return coords, voxel_offsets, inverse


@torch.library.register_fake("kpconv_ops::unique_voxels")
def _unique_voxels_fake(points, offsets, size, name):
    voxels = torch.library.get_ctx().new_dynamic_size()
    return offsets.new_empty(voxels, 3), torch.empty_like(offsets), offsets.new_empty(points.shape[0])
