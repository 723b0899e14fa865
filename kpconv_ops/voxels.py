"""Sparse voxels: the occupied cells of a grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import COORDINATE_DTYPES, check_count, check_positive, check_tensor, offset_bounds
from ._csr import splits_of


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
    # A tensor as the divisor: CUDA multiplies by the reciprocal of a number, which may land in another cell.
    cells = torch.floor(points.detach() / points.new_tensor(voxel_size))
    return Voxels(*torch.ops.kpconv_ops.unique_voxels(cells, offsets, "points"))


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
    cells = torch.div(coords, stride, rounding_mode="floor") * stride
    return Voxels(*torch.ops.kpconv_ops.unique_voxels(cells, offsets, "coords"))


class Box:
    """Numbers the voxels of a box, one box a sample: an int64 key that orders voxels by (sample, z, y, x).

    A step along an axis adds the same number to the key of any voxel, and no voxel within `reach` of the given ones
    shares its key with another.
    """

    def __init__(self, name: str, coords: Tensor, samples: Tensor, num_samples: int, reach: tuple = (0, 0)):
        index = samples[:, None].expand(-1, 3)
        empty = coords.new_zeros(num_samples, 3)
        low = empty.scatter_reduce(0, index, coords, "amin", include_self=False) + coords.new_tensor(reach[0])
        high = empty.scatter_reduce(0, index, coords, "amax", include_self=False) + coords.new_tensor(reach[1])
        size = (high - low + 1).amax(0).tolist() if num_samples else [1, 1, 1]
        if min(size) < 1 or num_samples * size[0] * size[1] * size[2] > 2**63:
            raise ValueError(
                f"{name} must lie closer together: {num_samples} samples of up to {' x '.join(map(str, size))} voxels "
                "cannot be numbered in 64 bits"
            )
        self.low, self.size = low, size

    def keys(self, coords: Tensor, samples: Tensor) -> Tensor:
        x, y, z = (coords - self.low[samples]).unbind(1)
        return self.shift(x, y, samples * self.size[2] + z)

    def shift(self, x, y, z):
        return (z * self.size[1] + y) * self.size[0] + x


def samples_of(offsets: Tensor, rows: int) -> Tensor:
    """The sample of each row."""
    return torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff(), output_size=rows)


torch.library.define(
    "kpconv_ops::unique_voxels",
    "(Tensor cells, Tensor offsets, str name) -> (Tensor coords, Tensor offsets, Tensor inverse)",
)


@torch.library.impl("kpconv_ops::unique_voxels", ("cpu", "cuda"))
def _unique_voxels(cells, offsets, name):
    offset_bounds("offsets", offsets, len(cells))
    if not ((cells > -(2**62)) & (cells < 2**62)).all():
        raise ValueError(f"{name} must be finite and within 2^62 voxels of the origin")
    coords = cells.long()
    samples = samples_of(offsets, len(coords))
    box = Box(name, coords, samples, len(offsets) - 1)
    keys, inverse = torch.unique(box.keys(coords, samples), return_inverse=True)
    unique = coords.new_empty(len(keys), 3)
    unique[inverse] = coords  # every input of a cell writes the same
    owners = samples.new_empty(len(keys))
    owners[inverse] = samples
    return unique, splits_of(torch.bincount(owners, minlength=len(offsets) - 1)), inverse


@torch.library.register_fake("kpconv_ops::unique_voxels")
def _unique_voxels_fake(cells, offsets, name):
    voxels = torch.library.get_ctx().new_dynamic_size()
    return offsets.new_empty(voxels, 3), torch.empty_like(offsets), offsets.new_empty(cells.shape[0])
