"""The operators as one would write them in plain torch, numpy and scipy: what `kpconv_ops` is compared with.

A neighbourhood is a row of a padded matrix `[M, H]` of support rows; the padding points to a shadow support that is
appended to the cloud, as in the code released with KPConv and in most that followed it. Nothing here is slow on
purpose: gathers, broadcasts and matrix products of whole tensors.
"""

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

FAR = 1e6  # where the shadow support lies, beyond the reach of any kernel point


def padded(indices: Tensor, splits: Tensor, num_supports: int) -> Tensor:
    """Neighbourhoods in rows of equal length, `[M, H]` int64; empty places hold `num_supports`, the shadow's row."""
    lengths = splits.diff()
    width = int(lengths.max()) if len(lengths) else 0
    column = torch.arange(width, device=indices.device)
    matrix = torch.full((len(lengths), width), num_supports, device=indices.device)
    matrix[column < lengths[:, None]] = indices.long()
    return matrix


# ---- convolution and pooling


def differences(neighbors: Tensor, kernel_points: Tensor) -> Tensor:
    """Distances `[M, H, P]` from all differences of coordinates `[M, H, P, 3]`, as released codes compute them."""
    return (neighbors[:, :, None] - kernel_points).square().sum(dim=-1).sqrt()


def kpconv(
    features: Tensor,
    queries: Tensor,
    supports: Tensor,
    matrix: Tensor,
    kernel_points: Tensor,
    weights: Tensor,
    extent: float,
    influence: str = "linear",
    aggregation: str = "sum",
    distances: Callable[[Tensor, Tensor], Tensor] = differences,
) -> Tensor:
    """`kpconv_ops.kpconv` with linear influence, summed, on a padded neighbour matrix `[M, H]`."""
    if (influence, aggregation) != ("linear", "sum"):
        raise ValueError(f"the textbook convolution is linear and summed, got {influence} and {aggregation}")
    neighbors = torch.cat([supports, torch.full_like(supports[:1], FAR)])[matrix] - queries[:, None]
    strengths = (1 - distances(neighbors, kernel_points) / extent).clamp(min=0).to(features.dtype)
    gathered = torch.cat([features, torch.zeros_like(features[:1])])[matrix]  # [M, H, Cin]
    aggregates = torch.einsum("mhp,mhc->mpc", strengths, gathered)
    return aggregates.flatten(1) @ weights.flatten(0, 1)


def tuned_kpconv(*arguments) -> Tensor:
    """`kpconv` with `torch.cdist` for the distances: the same steps in half the time, a few digits less precise."""
    return kpconv(*arguments, distances=lambda a, b: torch.cdist(a.flatten(0, 1), b).unflatten(0, a.shape[:2]))


def deformable_kpconv(
    features: Tensor,
    queries: Tensor,
    supports: Tensor,
    matrix: Tensor,
    kernel_points: Tensor,
    weights: Tensor,
    offsets: Tensor,
    modulations: Tensor | None = None,
    *,
    extent: float,
    influence: str = "linear",
    aggregation: str = "sum",
) -> Tensor:
    """`kpconv_ops.deformable_kpconv` likewise, without modulations: `kpconv` with kernel points for each query."""
    if modulations is not None:
        raise ValueError("the textbook convolution has no modulations")
    moved = (kernel_points + offsets)[:, None]  # [M, 1, P, 3]
    return kpconv(features, queries, supports, matrix, moved, weights, extent, influence, aggregation)


def max_pool(features: Tensor, matrix: Tensor) -> Tensor:
    """Maximum over every row of a padded neighbour matrix; 0 where a row has no neighbour."""
    values = torch.cat([features, torch.full_like(features[:1], -torch.inf)])[matrix].amax(dim=1)
    return values.masked_fill(values == -torch.inf, 0)


def upsample(features: Tensor, rows: Tensor) -> Tensor:
    """Indexing."""
    return features[rows]


# ---- searches


