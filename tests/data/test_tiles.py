import tracemalloc
import weakref

import numpy as np
import pytest
from clouds import tiny_cloud
from hypothesis import given, settings
from hypothesis import strategies as st

from dsp_sparse.data import RawCloud, Tile, grid_cloud, tiles
from dsp_sparse.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:the .* tiles of a cloud")  # tiny ones
ARRAYS = ("points", "features", "labels", "inverse", "original_labels")


def pieces(cloud, size=150):
    """A cloud as a reader gives it."""
    for begin in range(0, len(cloud.points), size):
        rows = slice(begin, begin + size)
        yield RawCloud(cloud.points[rows], cloud.features[rows], cloud.labels[rows])


def field(count, seed=0, width=7.0, features=3):
    """A cloud that is longer than wide."""
    generator = np.random.default_rng(seed)
    return RawCloud(
        points=generator.random((count, 3)) * [width, 3, 2] + [100, 200, 5],
        features=generator.random((count, features)).astype(np.float32),
        labels=generator.integers(-1, 3, count),
    )


def test_a_grid_cloud_is_the_mean_and_mode_of_its_cells():
    """Every original point's grid row is its cell; a row holds its barycentre, mean feature and mode label."""
    cloud = tiny_cloud(0)
    grid = grid_cloud(Tile.whole(cloud), 0.25)
    np.testing.assert_array_equal(grid.origin, cloud.points.min(0))
    dtypes = [getattr(grid, name).dtype for name in ARRAYS]
    assert dtypes == [np.float32, np.float32, np.int16, np.int32, np.int16]
    assert grid.points[:, 2].min() >= 0
    cells = np.floor((cloud.points - grid.origin) / 0.25).astype(int)
    assert len(np.unique(cells, axis=0)) == len(grid.points)
    for row in range(len(grid.points)):
        inside = grid.inverse == row
        assert len(np.unique(cells[inside], axis=0)) == 1
        np.testing.assert_allclose(grid.origin + grid.points[row], cloud.points[inside].mean(0), atol=1e-6)
        np.testing.assert_allclose(grid.features[row], cloud.features[inside].mean(0), atol=1e-6)
        values, counts = np.unique(cloud.labels[inside], return_counts=True)
        assert grid.labels[row] == values[counts.argmax()]


def test_the_rows_of_a_grid_cloud_are_in_the_order_of_its_blocks():
    grid = grid_cloud(Tile.whole(tiny_cloud(0)), 0.1)
    blocks = np.floor((grid.points.astype(float) - grid.index.low) / 0.5).astype(int)
    _, ny, nz = grid.index.shape
    keys = (blocks[:, 0] * ny + blocks[:, 1]) * nz + blocks[:, 2]
    np.testing.assert_array_equal(keys, np.repeat(grid.index.keys, np.diff(grid.index.starts)))
    assert (np.diff(grid.index.keys) > 0).all() and len(grid.index.keys) > 8


def test_large_coordinates_lose_nothing():
    """A cloud moved by whole grid-free metres far away is the same grid cloud with another origin."""
    cloud = tiny_cloud(0)
    # Rounded to 1/1024 m, so that the moved coordinates are exact in float64.
    near = RawCloud((cloud.points * 1024).round() / 1024, cloud.features, cloud.labels)
    far = RawCloud(near.points + np.array([770_500, 6_277_500, 40]), cloud.features, cloud.labels)
    here, there = (grid_cloud(Tile.whole(each), 0.25) for each in (near, far))
    np.testing.assert_array_equal(there.origin - here.origin, (770_500, 6_277_500, 40))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


