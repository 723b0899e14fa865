import numpy as np
import pytest

from dsp_sparse.data import SceneStore, draw, label_table, prepare, weak_labels
from dsp_sparse.errors import UserError


@pytest.fixture
def store(tiny_dataset, tmp_path):
    return prepare(tiny_dataset, tmp_path / "store", 0.1, progress=False)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.35, 1])
def test_every_class_of_a_cloud_keeps_its_share_and_at_least_one_label(rate):
    labels = np.repeat([-1, 0, 1, 2, 5], [50, 1000, 333, 1, 7])
    for seed in range(5):
        mask = draw(labels, rate, np.random.default_rng(seed))
        assert not mask[labels == -1].any()
        for label, count in ((0, 1000), (1, 333), (2, 1), (5, 7)):
            assert mask[labels == label].sum() == max(1, round(rate * count))


def test_every_point_of_a_class_is_equally_likely():
    labels = np.zeros(20, int)
    drawn = sum(draw(labels, 0.25, np.random.default_rng(seed)).astype(int) for seed in range(2000))
    # 500 expected, standard deviation 19.4: five of them.
    assert np.abs(drawn - 500).max() < 97


def test_labels_are_the_scene_s_or_minus_one(store):
    for scene, labels in zip(store.scenes, weak_labels(store, 0.1, 0), strict=True):
        assert labels.dtype == np.int16
        kept = labels >= 0
        np.testing.assert_array_equal(labels[kept], scene.labels[kept])
        assert (labels[~kept] == -1).all()
        assert set(labels[kept]) == set(scene.labels[scene.labels >= 0])


def test_they_are_drawn_once_and_shared_by_all_runs(store):
    first = weak_labels(store, 0.1, 0)
    files = {path: path.stat().st_mtime_ns for path in (store.path / "weak").rglob("*.npy")}
    assert len(files) == 3
    again = weak_labels(SceneStore.open(store.path), 0.1, 0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert files == {path: path.stat().st_mtime_ns for path in files}

    # What is stored rules, not a new draw.
    mask = np.zeros(store.scenes[0].num_points, bool)
    np.save(store.path / "weak" / "rate-0.1-seed-0" / "scene0.npy", mask)
    assert (weak_labels(store, 0.1, 0)[0] == -1).all()


def test_seeds_and_scenes_draw_differently(store):
    first, second = weak_labels(store, 0.1, 0), weak_labels(store, 0.1, 1)
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    size = min(len(labels) for labels in first)
    assert not np.array_equal(first[0][:size] >= 0, first[1][:size] >= 0)


def test_full_supervision_is_all_labels(store):
    for scene, labels in zip(store.scenes, weak_labels(store, 1, 0), strict=True):
        np.testing.assert_array_equal(labels, scene.labels)


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(store, rate):
    with pytest.raises(UserError, match=r"label rate must be in \(0, 1\], got"):
        weak_labels(store, rate, 0)
    assert not (store.path / "weak").exists()


def test_a_mask_of_another_scene_is_refused(store):
    weak_labels(store, 0.1, 0)
    np.save(store.path / "weak" / "rate-0.1-seed-0" / "scene0.npy", np.zeros(3, bool))
    with pytest.raises(UserError, match=r"scene0.npy: a mask of 3 points, the scene has \d+"):
        weak_labels(store, 0.1, 0)


def test_the_table_counts_points_and_labels(store):
    labels = weak_labels(store, 0.1, 0)
    head, *rows = label_table(store, labels).splitlines()
    assert head.split() == ["class", "points", "labelled", "share"]
    for index, (name, row) in enumerate(zip(store.classes, rows, strict=True)):
        points = sum(int((s.labels == index).sum()) for s in store.scenes)
        labelled = sum(int((a == index).sum()) for a in labels)
        assert row.split() == [name, str(points), str(labelled), f"{labelled / points:.2%}"]
