"""Plain-torch oracle of every operator: the definition, written to be read. Slow, shares nothing with native code."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

# ---- geometry


def grid_subsample(points: Tensor, offsets: Tensor, cell_size: float, features=None, labels=None, origin=None):
    """`(points, offsets, features, labels, inverse)` as the fields of `kpconv_ops.GridSubsample`."""
    inverse, counts = torch.empty(len(points), dtype=torch.int64), [0]
    for b, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        if begin == end:
            counts.append(0)
            continue
        sample = points[begin:end].double()
        corner = sample.amin(dim=0) if origin is None else origin[b]
        cells = ((sample - corner) / cell_size).floor().long()
        # Sorting by (z, y, x) makes x the fastest.
        unique, row = torch.unique(cells.flip(1), dim=0, return_inverse=True)
        inverse[begin:end] = row + sum(counts)
        counts.append(len(unique))

    def mean(values: Tensor) -> Tensor:
        merged = [values[inverse == row].double().mean(dim=0) for row in range(sum(counts))]
        return torch.stack(merged).to(values.dtype) if merged else values[:0]

    def mode(row: int) -> Tensor:
        values, occurrences = labels[inverse == row].unique(return_counts=True)
        return values[occurrences == occurrences.max()].min()

    if labels is not None and len(labels):
        labels = torch.stack([mode(row) for row in range(sum(counts))])
    features = None if features is None else mean(features)
    return mean(points), torch.tensor(counts).cumsum(0), features, labels, inverse


def radius_search(queries, query_offsets, supports, support_offsets, radius: float, max_neighbors=None):
    """`(indices, splits)` as the fields of `kpconv_ops.Neighbors`."""
    limit = torch.tensor(radius, dtype=queries.dtype).square()
    indices, counts = [torch.empty(0, dtype=torch.int32)], [0]
    for _, squared, first in _squared_distances(queries, query_offsets, supports, support_offsets):
        ascending, order = torch.sort(squared, stable=True)
        found = order[ascending <= limit][:max_neighbors] + first
        indices.append(found.int())
        counts.append(len(found))
    return torch.cat(indices), torch.tensor(counts).cumsum(0)


def nearest(queries, query_offsets, supports, support_offsets):
    """`(indices, distances)` as `kpconv_ops.nearest`."""
    indices = torch.empty(len(queries), dtype=torch.int64)
    distances = torch.empty(len(queries), dtype=queries.dtype)
    for query, squared, first in _squared_distances(queries, query_offsets, supports, support_offsets):
        indices[query] = first + (squared == squared.min()).nonzero()[0, 0]
        distances[query] = squared.min().sqrt()
    return indices, distances


def upsample(features: Tensor, rows: Tensor) -> Tensor:
    """The features of each row's coarser point."""
    return torch.stack([features[row] for row in rows.tolist()]) if len(rows) else features[:0]


def _squared_distances(queries, query_offsets, supports, support_offsets):
    """For every query: its row, the squared distances to the supports of its sample, the first support's row."""
    bounds = zip(itertools.pairwise(query_offsets.tolist()), itertools.pairwise(support_offsets.tolist()), strict=True)
    for (query_begin, query_end), (begin, end) in bounds:
        for query in range(query_begin, query_end):
            x, y, z = (queries[query] - supports[begin:end]).square().unbind(1)
            yield query, x + y + z, begin


# ---- convolution, pooling, sparse voxels


def kpconv(
    features, queries, supports, nb, kernel_points, weights, extent, influence="linear", aggregation="sum"
) -> Tensor:
    """Rigid kernel point convolution: the deformable one of kernel points that stay where they are."""
    offsets = kernel_points.new_zeros(len(queries), *kernel_points.shape)
    rule = {"extent": extent, "influence": influence, "aggregation": aggregation}
    return deformable_kpconv(features, queries, supports, nb, kernel_points, weights, offsets, **rule)


