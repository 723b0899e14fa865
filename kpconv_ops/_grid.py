"""Uniform grids over packed points: the cells that subsampling merges and that searches walk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _native
from ._checks import offset_bounds
from ._keys import MAX_CELLS, sort_keys


@dataclass(frozen=True)
class Extent:
    """The bounding boxes of the B samples of a packed point set, on the CPU. An empty sample has a box of one point."""

    low: Tensor  # [B, 3] float64
    high: Tensor  # [B, 3] float64
    counts: Tensor  # [B] int64, points of each sample

    @property
    def size(self) -> Tensor:
        return self.high - self.low

    @classmethod
    def of(cls, name: str, points: Tensor, offsets_name: str, offsets: Tensor) -> "Extent":
        """Waits for the device. Raises ValueError for wrong offsets and for coordinates that are not finite."""
        batch, pieces = max(len(offsets) - 1, 0), min(max(len(points) // 2048, 1), 256)
        bounds = points.new_empty(2, pieces, batch, 3)
        _native.call(
            "kp_bounds", points, points.dtype, points, len(points), offsets, batch, pieces, bounds[0], bounds[1]
        )
        bounds = torch.cat([bounds[0].amin(dim=0), bounds[1].amax(dim=0)]).double()
        # Numbers of rows are exact in float64, and one copy is one wait.
        offsets, bounds = torch.cat([offsets.double(), bounds.flatten()]).cpu().split([len(offsets), 6 * batch])
        offsets, (low, high) = offsets.long(), bounds.view(2, batch, 3)
        offset_bounds(offsets_name, offsets, len(points))
        counts = offsets.diff()
        extent = cls(*(torch.where(counts[:, None] > 0, each, 0.0) for each in (low, high)), counts)
        if not extent.size.isfinite().all():  # NaN and infinities reach the bounds; a difference may overflow
            raise ValueError(f"{name} must be finite, got NaN, infinite or extremely large coordinates")
        return extent

    def down_to(self, name: str, corner_name: str, corner: Tensor) -> "Extent":
        """The boxes with other lowest corners `[B, 3]` float64. Raises ValueError where a point lies below its own."""
        corner = corner.cpu()
        if not corner.isfinite().all():
            raise ValueError(f"{corner_name} must be finite, got {corner.tolist()}")
        wrong = (self.counts > 0) & (self.low < corner).any(dim=1)
        if wrong.any():
            b = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"{corner_name} must not be above any point, got {corner[b].tolist()} for sample {b} of {name}, "
                f"whose smallest coordinates are {self.low[b].tolist()}"
            )
        return Extent(corner, torch.where(self.counts[:, None] > 0, self.high, corner), self.counts)


@dataclass(frozen=True)
class Grid:
    """Cubic cells, one grid a sample, anchored at the sample's own smallest coordinates.

    The key of cell (x, y, z) of a sample is `first + x + nx * (y + ny * z)`: x runs fastest, samples follow each other.
    """

    boxes: Tensor  # [B, 4] float64: origin, edge length of a cell
    cells: Tensor  # [B, 4] int64: nx, ny, nz, first
    num_cells: int

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
        ends = shape.prod(dim=1, keepdim=True).cumsum(0)
        boxes = torch.cat([extent.low, edges[:, None]], dim=1)
        cells = torch.cat([shape, ends - shape.prod(dim=1, keepdim=True)], dim=1)
        return cls(boxes.to(device), cells.to(device), int(ends[-1]) if len(ends) else 0)

    def sort(self, points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `points` in the order of their cells, each cell's ascending: keys `[N]` int64, order `[N]` int32.

        Points outside the grid count to the nearest cell.
        """
        keys = offsets.new_empty(len(points))
        box = self.boxes, self.cells, len(self.cells)
        _native.call("kp_cell_keys", points, points.dtype, points, len(points), offsets, *box, keys)
        return sort_keys(keys, self.num_cells)
