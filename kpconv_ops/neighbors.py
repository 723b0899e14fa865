"""Neighbourhoods of points: every support within a radius, or the nearest one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _native
from ._checks import check_points, check_positive, offset_bounds
from ._grid import Extent, Grid


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Neighbourhoods of any size, row after row: query m has `indices[splits[m]:splits[m + 1]]`."""

    indices: Tensor  # [E] int32, packed rows of the supports
    splits: Tensor  # [M + 1] int64
    num_supports: int
    _transposed: list["Neighbors"] = field(default_factory=list, init=False, repr=False)

    @property
    def transposed(self) -> "Neighbors":
        """For every support the queries that see it, ascending: what the gradient of a gather gathers from.

        Computed once.
        """
        if not self._transposed:  # not functools.cached_property: torch.compile cannot trace its lock
            self._transposed.append(self._transpose())
        return self._transposed[0]

    def _transpose(self) -> "Neighbors":
        queries = torch.arange(len(self.splits) - 1, dtype=torch.int32, device=self.indices.device)
        queries = queries.repeat_interleave(self.splits.diff(), output_size=len(self.indices))
        supports, order = torch.sort(self.indices, stable=True)
        bounds = torch.arange(self.num_supports + 1, dtype=torch.int32, device=self.indices.device)
        return Neighbors(queries[order], torch.searchsorted(supports, bounds), len(self.splits) - 1)


def radius_search(
    queries: Tensor,
    query_offsets: Tensor,
    supports: Tensor,
    support_offsets: Tensor,
    radius: float,
    max_neighbors: int | None = None,
) -> Neighbors:
    """For every query the supports of its own sample at a distance of at most `radius`, nearest first.

    Equally distant supports come in the order of their rows. Distances are rounded to the dtype of the points, in the
    same way on every device, so the result is the same everywhere. No gradient flows to coordinates.

    Args:
        queries: `[M, 3]` float32 or float64; `radius` is in the same unit.
        query_offsets: `[B + 1]` int64, rising from 0 to M; samples may be empty.
        supports: `[N, 3]`, dtype of the queries.
        support_offsets: `[B + 1]` int64, rising from 0 to N.
        radius: largest distance.
        max_neighbors: keep only so many of the nearest; None keeps all.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe the rows or differ in batch size, a radius
            that is not positive (or whose square leaves the dtype's range), coordinates that are not finite.
    """
    _check_search(queries, query_offsets, supports, support_offsets)
    check_positive("radius", radius)
    limits = torch.finfo(queries.dtype)
    if not limits.tiny <= radius * radius <= limits.max:
        raise ValueError(f"radius must have a square between {limits.tiny:.3g} and {limits.max:.3g}, got {radius}")
    if max_neighbors is not None:
        if isinstance(max_neighbors, bool) or not isinstance(max_neighbors, int):
            raise TypeError(f"max_neighbors must be an int or None, got {type(max_neighbors).__name__}")
        if max_neighbors < 1:
            raise ValueError(f"max_neighbors must be at least 1, got {max_neighbors}")
    indices, splits = torch.ops.kpconv_ops.radius_search(
        queries.detach(), query_offsets, supports.detach(), support_offsets, radius, max_neighbors
    )
    return Neighbors(indices, splits, len(supports))