def deformable_kpconv(
    features,
    queries,
    supports,
    nb,
    kernel_points,
    weights,
    offsets,
    modulations=None,
    *,
    extent,
    influence="linear",
    aggregation="sum",
) -> Tensor:
    """Kernel point convolution, every (neighbour, kernel point) pair written out: `[E, P, Cin]` in memory."""
    wide = _accumulator(features.dtype)
    rows, cols = _edges(nb)
    distance = _distances(queries, supports, nb, kernel_points + offsets)
    if influence == "linear":
        strength = (1 - distance / extent).clamp(min=0)
    elif influence == "constant":
        strength = torch.ones_like(distance)
    else:
        strength = torch.exp(-distance.square() / (2 * (0.3 * extent) ** 2 + 1e-9))
    if aggregation == "closest":
        nearest = distance.sort(dim=1, stable=True).indices[:, :1]
        strength = torch.zeros_like(strength).scatter(1, nearest, strength.gather(1, nearest))
    if modulations is not None:
        strength = strength * modulations[rows]
    pairs = strength.to(wide)[:, :, None] * features[cols].to(wide)[:, None]
    aggregate = pairs.new_zeros(len(queries), *pairs.shape[1:]).index_add(0, rows, pairs)
    return torch.einsum("mpc,pcd->md", aggregate, weights.to(wide)).to(features.dtype)


def fitting_loss(queries, supports, nb, kernel_points, offsets, extent) -> Tensor:
    """Mean squared distance from a deformed kernel point to its nearest neighbour, one query after another."""
    squared = _distances(queries, supports, nb, kernel_points + offsets).square()
    total = offsets.sum() * 0
    for begin, end in itertools.pairwise(nb.splits.tolist()):
        if begin < end:
            total = total + squared[begin:end].amin(dim=0).sum()
    return total / extent**2 / max(offsets.shape[:2].numel(), 1)


def repulsive_loss(kernel_points, offsets, extent, repulse_extent=1.2) -> Tensor:
    """Each kernel point is pushed away from the others of its query, which stay where they are."""
    points, total = kernel_points + offsets, offsets.sum() * 0
    for k, other in itertools.permutations(range(len(kernel_points)), 2):
        distance = (points[:, k] - points[:, other].detach()).norm(dim=1) / extent
        total = total + (distance - repulse_extent).clamp(max=0).square().sum()
    return total / max(offsets.shape[:2].numel(), 1)


def max_pool(features, nb) -> Tensor:
    """Maximum of every neighbourhood, one query after another."""
    zero = features.new_zeros(features.shape[1])
    bounds = nb.splits.tolist()
    hoods = (nb.indices[a:b].long() for a, b in itertools.pairwise(bounds))
    return torch.stack([features[hood].max(0).values if len(hood) else zero for hood in hoods] or [zero])[
        : len(bounds) - 1
    ]


def mean_pool(features, nb) -> Tensor:
    """Mean of every neighbourhood, one query after another."""
    wide = features.to(_accumulator(features.dtype))
    zero = wide.new_zeros(features.shape[1])
    hoods = [nb.indices[a:b].long() for a, b in itertools.pairwise(nb.splits.tolist())]
    means = [wide[hood].mean(0) if len(hood) else zero for hood in hoods]
    return torch.stack(means or [zero])[: len(hoods)].to(features.dtype)


