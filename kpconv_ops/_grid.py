"""Uniform grids over packed points: the cells that subsampling merges and that searches walk."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _native
from ._checks import offset_bounds

MAX_CELLS = 2**62  # so that the key of a cell fits int64


@dataclass(frozen=True)
class Extent:
    """The bounding boxes of the B samples of a packed point set, on the CPU. An empty sample has a box of one point."""

    low: Tensor  # [B, 3] float64
    size: Tensor  # [B, 3] float64
    counts: Tensor  # [B] int64, points of each sample

    @classmethod
    def of(cls, name: str, points: Tensor, offsets_name: str, offsets: Tensor) -> "Extent":
        """Waits for the device. Raises ValueError for wrong offsets and for coordinates that are not finite."""
        bounds = offset_bounds(offsets_name, offsets, len(points))
        boxes = [
            torch.stack(torch.aminmax(points[begin:end], dim=0)) if begin < end else points.new_zeros(2, 3)
            for begin, end in itertools.pairwise(bounds)
        ]
        low, high = torch.stack(boxes, dim=1).cpu().double() if boxes else torch.zeros(2, 0, 3, dtype=torch.float64)
        size = high - low
        if not size.isfinite().all():  # NaN and infinities reach the bounds, and so does an overflowing difference
            raise ValueError(f"{name} must be finite, got NaN, infinite or extremely large coordinates")
        return cls(low, size, torch.tensor(bounds).diff())


@dataclass(frozen=True)
class Grid:
    """Cubic cells, one grid a sample, anchored at the sample's own smallest coordinates.

    The key of cell (x, y, z) of a sample is `first + x + nx * (y + ny * z)`: x runs fastest, samples follow each other.
    """

    boxes: Tensor  # [B, 4] float64: origin, edge length of a cell
    cells: Tensor  # [B, 4] int64: nx, ny, nz, first

    @classmethod
    def over(cls, extent: Extent, edges: Tensor, edge_name: str, device: torch.device) -> "Grid":
        """Cells of edge length `edges [B]`. Raises ValueError when the keys of so small cells would not fit 64 bits."""
        shape = (extent.size / edges[:, None]).floor() + 1
        total = float(shape.prod(dim=1).sum())
        if not total < MAX_CELLS:
            raise ValueError(
                f"{edge_name} {edges.min():.6g} is too small for these coordinates: "
                f"the grid would have {total:.3g} cells, at most 2^62 are possible"
            )
        shape = shape.long()
        counts = shape.prod(dim=1, keepdim=True)
        boxes = torch.cat([extent.low, edges[:, None]], dim=1)
        cells = torch.cat([shape, counts.cumsum(0) - counts], dim=1)
        return cls(boxes.to(device), cells.to(device))

    def sort(self, points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `points` in the order of their cells, each cell's ascending: `(keys [N], order [N])`, int64.

        Points outside the grid count to the nearest cell.
        """
        keys = torch.empty(len(points), dtype=torch.int64, device=points.device)
        _native.call(
            "kp_cell_keys",
            points,
            points.dtype,
            points,
            len(points),
            offsets,
            self.boxes,
            self.cells,
            len(self.cells),
            keys,
        )
        return torch.sort(keys, stable=True)
