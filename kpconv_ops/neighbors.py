"""Neighbourhoods of points: every support within a radius, or the nearest one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _native
from ._checks import check_count, check_length, check_points, check_row_count, check_size, check_tensor
from ._csr import splits_of
from ._grid import Extent
from ._search import Search, Supports, nearest_grid, radius_grid


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Neighbourhoods of any size, row after row: query m has `indices[splits[m]:splits[m + 1]]`.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, tensors on two devices, no splits at all. An operator that takes the neighbourhoods
            raises it, on the CPU, for splits that do not rise within [0, E] and indices outside [0, num_supports).
    """

    indices: Tensor  # [E] int32, packed rows of the supports
    splits: Tensor  # [M + 1] int64
    num_supports: int
    _transposed: list["Neighbors"] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        check_tensor("indices", self.indices, (None,), (torch.int32,))
        check_tensor("splits", self.splits, (None,), (torch.int64,), like=self.indices)
        if len(self.splits) < 1:
            raise ValueError("splits must have at least one entry, got none")
        check_size("num_supports", self.num_supports)

    @property
    def transposed(self) -> "Neighbors":
        """For every support the queries that see it, ascending: what the gradient of a gather gathers from.

        Computed once.
        """
        if not self._transposed:  # not functools.cached_property: torch.compile cannot trace its lock
            swapped = torch.ops.kpconv_ops.transpose(self.indices, self.splits, self.num_supports, "nb")
            self._transposed.append(Neighbors(*swapped, len(self.splits) - 1))
        return self._transposed[0]


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
    radius = check_length("radius", radius, queries.dtype)
    if max_neighbors is not None:
        max_neighbors = check_count("max_neighbors", max_neighbors)
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


def check_neighbors(nb: Neighbors, num_supports: int, like: Tensor) -> None:
    """Neighbourhoods among `num_supports` supports, on the device of `like`."""
    if not isinstance(nb, Neighbors):
        raise TypeError(f"nb must be Neighbors, got {type(nb).__name__}")
    if nb.num_supports != num_supports:
        raise ValueError(f"nb must be neighbours among {num_supports} supports, got neighbours among {nb.num_supports}")
    if nb.indices.device != like.device:
        raise ValueError(f"nb must be on {like.device}, got {nb.indices.device}")


def gradient_gather(hoods, features: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """What the gradient of `features` is gathered through, if it is needed: indices and splits of `hoods.transposed`.

    `hoods`: `Neighbors` or an `Upsampling`, which transpose once for all layers that use them.
    """
    if not (features.requires_grad and torch.is_grad_enabled()):
        return None, None
    return hoods.transposed.indices, hoods.transposed.splits


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


# owner: what an error calls the neighbourhoods.
torch.library.define(
    "kpconv_ops::transpose",
    "(Tensor indices, Tensor splits, SymInt num_supports, str owner) -> (Tensor indices, Tensor splits)",
)


@torch.library.impl("kpconv_ops::radius_search", ("cpu", "cuda"))
def _radius_search(queries, query_offsets, supports, support_offsets, radius, max_neighbors):
    search, _ = _search(
        queries, query_offsets, supports, support_offsets, lambda extent, device: radius_grid(extent, radius, device)
    )
    splits = search.count(radius, max_neighbors)
    total, longest = edge_counts([splits])[0]
    return search.fill(radius, splits, total, longest), splits


def edge_counts(splits: list[Tensor]) -> list[tuple[int, int]]:
    """All entries and those of the longest row of several CSRs. One wait for the device."""
    if not splits:
        return []
    longest = [each.diff().amax() if len(each) > 1 else each[0] for each in splits]
    counts = torch.stack([*(each[-1] for each in splits), *longest]).tolist()
    return list(zip(counts[: len(splits)], counts[len(splits) :], strict=True))


@torch.library.register_fake("kpconv_ops::radius_search")
def _radius_search_fake(queries, query_offsets, supports, support_offsets, radius, max_neighbors):
    edges = torch.library.get_ctx().new_dynamic_size()
    return queries.new_empty(edges, dtype=torch.int32), query_offsets.new_empty(queries.shape[0] + 1)


@torch.library.impl("kpconv_ops::nearest", ("cpu", "cuda"))
def _nearest(queries, query_offsets, supports, support_offsets):
    search, extent = _search(queries, query_offsets, supports, support_offsets, nearest_grid)
    lonely = (query_offsets.diff().cpu() > 0) & (extent.counts == 0)
    if lonely.any():
        raise ValueError(f"supports must not be empty where there are queries, sample {int(lonely.nonzero()[0])} is")
    return search.nearest()


@torch.library.register_fake("kpconv_ops::nearest")
def _nearest_fake(queries, query_offsets, supports, support_offsets):
    return query_offsets.new_empty(queries.shape[0]), queries.new_empty(queries.shape[0])


def _search(queries, query_offsets, supports, support_offsets, grid_over) -> tuple[Search, Extent]:
    """The search of queries among supports and these' extent, after checking offsets and coordinates of both."""
    queries, query_offsets = queries.contiguous(), query_offsets.contiguous()
    supports, support_offsets = supports.contiguous(), support_offsets.contiguous()
    check_row_count("queries", queries)
    check_row_count("supports", supports)
    among_themselves = _same(queries, supports) and _same(query_offsets, support_offsets)
    if not among_themselves:
        Extent.of("queries", queries, "query_offsets", query_offsets)
    extent = Extent.of("supports", supports, "support_offsets", support_offsets)
    sorted_supports = Supports(supports, support_offsets, grid_over(extent, supports.device))
    order = sorted_supports.rows if among_themselves else sorted_supports.grid.sort(queries, query_offsets)[1]
    return sorted_supports.search(queries, query_offsets, order), extent


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


@torch.library.impl("kpconv_ops::transpose", ("cpu", "cuda"))
def _transpose(indices, splits, num_supports, owner):
    indices, splits = indices.contiguous(), splits.contiguous()
    # Counting sort. On the CPU every task counts its own share, and knows where its pairs go from the counts of all.
    tasks = 1 if _native.on_cuda(indices) else min(max(len(indices) // (4 * num_supports + 4096), 1), 8)
    pairs = indices, len(indices), splits, len(splits) - 1, num_supports, tasks
    counts = indices.new_zeros(tasks, num_supports)
    _native.call("kp_transpose_count", indices, *pairs, counts, owner=owner)
    places = counts.cumsum(0)  # ends of the tasks within a support
    bounds = splits_of(places[-1])
    places += bounds[:-1] - counts
    queries = torch.zeros_like(indices)
    _native.call("kp_transpose_fill", indices, *pairs, places, bounds, queries)
    return queries, bounds


@torch.library.register_fake("kpconv_ops::transpose")
def _transpose_fake(indices, splits, num_supports, owner):
    return torch.empty_like(indices), splits.new_empty(num_supports + 1)
