import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsp_sparse.data.index import BlockIndex


def build(points, edge):
    order, index = BlockIndex.build(np.asarray(points, np.float32), edge)
    return np.asarray(points, np.float32)[order], index


def brute_force(points, centre, radius, max_points=None):
    squared = ((points.astype(np.float64) - centre) ** 2).sum(1)
    rows = np.flatnonzero(squared <= radius**2)
    nearest = rows[np.argsort(squared[rows], kind="stable")]
    return np.sort(nearest[:max_points])


def random_points(seed, count=300):
    generator = np.random.default_rng(seed)
    return generator.normal(generator.normal(0, 30, 3), generator.uniform(0.1, 3), (count, 3))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(1, 300),
    edge=st.sampled_from([0.05, 0.2, 1.0, 100.0]),
    radius=st.sampled_from([0.0, 0.1, 0.5, 2.0, 1e9, 1e100]),
    away=st.sampled_from([0.0, 0.3, 5.0, 1e6]),
    max_points=st.sampled_from([None, 1, 7, 100]),
)
@example(seed=0, count=1, edge=0.2, radius=0.0, away=0.0, max_points=None)
def test_a_ball_holds_what_brute_force_finds(seed, count, edge, radius, away, max_points):
    points, index = build(random_points(seed, count), edge)
    generator = np.random.default_rng(seed)
    centre = points[generator.integers(count)] + away * generator.normal(0, 1, 3)
    with np.errstate(over="ignore"):
        rows = index.within(points, centre, radius, max_points)
        np.testing.assert_array_equal(rows, brute_force(points, centre, radius, max_points))
    assert rows.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.tuples(*[st.integers(-6, 6)] * 3), min_size=1, max_size=60),
    centre=st.tuples(*[st.integers(-8, 8)] * 3),
    radius=st.integers(0, 8),
    max_points=st.sampled_from([None, 1, 2, 5, 20]),
)
def test_points_on_faces_duplicates_and_ties(cells, centre, radius, max_points):
    """Whole numbers put points on the faces of blocks and of the ball, and many at equal distances."""
    points, index = build(cells, 2.0)
    np.testing.assert_array_equal(
        index.within(points, np.array(centre), radius, max_points),
        brute_force(points, np.array(centre), radius, max_points),
    )


@pytest.mark.parametrize("edge", [0.2, 0.3])
def test_decimal_faces(edge):
    """Faces that floating point cannot hold exactly lose no point."""
    steps = np.arange(-20, 21) * 0.1
    points, index = build(np.stack(np.meshgrid(steps, steps, [0.0, 0.1]), -1).reshape(-1, 3), edge)
    for centre in points[::37].astype(float):
        for radius in (0.1, 0.2, 0.3, 0.6):
            np.testing.assert_array_equal(index.within(points, centre, radius), brute_force(points, centre, radius))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**20), radius=st.sampled_from([0.0, 0.3, 2.0, 1e9]), away=st.sampled_from([0.0, 1.0, 1e6]))
def test_blocks_are_those_whose_box_the_ball_touches(seed, radius, away):
    points, index = build(random_points(seed), 0.5)
    generator = np.random.default_rng(seed)
    centre = points[0] + away * generator.normal(0, 1, 3)
    _, ny, nz = index.shape
    corners = np.stack([index.keys // (ny * nz), index.keys // nz % ny, index.keys % nz], 1) * 0.5 + index.low
    gap = np.linalg.norm(np.maximum(np.maximum(corners - centre, centre - corners - 0.5), 0), axis=1)
    found = index.blocks(centre, radius)
    assert found.dtype == np.int64 and (np.diff(found) > 0).all()
    assert set(np.flatnonzero(gap <= radius)) <= set(found) <= set(np.flatnonzero(gap <= radius + 1e-5))


def test_starts_are_one_row_of_every_block():
    points, index = build(random_points(3), 0.5)
    blocks = np.floor((points.astype(float) - index.low) / 0.5).astype(int)
    assert len(np.unique(blocks, axis=0)) == len(index.keys)
    assert len(np.unique(blocks[index.starts[:-1]], axis=0)) == len(index.keys)
    assert index.starts[0] == 0 and index.starts[-1] == len(points)


def test_rows_of_a_block_keep_their_order():
    points = random_points(4)
    order, index = BlockIndex.build(points, 1.0)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(points)))
    for begin, end in zip(index.starts[:-1], index.starts[1:], strict=True):
        assert (np.diff(order[begin:end]) > 0).all()


def test_a_query_reads_the_rows_of_its_blocks_alone():
    """What keeps a memory-mapped cloud out of memory."""
    points, index = build(np.random.default_rng(0).uniform(0, 20, (5000, 3)), 1.0)

    class Watched:
        def take(self, rows, axis):
            self.rows = rows
            return points.take(rows, axis)

    watched = Watched()
    index.within(watched, np.array([10.0, 10.0, 10.0]), 1.0)
    assert len(watched.rows) < 200
    assert np.abs(points[watched.rows] - 10).max() <= 2.01