@pytest.mark.parametrize("tile_points", [400, 10_000])
def test_a_cloud_that_is_not_too_large_is_one_tile(tile_points, tmp_path):
    """No file is written: the folder for them does not exist."""
    cloud = tiny_cloud(0)
    dealt = []
    args = {"tile_points": tile_points, "scratch": tmp_path / "none", "dealt": dealt.append}
    (tile,) = tiles(pieces(cloud), grid=0.1, **args)
    assert not dealt
    assert (tile.number, tile.total, tile.num_core) == (0, 1, 400)
    np.testing.assert_array_equal(tile.rows, np.arange(400))
    np.testing.assert_array_equal(tile.origin, cloud.points.min(0))
    for name in ("points", "features", "labels"):
        np.testing.assert_array_equal(getattr(tile.cloud, name), getattr(cloud, name))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    tile_points=st.integers(1, 300),
    overlap=st.sampled_from([None, 0, 0.3]),
    features=st.sampled_from([0, 3]),
    grid=st.sampled_from([0.1, 0.31]),
)
def test_every_point_is_in_one_core_and_every_cell_is_that_of_the_whole(seed, tile_points, overlap, features, grid):
    """Tiles share the original points out, hold no more than asked for, and give the grid points of the whole cloud."""
    cloud = field(500, seed, features=features)
    whole = grid_cloud(Tile.whole(cloud), grid)
    of_whole = {point.tobytes(): row for row, point in enumerate(whole.points)}
    columns = np.floor((cloud.points - cloud.points.min(0))[:, :2] / grid)
    densest = np.unique(columns, axis=0, return_counts=True)[1].max()
    cut = list(tiles(pieces(cloud), grid=grid, tile_points=tile_points, overlap=overlap))
    assert [(tile.number, tile.total) for tile in cut] == [(k, len(cut)) for k in range(len(cut))]
    assert max(tile.num_core for tile in cut) <= max(tile_points, densest)
    np.testing.assert_array_equal(np.sort(np.concatenate([tile.rows for tile in cut])), np.arange(500))
    for tile in cut:
        assert (np.diff(tile.rows) > 0).all()
        for name in ("points", "features", "labels"):
            core = getattr(tile.cloud, name)[: tile.num_core]
            np.testing.assert_array_equal(core, getattr(cloud, name)[tile.rows])
        sub = grid_cloud(tile, grid)
        rows = np.array([of_whole[point.tobytes()] for point in sub.points])
        assert len(np.unique(rows)) == len(rows)
        np.testing.assert_array_equal(rows[sub.inverse], whole.inverse[tile.rows])
        np.testing.assert_array_equal(sub.features, whole.features[rows])
        np.testing.assert_array_equal(sub.labels[sub.inverse], whole.labels[rows[sub.inverse]])
        context = np.setdiff1d(np.arange(len(sub.points)), sub.inverse)
        assert (sub.labels[context] == -1).all()


@pytest.mark.parametrize("overlap", [0.5, 0.55])
def test_margins_hold_all_points_nearby(overlap):
    """Whatever lies within the overlap of a core point, horizontally along each axis, is in the tile."""
    cloud = field(20_000)
    cut = list(tiles(pieces(cloud), grid=0.1, tile_points=3000, overlap=overlap))
    assert len(cut) > 4
    for tile in cut:
        held = {point.tobytes() for point in tile.cloud.points}
        core = tile.cloud.points[: tile.num_core, :2]
        low, high = core.min(0) - overlap + 1e-6, core.max(0) + overlap - 1e-6
        near = ((cloud.points[:, :2] >= low) & (cloud.points[:, :2] <= high)).all(1)
        assert {point.tobytes() for point in cloud.points[near]} <= held
        assert len(held) == len(tile.cloud.points)
        # and nothing far away: the margin ends at the next face of a cell
        assert (tile.cloud.points[:, :2] >= core.min(0) - 0.7).all()


@pytest.mark.parametrize(("overlap", "warned"), [(0.1, False), (1.5, True)])
def test_margins_that_are_most_of_the_work_are_told(overlap, warned, recwarn):
    """With figures, before the first tile is there."""
    cut = tiles(pieces(field(20_000)), grid=0.1, tile_points=300, overlap=overlap)
    first = next(cut)
    messages = [str(warning.message) for warning in recwarn]
    held = len(first.cloud.points) + sum(len(tile.cloud.points) for tile in cut)
    message = f"the {first.total} tiles of a cloud of 20,000 points hold {held / 20_000:.0f} times as many, because of "
    message += "their margins of 1.5 m; larger tiles or a smaller overlap are less work"
    assert messages == ([message] if warned else [])


def same_tiles(one, two):
    one, two = list(one), list(two)
    return len(one) == len(two) and all(
        np.array_equal(a.cloud.points, b.cloud.points) for a, b in zip(one, two, strict=True)
    )


def test_margins_are_fifty_cells_wide_unless_told():
    cut = {o: tiles(pieces(field(2000)), grid=0.04, tile_points=300, overlap=o) for o in (None, 2.0, 1.96)}
    expected = list(cut[2.0])
    assert same_tiles(cut[None], expected) and not same_tiles(cut[1.96], expected)


def test_a_margin_may_be_wider_than_the_cloud():
    cloud = field(1000)
    for overlap in (1e30, 1e308):
        cut = list(tiles(pieces(cloud), grid=0.04, tile_points=300, overlap=overlap))
        assert len(cut) > 1 and all(len(tile.cloud.points) == 1000 for tile in cut)