def trilinear(points, point_offsets, coords, offsets, voxel_size, stride=1) -> tuple[Tensor, Tensor, Tensor]:
    """`(indices, splits, weights)` as the fields of `kpconv_ops.Interpolation`: corner by corner."""
    row_of = {cell: row for row, cell in enumerate(_cells(coords // stride, offsets))}
    samples = torch.arange(len(point_offsets) - 1).repeat_interleave(point_offsets.diff()).tolist()
    indices, weights, splits = [], [], [0]
    positions = points.double() / points.new_tensor(voxel_size).double() / stride - 0.5
    for sample, position in zip(samples, positions, strict=True):
        lower = position.floor()
        (fx, fy, fz), (x, y, z) = (position - lower).tolist(), lower.long().tolist()
        around = {}
        for dz, dy, dx in itertools.product((0, 1), repeat=3):
            weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * (fz if dz else 1 - fz)
            row = row_of.get((sample, x + dx, y + dy, z + dz))
            if row is not None and weight > 0:
                around[row] = weight
        indices += around.keys()
        weights += [weight / sum(around.values()) for weight in around.values()]
        splits.append(len(indices))
    return torch.tensor(indices, dtype=torch.int32), torch.tensor(splits), torch.tensor(weights, dtype=points.dtype)


def interpolate(features, interpolation) -> Tensor:
    """The weighted rows of every point, summed."""
    wide = _accumulator(features.dtype)
    rows, cols = _edges(interpolation)
    taken = features[cols].to(wide) * interpolation.weights.to(wide)[:, None]
    return (
        taken.new_zeros(len(interpolation.splits) - 1, features.shape[1]).index_add(0, rows, taken).to(features.dtype)
    )


def scatter_mean(features, inverse, num_rows) -> Tensor:
    """Mean of the rows that share a target."""
    wide = features.to(_accumulator(features.dtype))
    total = wide.new_zeros(num_rows, features.shape[1]).index_add(0, inverse, wide)
    count = torch.bincount(inverse, minlength=num_rows).clamp(min=1)
    return (total / count[:, None]).to(features.dtype)


class Voxels(NamedTuple):
    coords: Tensor
    offsets: Tensor
    inverse: Tensor


class KernelMap(NamedTuple):
    rows: Tensor
    num_in: int


def voxelize(points, offsets, voxel_size) -> Voxels:
    """Occupied cells, found with `torch.unique` on rows."""
    return _unique_voxels(torch.floor(points / voxel_size).long(), offsets)


def stride_coords(coords, offsets, stride) -> Voxels:
    """Occupied cells of the coarser grid."""
    return _unique_voxels(torch.div(coords, stride, rounding_mode="floor") * stride, offsets)


def kernel_map(in_coords, in_offsets, out_coords, out_offsets, kernel_size, dilation=1) -> KernelMap:
    """The row that every tap reads, looked up one by one in a dictionary."""
    sizes = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
    starts = [-(size // 2) if size % 2 else 0 for size in sizes]
    x_axis, y_axis, z_axis = (
        [(start + i) * dilation for i in range(size)] for start, size in zip(starts, sizes, strict=True)
    )
    row_of = {cell: row for row, cell in enumerate(_cells(in_coords, in_offsets))}
    out_cells = _cells(out_coords, out_offsets)
    rows = [
        [row_of.get((sample, x + dx, y + dy, z + dz), -1) for sample, x, y, z in out_cells]
        for dz, dy, dx in itertools.product(z_axis, y_axis, x_axis)  # the last is the fastest: x
    ]
    return KernelMap(torch.tensor(rows, dtype=torch.int32).view(len(rows), len(out_cells)), len(in_coords))


def transpose_map(rows, num_in) -> Tensor:
    """`[K, num_in]`: the output row that reads each input row at each tap."""
    transposed = torch.full((len(rows), num_in), -1, dtype=torch.int32)
    for tap, out_row in itertools.product(*map(range, rows.shape)):
        if rows[tap, out_row] >= 0:
            transposed[tap, rows[tap, out_row]] = out_row
    return transposed


def map_neighbors(rows) -> tuple[Tensor, Tensor]:
    """`(indices, splits)` as the fields of `kpconv_ops.Neighbors`: the rows that each output row reads."""
    read = [[row for row in column if row >= 0] for column in rows.T.tolist()]
    splits = list(itertools.accumulate(map(len, read), initial=0))
    return torch.tensor(list(itertools.chain(*read)), dtype=torch.int32), torch.tensor(splits)


def sparse_conv(features, weights, kernel_map) -> Tensor:
    """`out[o] += features[rows[k, o]] @ weights[k]`, tap by tap."""
    wide = _accumulator(features.dtype)
    out = torch.zeros(kernel_map.rows.shape[1], weights.shape[2], dtype=wide)
    for tap, rows in enumerate(kernel_map.rows):
        out_rows = (rows >= 0).nonzero()[:, 0]
        out = out.index_add(0, out_rows, features[rows[out_rows].long()].to(wide) @ weights[tap].to(wide))
    return out.to(features.dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _edges(nb) -> tuple[Tensor, Tensor]:
    """Query row and support row of every neighbour pair."""
    lengths = nb.splits.diff()
    return torch.arange(len(lengths)).repeat_interleave(lengths), nb.indices.long()


def _distances(queries, supports, nb, points) -> Tensor:
    """`[E, P]` distance of every neighbour to each kernel point `[M, P, 3]` of its query; gradient 0 where it is 0."""
    rows, cols = _edges(nb)
    return ((supports[cols] - queries[rows])[:, None] - points[rows]).norm(dim=2)


def _unique_voxels(coords: Tensor, offsets: Tensor) -> Voxels:
    """Unique cells, ordered by (sample, z, y, x)."""
    sample = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    cells, inverse = torch.cat([sample[:, None], coords.flip(1)], 1).unique(dim=0, return_inverse=True)
    lengths = torch.bincount(cells[:, 0], minlength=len(offsets) - 1)
    return Voxels(cells[:, 1:].flip(1), torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), inverse)


def _cells(coords: Tensor, offsets: Tensor) -> list[tuple[int, int, int, int]]:
    samples = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff()).tolist()
    return [(sample, *cell) for sample, cell in zip(samples, coords.tolist(), strict=True)]
