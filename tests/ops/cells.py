"""Small sparse voxels, for the tests of several operators."""

import torch

from kpconv_ops import reference


def cloud(sizes=(40, 0, 1, 25), seed=0, extent=6):
    """Packed points around the origin, on both sides of it."""
    random = torch.Generator().manual_seed(seed)
    points = (torch.rand(sum(sizes), 3, generator=random, dtype=torch.float64) - 0.5) * extent
    return points, torch.tensor([0, *sizes]).cumsum(0)


def voxels(sizes=(40, 0, 1, 25), seed=0, extent=6):
    cells = reference.voxelize(*cloud(sizes, seed, extent), 1.0)
    return cells.coords, cells.offsets


def on(device, *tensors):
    return tuple(tensor.to(device) for tensor in tensors)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_equal(result, expected):
    """All fields but the sizes, bit for bit."""
    for name in ("coords", "offsets", "inverse") if hasattr(expected, "coords") else ("rows",):
        mine, theirs = getattr(result, name), getattr(expected, name)
        assert mine.dtype == theirs.dtype and torch.equal(mine.cpu(), theirs), name
