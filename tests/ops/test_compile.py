"""One compiled graph takes numbers and sizes that change from call to call."""

import pytest
import torch

from kpconv_ops import (
    deformable_kpconv,
    fitting_loss,
    grid_subsample,
    interpolate,
    kernel_map,
    kpconv,
    max_pool,
    mean_pool,
    nearest,
    pyramid,
    radius_search,
    repulsive_loss,
    scatter_mean,
    sparse_conv,
    stride_coords,
    trilinear,
    upsample,
    voxelize,
)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def packed(size):
    return draw(size, 3).sigmoid(), torch.tensor([0, size // 3, size])


KERNEL, WEIGHTS = 0.1 * draw(8, 3), draw(8, 3, 4)


def searched(points, offsets, length):
    nb = radius_search(points, offsets, points, offsets, length)
    return nb.indices, nb.transposed.indices


def subsampled(points, offsets, length):
    cells = grid_subsample(points, offsets, length, points)
    rows, distances = nearest(points, offsets, cells.points, cells.offsets)
    return cells.features, distances, upsample(cells.points, rows)


def pyramids(points, offsets, length):
    return [level.neighbors.indices for level in pyramid(points, offsets, length, 3).levels]


def convolved(points, nb, length):
    return kpconv(points, points, points, nb, KERNEL, WEIGHTS, length)


def deformed(points, nb, length):
    offsets = 0.1 * points[:, None] * KERNEL
    return (
        deformable_kpconv(points, points, points, nb, KERNEL, WEIGHTS, offsets, extent=length),
        fitting_loss(points, points, nb, KERNEL, offsets, length),
        repulsive_loss(KERNEL, offsets, length, 4 * length),
    )


def pooled(points, nb, length):
    return max_pool(points, nb) * length, mean_pool(points, nb)


def sparse(points, offsets, length):
    cells = voxelize(points, offsets, length)
    features = scatter_mean(points, cells.inverse, len(cells.coords))
    coarse = stride_coords(cells.coords, cells.offsets, 2)
    pairs = kernel_map(cells.coords, cells.offsets, coarse.coords, coarse.offsets, 2)
    means = mean_pool(features, pairs.neighbors)
    back = interpolate(means, trilinear(points, offsets, coarse.coords, coarse.offsets, length, 2))
    return sparse_conv(features, WEIGHTS, pairs), sparse_conv(means, WEIGHTS, pairs.transposed), back


def arguments(function, size):
    points, offsets = packed(size)
    if function in (convolved, deformed, pooled):
        return points, radius_search(points, offsets, points, offsets, 0.4)
    return points, offsets


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


FUNCTIONS = [searched, subsampled, pyramids, convolved, deformed, pooled, sparse]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers_that_change(function):
    torch.compiler.reset()
    args = arguments(function, 30)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for length in (0.2, 0.3, 0.35):
        assert_equal(compiled(*args, length), function(*args, length))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sizes_that_change(function):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (30, 41):
        args = arguments(function, size)
        assert_equal(compiled(*args, 0.3), function(*args, 0.3))
