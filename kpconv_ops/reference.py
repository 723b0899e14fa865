"""Plain-torch oracle of every operator: the definition, written to be read. Slow, shares nothing with native code."""

import itertools

import torch
from torch import Tensor

# ---- geometry


def grid_subsample(points: Tensor, offsets: Tensor, cell_size: float, features=None, labels=None):
    """`(points, offsets, features, labels, inverse)` as the fields of `kpconv_ops.GridSubsample`."""
    inverse, counts = torch.empty(len(points), dtype=torch.int64), [0]
    for begin, end in itertools.pairwise(offsets.tolist()):
        if begin == end:
            counts.append(0)
            continue
        sample = points[begin:end].double()
        cells = ((sample - sample.amin(dim=0)) / cell_size).floor().long()
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


def _squared_distances(queries, query_offsets, supports, support_offsets):
    """For every query: its row, the squared distances to the supports of its sample, the first support's row."""
    bounds = zip(itertools.pairwise(query_offsets.tolist()), itertools.pairwise(support_offsets.tolist()), strict=True)
    for (query_begin, query_end), (begin, end) in bounds:
        for query in range(query_begin, query_end):
            x, y, z = (queries[query] - supports[begin:end]).square().unbind(1)
            yield query, x + y + z, begin