def transpose(indices: Tensor, splits: Tensor, num_supports: int) -> tuple[Tensor, Tensor]:
    """For every support the queries that see it: a stable sort of all pairs."""
    queries = torch.arange(len(splits) - 1, device=indices.device).repeat_interleave(splits.diff())
    order = torch.sort(indices, stable=True).indices
    counts = torch.bincount(indices, minlength=num_supports)
    return queries[order].int(), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def scipy_radius_search(queries: np.ndarray, supports: np.ndarray, radius: float, workers: int):
    """A k-d tree, and its lists in CSR: `(indices int32, splits int64)`."""
    hoods = cKDTree(supports).query_ball_point(queries, radius, workers=workers, return_sorted=False)
    splits = np.zeros(len(queries) + 1, np.int64)
    np.cumsum([len(hood) for hood in hoods], out=splits[1:])
    return np.fromiter(chain.from_iterable(hoods), np.int32, splits[-1]), splits


def scipy_nearest(queries: np.ndarray, supports: np.ndarray, workers: int) -> np.ndarray:
    """The nearest row of a k-d tree."""
    return cKDTree(supports).query(queries, workers=workers)[1]


# ---- subsampling


def numpy_subsample(points: np.ndarray, colours: np.ndarray, labels: np.ndarray, cell: float):
    """`numpy.unique` on 64-bit keys, `bincount` a column: mean points, mean colours, most frequent label, cell of each.

    Without colours (None) only the mean points.
    """
    low = points.min(axis=0).astype(np.float64)
    cells = ((points - low) / cell).astype(np.int64)
    size = cells.max(axis=0) + 1
    keys = cells[:, 0] + size[0] * (cells[:, 1] + size[1] * cells[:, 2])
    _, rows, counts = np.unique(keys, return_inverse=True, return_counts=True)

    def mean(values):
        sums = [np.bincount(rows, column, len(counts)) for column in values.T]
        return (np.stack(sums, axis=1) / counts[:, None]).astype(values.dtype)

    if colours is None:
        return mean(points)
    classes = int(labels.max()) + 1
    votes = np.bincount(rows * classes + labels, minlength=len(counts) * classes).reshape(-1, classes)
    return mean(points), mean(colours), votes.argmax(axis=1), rows


def torch_subsample(points: Tensor, colours: Tensor, labels: Tensor, cell: float):
    """`numpy_subsample` by `torch.unique` on 64-bit keys and `index_add_`."""
    cells = ((points - points.amin(dim=0).double()) / cell).long()
    size = cells.amax(dim=0) + 1
    keys = cells[:, 0] + size[0] * (cells[:, 1] + size[1] * cells[:, 2])
    _, rows, counts = torch.unique(keys, return_inverse=True, return_counts=True)

    def mean(values):
        sums = values.new_zeros(len(counts), values.shape[1], dtype=torch.float64).index_add_(0, rows, values.double())
        return (sums / counts[:, None]).to(values.dtype)

    classes = int(labels.max()) + 1
    votes = torch.bincount(rows * classes + labels, minlength=len(counts) * classes).view(-1, classes)
    return mean(points), mean(colours), votes.argmax(dim=1), rows


# ---- pyramid


def pyramid(balls: list[np.ndarray], cell: float, levels: int, radius: float, workers: int) -> list[list[tuple]]:
    """The KPConv pyramid with scipy and numpy: for each ball its levels.

    A level has its points, their neighbourhoods, those of its points among the next finer ones (None at the finest
    level) and the nearest coarser row of each point (None at the last); `radius` is in cells of the finer level.
    """
    return [list(_levels(ball, cell, levels, radius, workers)) for ball in balls]


def _levels(points: np.ndarray, cell: float, levels: int, radius: float, workers: int) -> Iterator[tuple]:
    clouds = [points]
    for level in range(1, levels):
        clouds.append(numpy_subsample(clouds[-1], None, None, cell * 2**level))
    pools = None
    for level, cloud in enumerate(clouds):
        reach = radius * cell * 2**level
        neighbors = scipy_radius_search(cloud, cloud, reach, workers)
        coarser = clouds[level + 1] if level + 1 < levels else None
        yield cloud, neighbors, pools, None if coarser is None else scipy_nearest(cloud, coarser, workers)
        pools = None if coarser is None else scipy_radius_search(coarser, cloud, reach, workers)