@pytest.mark.parametrize("longer", [0, 1], ids="xy")
def test_the_longer_side_is_cut(longer):
    """Tiles of a long strip are pieces of its length, as wide as the strip."""
    points = np.random.default_rng(0).random((2000, 3)) * [40, 4, 1]
    points = points[:, [longer, 1 - longer, 2]]
    cloud = RawCloud(points, np.zeros((2000, 1), np.float32), np.zeros(2000, np.int64))
    for tile in tiles(pieces(cloud), grid=0.1, tile_points=500):
        sides = np.ptp(tile.cloud.points[: tile.num_core], axis=0)
        assert sides[1 - longer] > 3.8 and sides[longer] < 12


def test_a_point_far_away_changes_nothing_about_the_rest():
    """One stray point 100 km off, in both directions: the rest is still cut, and counting takes no more memory."""
    generator = np.random.default_rng(0)
    points = np.concatenate([generator.random((50_000, 3)) * [40, 40, 2], [[1e5, 1e5, 0]]])
    cloud = RawCloud(points, np.zeros((50_001, 1), np.float32), np.zeros(50_001, np.int64))
    tracemalloc.start()
    sizes = [tile.num_core for tile in tiles(pieces(cloud, 25_000), grid=0.04, tile_points=5000, overlap=0.2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 50_001 and max(sizes) <= 5000
    assert peak < 2.5 * 8 * 2048**2


def test_pieces_are_let_go_as_they_are_used():
    """A whole cloud holds no piece besides; of one that is cut, the first pieces are gone when the others come."""
    seen, alive = [], []

    def watched():
        for piece in pieces(field(3000), 100):
            seen.append(weakref.ref(piece))
            alive.append(sum(ref() is not None for ref in seen))
            yield piece
            del piece

    uncut = tiles(watched(), grid=0.1)
    assert next(uncut).num_core == 3000
    assert not any(ref() for ref in seen)
    seen.clear()
    alive.clear()
    next(tiles(watched(), grid=0.1, tile_points=1000))
    assert alive[:10] == list(range(1, 11)) and max(alive[12:]) <= 2


def test_all_points_are_dealt_out_before_the_first_tile():
    """And told of, a piece at a time: who waits sees that it goes on."""
    cloud, dealt = tiny_cloud(0), []
    next(tiles(pieces(cloud), grid=0.1, tile_points=100, dealt=dealt.append))
    assert sum(dealt) == len(cloud.points) and len(dealt) == len(list(pieces(cloud))) > 1


def test_dense_places_get_smaller_tiles():
    generator = np.random.default_rng(0)
    sparse = generator.random((400, 3)) * [40, 40, 1]
    dense = generator.random((1600, 3)) * [4, 4, 1]
    points = np.concatenate([sparse, dense])
    cloud = RawCloud(points, np.zeros((2000, 1), np.float32), np.zeros(2000, np.int64))
    sizes = [tile.num_core for tile in tiles(pieces(cloud), grid=0.1, tile_points=400)]
    assert max(sizes) <= 400 and min(sizes) >= 100


def test_more_cells_than_can_be_counted_are_binned():
    """A cloud of more than 2048 columns of cells a side is cut between bins of several columns."""
    cloud = field(3000, width=5000.0)
    cut = list(tiles(pieces(cloud), grid=0.25, tile_points=700, overlap=10))
    assert max(tile.num_core for tile in cut) <= 700
    np.testing.assert_array_equal(np.sort(np.concatenate([tile.rows for tile in cut])), np.arange(3000))


def test_bad_arguments_are_named():
    for arguments, message in (
        ({"tile_points": 0}, "tile_points must be at least 1, got 0"),
        ({"overlap": -1.0}, "overlap must be a number of metres from 0, got -1.0"),
        ({"overlap": float("nan")}, "overlap must be"),
    ):
        with pytest.raises(UserError, match=message):
            next(tiles(pieces(tiny_cloud(0)), grid=0.1, **arguments))
    wide = RawCloud(tiny_cloud(0).points * 1e15, tiny_cloud(0).features, tiny_cloud(0).labels)
    with pytest.raises(UserError, match=r"too wide for a grid of 0.1 m; are the units metres"):
        next(tiles(pieces(wide), grid=0.1, tile_points=100))
    with pytest.raises(UserError, match=r"too wide for a grid of 0.1 m; are the units metres"):
        grid_cloud(Tile.whole(wide), 0.1)
