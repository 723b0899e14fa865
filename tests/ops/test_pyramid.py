import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import grid_subsample, nearest, pyramid, radius_search

DTYPES = [torch.float32, torch.float64]


def cloud(sizes, dtype=torch.float32, seed=0, scale=1.0, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(sum(sizes), 3, generator=random, dtype=torch.float64) * scale + shift
    return points.to(dtype), torch.tensor([0, *sizes]).cumsum(0)


def one_by_one(points, offsets, cell_size, radii):
    """Points, offsets, neighbours, pools and upsampling rows of every level, from the operators of their own."""
    levels, pools = [], None
    for level, radius in enumerate(radii):
        cell = cell_size * 2**level
        inner = radius_search(points, offsets, points, offsets, radius * cell)
        if level == len(radii) - 1:
            return [*levels, (points, offsets, inner, pools, None)]
        coarse = grid_subsample(points, offsets, 2 * cell)
        rows, _ = nearest(points, offsets, coarse.points, coarse.offsets)
        levels.append((points, offsets, inner, pools, rows))
        pools = radius_search(coarse.points, coarse.offsets, points, offsets, radius * cell)
        points, offsets = coarse.points, coarse.offsets


def assert_same_neighbors(found, expected):
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.splits, expected.splits)
    assert found.num_supports == expected.num_supports


def assert_equals_the_operators(device, points, offsets, cell_size, radii):
    points, offsets = points.to(device), offsets.to(device)
    found = pyramid(points, offsets, cell_size, len(radii), radii).levels
    expected = one_by_one(points, offsets, cell_size, radii)
    for level, (level_points, level_offsets, inner, pools, rows) in zip(found, expected, strict=True):
        assert torch.equal(level.points, level_points) and torch.equal(level.offsets, level_offsets)
        assert_same_neighbors(level.neighbors, inner)
        if pools is None:
            assert level.pools is None
        else:
            assert_same_neighbors(level.pools, pools)
        if rows is None:
            assert level.upsamples is None
        else:
            assert torch.equal(level.upsamples.rows, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [[400], [150, 0, 1, 200], [0], [], [0, 3, 0]])
def test_equals_the_operators_one_by_one(device, dtype, sizes):
    assert_equals_the_operators(device, *cloud(sizes, dtype), 0.1, [2.5] * 3)


@pytest.mark.parametrize("radii", [[0.3, 0.5, 0.2], [2.5, 5.0, 1.0], [8.0, 0.4, 3.0]])
def test_radii_of_any_size(device, radii):
    """Radii smaller than a cell leave neighbourhoods empty and search far for the nearest coarser point."""
    assert_equals_the_operators(device, *cloud([120, 60]), 0.1, radii)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_coordinates(device, dtype):
    """Projected metres, where float32 rounds barycentres out of their cells."""
    shift = torch.tensor([770000.0, 6300000.0, 500.0], dtype=torch.float64)
    assert_equals_the_operators(device, *cloud([200, 50], dtype, scale=8.0, shift=shift), 0.4, [2.5] * 3)


def test_duplicates_and_flat_clouds(device):
    points, offsets = cloud([40, 30], scale=torch.tensor([1.0, 1.0, 0.0]))
    assert_equals_the_operators(device, points.repeat_interleave(3, 0), 3 * offsets, 0.1, [2.5] * 3)


def test_non_contiguous_points(device):
    points, offsets = cloud([90])
    assert_equals_the_operators(device, points.T.contiguous().T, offsets, 0.2, [2.5] * 2)


def test_a_radius_for_all_levels_is_that_of_each(device):
    points, offsets = (each.to(device) for each in cloud([100]))
    one, each = (pyramid(points, offsets, 0.1, 3, radius).levels for radius in (2.0, [2.0] * 3))
    for a, b in zip(one, each, strict=True):
        assert_same_neighbors(a.neighbors, b.neighbors)
    assert len(pyramid(points, offsets, 0.1, 1).levels) == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), sizes=st.lists(st.integers(0, 60), min_size=1, max_size=3), levels=st.integers(1, 4))
def test_every_level_covers_the_one_below(seed, sizes, levels):
    """A point has itself as its first neighbour; its coarser point is within a cell's diagonal; pools reach points."""
    points, offsets = cloud(sizes, torch.float64, seed)
    found = pyramid(points, offsets, 0.1, levels).levels
    for number, level in enumerate(found):
        first = level.neighbors.indices[level.neighbors.splits[:-1]].long()
        assert torch.equal(level.points[first], level.points)
        if level.upsamples is not None:
            coarse = found[number + 1]
            distance = (coarse.points[level.upsamples.rows] - level.points).norm(dim=1)
            assert (distance <= 0.2 * 2**number * 3**0.5).all()
            assert (coarse.pools.splits.diff() > 0).all()
            assert coarse.pools.num_supports == len(level.points) == len(level.upsamples.rows)


