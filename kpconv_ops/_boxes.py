"""Boxes around sparse voxels, in which they are numbered."""

import torch
from torch import Tensor

from . import _native
from ._checks import check_row_count, offset_bounds
from ._keys import MAX_CELLS, sort_keys

_FAR = 2**62  # no voxel, and no whole number, lies so far from the origin


def extents_of(name: str, points: Tensor, size: float, offsets_name: str, offsets: Tensor) -> Tensor:
    """The lowest and highest voxel `floor(points / size)` of every sample, `[2, B, 3]` int64 on the CPU.

    The lowest is the higher one where a sample is empty. Waits for the device. Raises ValueError for wrong offsets and
    for coordinates that are not finite.
    """
    check_row_count(name, points)
    batch, pieces = max(len(offsets) - 1, 0), min(max(len(points) // 2048, 1), 256)
    bounds = points.new_empty(2, pieces, batch, 3)
    _native.call("kp_bounds", points, points.dtype, points, len(points), offsets, batch, pieces, bounds[0], bounds[1])
    bounds = torch.stack([bounds[0].amin(dim=0), bounds[1].amax(dim=0)])
    # A tensor as the divisor: CUDA multiplies by the reciprocal of a number, which may land in another voxel; so may
    # torch.div, which rounds floating point quotients down in its own way.
    size = bounds.new_tensor(size)
    voxels = (bounds / size).floor() if bounds.is_floating_point() else bounds.div(size, rounding_mode="floor")
    limited = voxels if bounds.is_floating_point() else bounds  # a whole number is multiplied by its size again
    voxels = torch.where((limited > -_FAR) & (limited < _FAR), voxels, _FAR).long()
    offsets, voxels = torch.cat([offsets, voxels.flatten()]).cpu().split([len(offsets), 6 * batch])
    offset_bounds(offsets_name, offsets, len(points))
    voxels, occupied = voxels.view(2, batch, 3), offsets.diff()[:, None] > 0
    if (occupied & (voxels == _FAR)).any():
        raise ValueError(f"{name} must be finite and within 2^62 voxels of the origin")
    return torch.where(occupied, voxels, torch.tensor([_FAR, -_FAR])[:, None, None])


class Box:
    """Numbers the voxels of a box, one box a sample: an int64 key that orders voxels by (sample, z, y, x).

    A step along an axis adds the same number to the key of any voxel.

    Args:
        name: what an error calls the voxels.
        extents: of all the voxels, from `extents_of`.
        reach: the lowest and the highest step from a voxel along x, y and z that still leads into the box.
        device: where the voxels are.
    """

    def __init__(self, name: str, extents: list[Tensor], reach: tuple[list[int], list[int]], device: torch.device):
        low, high = torch.stack(extents).unbind(1)
        low, high = low.amin(dim=0) + torch.tensor(reach[0]), high.amax(dim=0) + torch.tensor(reach[1])
        low, high = (torch.where(low <= high, each, 0) for each in (low, high))
        size = (high.double() - low.double() + 1).amax(dim=0) if len(low) else torch.ones(3)  # int64 may overflow
        if not len(low) * float(size.prod()) < MAX_CELLS:
            raise ValueError(
                f"{name} must lie closer together: {len(low)} samples of up to "
                f"{' x '.join(f'{n:.0f}' for n in size.tolist())} voxels cannot be numbered in 64 bits"
            )
        self._low = low.to(device)
        self._size = (high - low + 1).amax(dim=0).tolist() if len(low) else [1, 1, 1]
        self.num_keys = len(low) * self.step(0, 0, self._size[2])

    def step(self, x: int, y: int, z: int) -> int:
        """What a step adds to a key."""
        return (z * self._size[1] + y) * self._size[0] + x

    @property
    def layout(self) -> tuple[Tensor, int, int, int]:
        """What native functions ask of a box: the lowest voxels and the size."""
        return self._low, *self._size

    def keys(self, points: Tensor, size: float, offsets: Tensor) -> Tensor:
        """The key of the voxel of every point."""
        keys = offsets.new_empty(len(points))
        samples = offsets, len(self._low)
        _native.call("kp_voxel_keys", points, points.dtype, points, len(points), *samples, size, *self.layout, keys)
        return keys

    def ascending_keys(self, name: str, coords: Tensor, size: int, offsets: Tensor) -> tuple[Tensor, Tensor | None]:
        """The keys of unique voxels, ascending, then one larger than all; and where each was, None if just there.

        Raises ValueError, on the CPU, for a voxel that comes twice; `name` is what it calls the voxels.
        """
        keys, order = self.keys(coords, size, offsets), None
        # Ours ascend, which shows that they are unique as well. Asking CUDA takes longer than sorting.
        if _native.on_cuda(keys) or not (keys[1:] > keys[:-1]).all():
            keys, order = sort_keys(keys, self.num_keys)
            if not _native.on_cuda(keys) and (keys[1:] == keys[:-1]).any():
                raise ValueError(f"{name} must be unique within a sample, got coordinates twice")
        return torch.nn.functional.pad(keys, (0, 1), value=MAX_CELLS), order

    def voxels(self, keys: Tensor, rows: Tensor, scale: int) -> Tensor:
        """The voxels of `keys[rows]`, times `scale`."""
        voxels = keys.new_empty(len(rows), 3)
        _native.call("kp_voxel_coords", keys, keys, rows, len(rows), scale, *self.layout, voxels)
        return voxels