def nearest(queries: Tensor, query_offsets: Tensor, supports: Tensor, support_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """For every query the nearest support of its own sample, of equally near ones the first.

    Args and errors as `radius_search`; also ValueError when a sample has queries but no supports. No gradient flows
    to coordinates.

    Returns:
        indices: `[M]` int64, packed rows of the supports.
        distances: `[M]`, dtype of the queries.
    """
    _check_search(queries, query_offsets, supports, support_offsets)
    return torch.ops.kpconv_ops.nearest(queries.detach(), query_offsets, supports.detach(), support_offsets)


def _check_search(queries, query_offsets, supports, support_offsets):
    check_points("queries", queries, "query_offsets", query_offsets)
    check_points("supports", supports, "support_offsets", support_offsets, like=queries)
    if len(query_offsets) != len(support_offsets):
        raise ValueError(
            f"support_offsets must have shape ({len(query_offsets)},) like query_offsets, got ({len(support_offsets)},)"
        )


torch.library.define(
    "kpconv_ops::radius_search",
    "(Tensor queries, Tensor query_offsets, Tensor supports, Tensor support_offsets, float radius, int? max_neighbors)"
    " -> (Tensor indices, Tensor splits)",
)
torch.library.define(
    "kpconv_ops::nearest",
    "(Tensor queries, Tensor query_offsets, Tensor supports, Tensor support_offsets)"
    " -> (Tensor indices, Tensor distances)",
)


class _Search:
    """Queries and supports in the order of the supports' grid, as the native searches take them."""

    def __init__(self, grid: Grid, queries: Tensor, query_offsets: Tensor, supports: Tensor, support_offsets: Tensor):
        keys, rows = grid.sort(supports, support_offsets)
        _, query_order = grid.sort(queries, query_offsets)
        columns = supports[rows].T.contiguous()  # distances to many supports are computed at a time
        self.queries = queries
        self.arguments = (
            queries.dtype, queries, len(queries), query_offsets, query_order, columns, rows, keys, len(supports),
            grid.boxes, grid.cells, len(grid.cells),
        )  # fmt: skip

    def call(self, name: str, *arguments):
        _native.call(name, self.queries, *self.arguments, *arguments)


@torch.library.impl("kpconv_ops::radius_search", ("cpu", "cuda"))
def _radius_search(queries, query_offsets, supports, support_offsets, radius, max_neighbors):
    queries, query_offsets, extent, supports, support_offsets = _extents(
        queries, query_offsets, supports, support_offsets
    )
    # A little more than the radius, so that rounding cannot move a neighbour two cells away; and not so little that
    # cells could not be counted.
    most = (2**61 / max(len(extent.low), 1)) ** (1 / 3) - 1
    edges = (extent.size.amax(dim=1) / most).clamp(min=1.001 * radius)
    search = _Search(
        Grid.over(extent, edges, "radius", queries.device), queries, query_offsets, supports, support_offsets
    )

    counts = query_offsets.new_empty(len(queries))
    search.call("kp_radius_count", radius, counts)
    if max_neighbors is not None:
        counts.clamp_(max=max_neighbors)
    splits = counts.new_zeros(len(queries) + 1)
    torch.cumsum(counts, 0, out=splits[1:])
    indices = queries.new_empty(int(splits[-1]), dtype=torch.int32)
    hit_words = queries.element_size() // 4  # of 8 bytes
    hits = counts.new_empty(len(indices) * hit_words if _native.on_cuda(queries) else 0)
    search.call("kp_radius_fill", radius, splits, hits, indices)
    return indices, splits


@torch.library.register_fake("kpconv_ops::radius_search")
def _radius_search_fake(queries, query_offsets, supports, support_offsets, radius, max_neighbors):
    edges = torch.library.get_ctx().new_dynamic_size()
    return queries.new_empty(edges, dtype=torch.int32), query_offsets.new_empty(queries.shape[0] + 1)


@torch.library.impl("kpconv_ops::nearest", ("cpu", "cuda"))
def _nearest(queries, query_offsets, supports, support_offsets):
    queries, query_offsets, extent, supports, support_offsets = _extents(
        queries, query_offsets, supports, support_offsets
    )
    lonely = (query_offsets.diff().cpu() > 0) & (extent.counts == 0)
    if lonely.any():
        raise ValueError(f"supports must not be empty where there are queries, sample {int(lonely.nonzero()[0])} is")
    # About as many cells as supports, whether these fill the box, a plane of it or a line.
    longest, middle, shortest = extent.size.sort(dim=1, descending=True).values.unbind(1)
    counts = extent.counts.clamp(min=1)
    edges = torch.stack(
        [
            longest / counts,
            (longest / counts * middle).sqrt(),
            (longest / counts).pow(1 / 3) * middle.pow(1 / 3) * shortest.pow(1 / 3),
        ]
    ).amax(dim=0)
    edges = torch.where(longest > 0, edges, 1.0)
    search = _Search(
        Grid.over(extent, edges, "supports", queries.device), queries, query_offsets, supports, support_offsets
    )

    indices, distances = query_offsets.new_empty(len(queries)), queries.new_empty(len(queries))
    search.call("kp_nearest", indices, distances)
    return indices, distances


@torch.library.register_fake("kpconv_ops::nearest")
def _nearest_fake(queries, query_offsets, supports, support_offsets):
    return query_offsets.new_empty(queries.shape[0]), queries.new_empty(queries.shape[0])


def _extents(queries, query_offsets, supports, support_offsets):
    """Contiguous arguments and the supports' extent, after checking offsets and coordinates of both."""
    if len(supports) >= 2**31:
        raise ValueError(f"supports must have fewer than 2^31 rows, got {len(supports)}")
    queries, query_offsets, supports, support_offsets = (
        tensor.contiguous() for tensor in (queries, query_offsets, supports, support_offsets)
    )
    offset_bounds("query_offsets", query_offsets, len(queries))
    if not queries.isfinite().all():
        raise ValueError("queries must be finite, got NaN or infinite coordinates")
    extent = Extent.of("supports", supports, "support_offsets", support_offsets)
    return queries, query_offsets, extent, supports, support_offsets
