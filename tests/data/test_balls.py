import numpy as np
import pytest

from dsp_sparse.config import AugmentConfig
from dsp_sparse.data import BallSampler, GridCloud, RawCloud, Tile, cover, grid_cloud, make_sample
from dsp_sparse.data.augment import augment
from dsp_sparse.data.balls import rows_around, rows_within
from dsp_sparse.errors import UserError

OFF = AugmentConfig(rotate=False, scale_min=1, scale_max=1, mirror=False, jitter=0, feature_drop=0)


def cloud_of(points, grid: float) -> GridCloud:
    """The grid cloud of points without features and labels."""
    points = np.asarray(points, np.float64)
    nothing = np.zeros((len(points), 0), np.float32), np.zeros(len(points), np.int64)
    return grid_cloud(Tile.whole(RawCloud(points, *nothing)), grid)


@pytest.fixture(scope="module")
def cloud():
    return cloud_of(np.random.default_rng(0).uniform(0, 3, (2000, 3)), 0.1)


def test_a_ball_is_every_point_within_the_radius(cloud):
    centre = np.array([1.0, 2.0, 0.5])
    distances = np.linalg.norm(cloud.points - centre, axis=1)
    rows = rows_within(cloud, centre, 0.8)
    np.testing.assert_array_equal(rows, np.flatnonzero(distances <= 0.8))
    capped = rows_within(cloud, centre, 0.8, max_points=20)
    np.testing.assert_array_equal(capped, np.sort(np.argsort(distances)[:20]))
    assert rows_within(cloud, centre, 0.8, max_points=5000).tolist() == rows.tolist()


def test_an_anchor_survives_noise_and_cap(cloud):
    for anchor in range(50):
        for cap in (None, 1, 5):
            noisy = cloud.points[anchor] + np.array([0.1, -0.1, 0.1])
            centre, rows = rows_around(cloud, noisy, anchor, 0.5, cap)
            assert anchor in rows
            assert np.linalg.norm(cloud.points[rows] - centre, axis=1).max() <= 0.5
            assert cap is None or len(rows) <= cap


def test_a_sample_shows_the_network_ones_features_and_height(rooms_store):
    scene = rooms_store.scenes[1]
    centre = scene.points[7].astype(float)
    rows = rows_within(scene, centre, 1.0)
    sample = make_sample(scene, scene.labels, centre, rows, scene.number)
    assert (sample.feat.dtype, sample.coord.dtype, sample.labels.dtype) == (np.float32, np.float32, np.int64)
    np.testing.assert_allclose(sample.coord + centre, scene.points[rows], atol=1e-6)
    np.testing.assert_array_equal(sample.feat[:, 0], 1)
    np.testing.assert_array_equal(sample.feat[:, 1:4], scene.features[rows])
    np.testing.assert_array_equal(sample.feat[:, 4], scene.points[rows, 2])
    np.testing.assert_array_equal(sample.labels, scene.labels[rows])
    assert sample.scene == 1
    assert 0 <= sample.feat[:, 4].min() < sample.feat[:, 4].max() < 4


@pytest.mark.parametrize("max_points", [None, 30])
def test_cover_sees_every_point_often_enough(cloud, max_points):
    seen = np.zeros(len(cloud.points), int)
    for centre, rows in cover(cloud, 0.6, 2, np.random.default_rng(0), max_points):
        assert len(rows) == len(set(rows.tolist()))
        assert np.linalg.norm(cloud.points[rows] - centre, axis=1).max() <= 0.6
        assert max_points is None or len(rows) <= max_points
        seen[rows] += 1
    assert seen.min() >= 2


def test_cover_is_sparing(rooms_store):
    """Without a cap, points are seen at most a few times as often as they must be."""
    scene = rooms_store.scenes[0]
    seen = sum(len(rows) for _, rows in cover(scene, 1.2, 3, np.random.default_rng(0)))
    assert seen / scene.num_points < 5 * 3


def test_cover_is_a_function_of_its_generator(cloud):
    def centres(seed):
        return np.array([centre for centre, _ in cover(cloud, 0.6, 1, np.random.default_rng(seed))])

    np.testing.assert_array_equal(centres(1), centres(1))
    assert not np.array_equal(centres(1)[:5], centres(2)[:5])