def test_real_rooms(device, real_data):
    """A subsampled scan, as networks see it."""
    import numpy as np

    folder = real_data / "s3dis/Stanford3dDataset_v1.2_Aligned_Version/Area_3/hallway_3/Annotations"
    points = np.concatenate([np.loadtxt(path, usecols=(0, 1, 2))[::60] for path in sorted(folder.glob("*.txt"))])
    points = torch.from_numpy(points).float()
    points = grid_subsample(points, torch.tensor([0, len(points)]), 0.2).points
    assert_equals_the_operators(device, points, torch.tensor([0, len(points)]), 0.2, [2.5] * 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_waits_for_the_device_few_times():
    """Twice a level, for its extent and the number of its cells, and once for the number of all neighbours."""
    points, offsets = (each.cuda() for each in cloud([2000, 1000]))
    pyramid(points, offsets, 0.1, 4)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            pyramid(points, offsets, 0.1, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 2 * 4


def test_the_operator_is_registered_properly():
    points, offsets = cloud([60, 0, 20])
    torch.library.opcheck(torch.ops.kpconv_ops.pyramid, (points, offsets, 0.1, [0.25, 0.5, 1.0]))
    torch.library.opcheck(torch.ops.kpconv_ops.pyramid, (points, offsets, 0.1, [0.25]))


def test_compiles_to_one_graph():
    def step(points, offsets):
        levels = pyramid(points, offsets, 0.1, 3).levels
        return [(each.points, each.neighbors.indices, each.neighbors.transposed.indices) for each in levels]

    points, offsets = cloud([60, 40])
    plain, compiled = step(points, offsets), torch.compile(step, fullgraph=True, backend="aot_eager")(points, offsets)
    for level, (one, other) in enumerate(zip(plain, compiled, strict=True)):
        assert all(map(torch.equal, one, other)), f"level {level}"


def test_the_number_of_threads_changes_nothing():
    points, offsets = cloud([6000, 3000])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(pyramid(points, offsets, 0.04, 3).levels)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.points, other.points)
        assert_same_neighbors(one.neighbors, other.neighbors)


def test_coordinates_get_no_gradient():
    points, offsets = cloud([50])
    levels = pyramid(points.requires_grad_(), offsets, 0.1, 2).levels
    assert not any(each.points.requires_grad for each in levels)


GOOD = {"points": cloud([4, 6])[0], "offsets": torch.tensor([0, 4, 10]), "cell_size": 0.1, "num_levels": 2}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": torch.rand(10, 2)}, ValueError, r"points must have shape \(\*, 3\), got \(10, 2\)"),
        ({"points": torch.rand(10, 3) * torch.nan}, ValueError, "points must be finite"),
        ({"points": torch.rand(10, 3).half()}, TypeError, "points must be float32 or float64, got float16"),
        ({"offsets": torch.tensor([0, 4, 9])}, ValueError, r"offsets must rise from 0 to 10, got \[0, 4, 9\]"),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, ValueError, "offsets must rise from 0 to 10"),
        ({"cell_size": 0.0}, ValueError, "cell_size must be positive and finite, got 0.0"),
        ({"cell_size": 1e-9}, ValueError, "cell_size 2e-09 is too small"),
        ({"num_levels": 0}, ValueError, r"num_levels must be at least 1 and less than 2\^31, got 0"),
        ({"num_levels": 2.0}, TypeError, "num_levels must be an integer, got float"),
        ({"radius": [2.5]}, ValueError, "radius must be one number or 2, one for each level, got 1"),
        ({"radius": -1.0}, ValueError, "radius must be positive and finite, got -1.0"),
        ({"radius": [2.5, "wide"]}, TypeError, "radius must be a number, got str"),
        ({"radius": 1e-30}, ValueError, "radius of level 0 must have a square between"),
        ({"num_levels": 200}, ValueError, "radius of level 66 must have a square between"),
        ({"num_levels": 2**31 - 1}, ValueError, "radius of level 66 must have a square between"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    pyramid(**GOOD)
    with pytest.raises(error, match=message):
        pyramid(**(GOOD | change))
