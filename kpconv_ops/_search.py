"""Searches among points that a grid has sorted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _native
from ._csr import splits_of
from ._grid import Extent, Grid

# What a query may keep for its hits to be sorted in shared memory (csrc/cuda/neighbors.cu).
KEPT_IN_SHARED_MEMORY = 224


def radius_grid(extent: Extent, radius: float, device: torch.device) -> Grid:
    """Cells a little larger than the radius, so that rounding cannot move a neighbour two cells away.

    And so large that they can be counted.
    """
    most = (2**61 / max(len(extent.low), 1)) ** (1 / 3) - 1
    return Grid.over(extent, (extent.size.amax(dim=1) / most).clamp(min=1.001 * radius), "radius", device)


def nearest_grid(extent: Extent, device: torch.device) -> Grid:
    """About as many cells as points, whether these fill the box, a plane of it or a line."""
    longest, middle, shortest = extent.size.sort(dim=1, descending=True).values.unbind(1)
    counts = extent.counts.clamp(min=1)
    edges = torch.stack(
        [
            longest / counts,
            (longest / counts * middle).sqrt(),
            (longest / counts).pow(1 / 3) * middle.pow(1 / 3) * shortest.pow(1 / 3),
        ]
    ).amax(dim=0)
    return Grid.over(extent, torch.where(longest > 0, edges, 1.0), "supports", device)


class Supports:
    """Points in the order of their cells: what queries search among. `rows`: the order."""

    def __init__(self, points: Tensor, offsets: Tensor, grid: Grid):
        self.grid = grid
        self.keys, self.rows = grid.sort(points, offsets)
        self.points = points.index_select(0, self.rows)

    def search(self, queries: Tensor, query_offsets: Tensor, order: Tensor | None) -> "Search":
        """The search of these queries, worked on in this order (None: as they are)."""
        return Search(self, queries, query_offsets, order)


@dataclass(frozen=True)
class Search:
    """Queries among supports."""

    supports: Supports
    queries: Tensor
    query_offsets: Tensor
    order: Tensor | None

    def nearest(self) -> tuple[Tensor, Tensor]:
        """Rows `[M]` int64 and distances `[M]` of the nearest supports."""
        indices, distances = self.query_offsets.new_empty(len(self.queries)), self.queries.new_empty(len(self.queries))
        self._call("kp_nearest", indices, distances)
        return indices, distances

    def count(self, radius: float, max_neighbors: int | None = None) -> Tensor:
        """CSR bounds `[M + 1]` of the neighbourhoods."""
        counts = self.query_offsets.new_empty(len(self.queries))
        self._call("kp_radius_count", radius, counts)
        if max_neighbors is not None:
            counts.clamp_(max=max_neighbors)
        return splits_of(counts)

    def fill(self, radius: float, splits: Tensor, total: int, longest: int) -> Tensor:
        """Indices `[total]` of the neighbourhoods that `count` has bounded; the longest has `longest` of them."""
        indices = splits.new_empty(total, dtype=torch.int32)
        spilled = total if _native.on_cuda(indices) and longest > KEPT_IN_SHARED_MEMORY else 0
        hits = splits.new_empty(spilled * self.queries.element_size() // 4)
        self._call("kp_radius_fill", radius, splits, hits, indices)
        return indices

    def _call(self, name: str, *arguments):
        supports, grid = self.supports, self.supports.grid
        _native.call(
            name, self.queries, self.queries.dtype, self.queries, len(self.queries), self.query_offsets, self.order,
            supports.points, supports.rows, supports.keys, len(supports.points),
            grid.boxes, grid.cells, len(grid.cells), *arguments,
        )  # fmt: skip