def test_cover_reaches_a_cloud_of_one_point_and_islands():
    assert len(list(cover(cloud_of(np.zeros((1, 3)), 0.1), 1.0, 3, np.random.default_rng(0)))) == 3
    islands = cloud_of([[0, 0, 0], [100, 0, 0], [0, 100, 0.0]], 0.1)
    assert len(list(cover(islands, 1.0, 1, np.random.default_rng(0)))) == 3
    with pytest.raises(UserError, match="votes must be at least 1"):
        next(cover(islands, 1.0, 0, np.random.default_rng(0)))


def test_an_epoch_of_balls_covers_all_scenes(rooms_store):
    """Potentials spread the balls: a number that fills the volume a few times leaves hardly a point unseen."""
    scenes = rooms_store.scenes
    sampler = BallSampler(scenes, radius=1.2, batch_size=4, steps=60, seed=0, epochs=range(1))
    seen = [np.zeros(scene.num_points, int) for scene in scenes]
    batches = list(sampler)
    assert len(batches) == len(sampler) == 60
    for ball in (ball for batch in batches for ball in batch):
        seen[ball.scene][rows_within(scenes[ball.scene], ball.centre, 1.2)] += 1
    assert np.mean(np.concatenate(seen) > 0) > 0.99


def test_balls_are_spread_more_evenly_than_by_chance(rooms_store):
    scene = rooms_store.scenes[0]

    def unevenness(centres):
        seen = np.zeros(scene.num_points)
        for centre in centres:
            seen[rows_within(scene, centre, 1.2)] += 1
        return seen.std() / seen.mean()

    batches = list(BallSampler([scene], radius=1.2, batch_size=1, steps=60, seed=0, epochs=range(1)))
    by_chance = scene.points[np.random.default_rng(0).integers(scene.num_points, size=60)]
    assert unevenness(ball.centre for (ball,) in batches) < 0.8 * unevenness(by_chance)


def test_a_sampler_needs_scenes():
    with pytest.raises(UserError, match="no scenes"):
        BallSampler([], radius=1.0, batch_size=2, steps=1, seed=0, epochs=range(1))


@pytest.fixture
def ball(rooms_store):
    scene = rooms_store.scenes[0]
    centre = scene.points[0].astype(float)
    return make_sample(scene, scene.labels, centre, rows_within(scene, centre, 1.0), 0)


def test_augmentation_switched_off_changes_nothing(ball):
    same = augment(ball, OFF, np.random.default_rng(0))
    np.testing.assert_array_equal(same.coord, ball.coord)
    np.testing.assert_array_equal(same.feat, ball.feat)


def test_rotation_keeps_heights_and_distances(ball):
    turned = augment(ball, AugmentConfig(**{**vars(OFF), "rotate": True}), np.random.default_rng(0))
    assert not np.allclose(turned.coord, ball.coord, atol=0.01)
    np.testing.assert_array_equal(turned.coord[:, 2], ball.coord[:, 2])
    np.testing.assert_allclose(np.linalg.norm(turned.coord, axis=1), np.linalg.norm(ball.coord, axis=1), atol=1e-5)
    np.testing.assert_array_equal(turned.feat, ball.feat)


def test_height_follows_the_vertical_scale(ball):
    scaled = augment(ball, AugmentConfig(**{**vars(OFF), "scale_min": 0.5, "scale_max": 2}), np.random.default_rng(0))
    factors = (scaled.coord * ball.coord).sum(0) / (ball.coord**2).sum(0)
    assert len(set(factors.round(3))) == 3
    assert 0.5 <= factors.min() < factors.max() <= 2
    np.testing.assert_allclose(scaled.coord, ball.coord * factors, atol=1e-5)
    np.testing.assert_allclose(scaled.feat[:, -1], ball.feat[:, -1] * factors[2], rtol=1e-5)


def test_mirror_jitter_and_feature_drop(ball):
    config = AugmentConfig(**{**vars(OFF), "mirror": True, "jitter": 0.01, "feature_drop": 0.3})
    made = [augment(ball, config, np.random.default_rng(seed)) for seed in range(400)]
    mirrored = [np.corrcoef(a.coord[:, 0], ball.coord[:, 0])[0, 1] < 0 for a in made]
    dropped = [not a.feat[:, 1:-1].any() for a in made]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert 0.2 < np.mean(dropped) < 0.4
    assert all((a.feat[:, 0] == 1).all() and np.array_equal(a.feat[:, -1], ball.feat[:, -1]) for a in made)
    noise = np.stack([a.coord[:, 2] - ball.coord[:, 2] for a in made])
    assert 0.0099 < noise.std() < 0.0101
