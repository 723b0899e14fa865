"""Which points carry a label: exact counts under every protocol, the same for all runs, and masks of one's own."""

import os
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clouds import CLASSES, tiny_cloud
from hypothesis import given, settings
from hypothesis import strategies as st

from dsp_sparse.data import (
    Dataset,
    Labelling,
    RawScene,
    SceneStore,
    WeakLabels,
    draw,
    label_table,
    prepare,
    weak_labels,
)
from dsp_sparse.data.readers.ply import write_ply
from dsp_sparse.data.weak_labels import rows_by_class
from dsp_sparse.errors import UserError


def pieces(seed: int, count: int):
    yield tiny_cloud(seed, count)


def dataset_of(folder, count: int = 400) -> Dataset:
    """Three clouds in two groups."""
    scenes = [RawScene(f"scene{i}", "ab"[i % 2], Path(f"scene{i}.txt"), partial(pieces, i, count)) for i in range(3)]
    return Dataset("tiny", folder, CLASSES, {"red": 255.0, "green": 255.0, "blue": 255.0}, scenes)


@pytest.fixture
def store(tmp_path):
    return prepare(dataset_of(tmp_path), tmp_path / "store", 0.1, progress=False)


@pytest.fixture
def tiled(tmp_path):
    """The same clouds with more points, each cut into tiles."""
    return prepare(dataset_of(tmp_path, 3000), tmp_path / "tiled", 0.1, tile_points=900, overlap=0.3, progress=False)


def by_cloud(store, labels) -> dict[str, np.ndarray]:
    """Per cloud, what its tiles say one after the other."""
    clouds = dict.fromkeys(scene.cloud for scene in store.scenes)
    return {c: np.concatenate([a for s, a in zip(store.scenes, labels, strict=True) if s.cloud == c]) for c in clouds}


def all_labels(store):
    return by_cloud(store, [scene.labels for scene in store.scenes])


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.35, 1])
def test_every_class_of_a_cloud_keeps_its_share_and_at_least_one_label(rate):
    labels = np.repeat([-1, 0, 1, 2, 5], [50, 1000, 333, 1, 7])
    for seed in range(5):
        mask = draw(labels, Labelling(rate=rate), np.random.default_rng(seed))
        assert not mask[labels == -1].any()
        for label, count in ((0, 1000), (1, 333), (2, 1), (5, 7)):
            assert mask[labels == label].sum() == max(1, round(rate * count))


@pytest.mark.parametrize("labelling", [Labelling(rate=0.25), Labelling(rate=0.25, by="cloud"), Labelling(points=5)])
def test_every_point_of_a_class_is_equally_likely(labelling):
    labels = np.zeros(20, int)
    drawn = sum(draw(labels, labelling, np.random.default_rng(seed)).astype(int) for seed in range(2000))
    # 500 expected, standard deviation 19.4: five of them.
    assert np.abs(drawn - 500).max() < 97


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 3), max_size=60), st.floats(0.001, 1), st.integers(1, 80), st.integers(0, 9))
def test_counts_are_exact(labels, rate, points, seed):
    """By class: the rounded share of each class, at least one. By cloud: that of all labelled points. By points: so
    many, or all there are. Never a point without a label."""
    labels, counts = np.array(labels, np.int16), Counter(x for x in labels if x >= 0)

    def drawn(**labelling):
        return labels[draw(labels, Labelling(**labelling), np.random.default_rng(seed))]

    assert Counter(drawn(rate=rate)) == {label: max(1, round(rate * count)) for label, count in counts.items()}
    for found, count in (
        (drawn(rate=rate, by="cloud"), round(rate * counts.total())),
        (drawn(points=points), min(points, counts.total())),
    ):
        assert len(found) == count and (found >= 0).all()


@pytest.mark.parametrize("name", ["store", "tiled"])
def test_tiles_of_a_cloud_are_drawn_together(name, request):
    """Counts hold for whole clouds, however many tiles there are; margins, which other tiles label, get no label."""
    store = request.getfixturevalue(name)
    assert (len(store.scenes) > 6) == (name == "tiled")
    known = {cloud: labels[labels >= 0] for cloud, labels in all_labels(store).items()}
    for labelling, expected in (
        (Labelling(points=20), lambda labels: 20),
        (Labelling(rate=0.1, by="cloud"), lambda labels: round(0.1 * len(labels))),
        (Labelling(rate=0.01), lambda labels: sum(max(1, round(0.01 * n)) for n in Counter(labels.tolist()).values())),
    ):
        weak = weak_labels(store, labelling)
        for cloud, labels in by_cloud(store, weak).items():
            assert (labels >= 0).sum() == expected(known[cloud]), labelling
        for scene, labels in zip(store.scenes, weak, strict=True):
            np.testing.assert_array_equal(labels[labels >= 0], scene.labels[labels >= 0])


def test_labels_are_the_scene_s_or_minus_one(store):
    for scene, labels in zip(store.scenes, weak_labels(store, Labelling()), strict=True):
        assert labels.dtype == np.int16 and not labels.flags.writeable
        kept = labels >= 0
        np.testing.assert_array_equal(labels[kept], scene.labels[kept])
        assert (labels[~kept] == -1).all()
        assert set(labels[kept]) == set(scene.labels[scene.labels >= 0])


def test_they_are_drawn_once_and_shared_by_all_runs(store):
    first = weak_labels(store, Labelling())
    files = {path: path.stat().st_mtime_ns for path in (store.path / "weak").rglob("*.npy")}
    assert len(files) == 3
    again = weak_labels(SceneStore.open(store.path), Labelling())
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert files == {path: path.stat().st_mtime_ns for path in files}

    # What is stored rules, not a new draw.
    np.save(store.path / "weak/rate-0.1-by-class-seed-0/scene0.npy", np.full(store.scenes[0].num_points, -1, np.int16))
    assert (weak_labels(store, Labelling())[0] == -1).all()


def test_files_of_a_cloud_that_are_there_stay(tiled):
    """Of a cloud's tiles only those without a file are written, as they were drawn."""
    labels = weak_labels(tiled, Labelling())
    drawn = [array.copy() for array in labels]
    np.save(labels.files[0], np.full_like(drawn[0], -1))
    labels.files[1].unlink()
    again = weak_labels(tiled, Labelling())
    assert (again[0] == -1).all() and tiled.scenes[0].cloud == tiled.scenes[1].cloud
    np.testing.assert_array_equal(again[1], drawn[1])


def test_clouds_with_the_same_labels_are_labelled_differently(tmp_path):
    dataset = dataset_of(tmp_path)
    scenes = [replace(dataset.scenes[0], name=name) for name in ("one", "two")]
    store = prepare(replace(dataset, scenes=scenes), tmp_path / "store", 0.1, progress=False)
    for labelling in (Labelling(), Labelling(points=20)):
        one, two = weak_labels(store, labelling)
        assert (one >= 0).sum() == (two >= 0).sum() and not np.array_equal(one, two)


def test_labels_of_some_scenes_are_theirs_among_all(store, tmp_path):
    """Whatever else is labelled, and whatever other clouds the store holds."""
    some = weak_labels(store, Labelling(), store.group(["b"]))
    assert [path.name for path in (store.path / "weak").rglob("*.npy")] == ["scene1.npy"]
    np.testing.assert_array_equal(some[0], weak_labels(store, Labelling())[1])
    dataset = dataset_of(tmp_path)
    smaller = prepare(replace(dataset, scenes=dataset.scenes[1:]), tmp_path / "smaller", 0.1, progress=False)
    np.testing.assert_array_equal(some[0], weak_labels(smaller, Labelling())[0])


def test_settings_and_clouds_draw_differently(store):
    """Every setting that matters has labels of its own."""
    drawn = [
        weak_labels(store, labelling)
        for labelling in (
            Labelling(),
            Labelling(seed=1),
            Labelling(rate=0.1000001),
            Labelling(by="cloud"),
            Labelling(points=20),
        )
    ]
    assert len({labels.files[0].parent for labels in drawn}) == len(drawn)
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    size = min(len(labels) for labels in drawn[0])
    assert not np.array_equal(drawn[0][0][:size] >= 0, drawn[0][1][:size] >= 0)


def test_full_supervision_is_all_labels(store):
    for by in ("class", "cloud"):
        for scene, labels in zip(store.scenes, weak_labels(store, Labelling(rate=1, by=by)), strict=True):
            np.testing.assert_array_equal(labels, scene.labels)


@pytest.mark.parametrize(
    "wrong, cause",
    [
        ({"rate": 0}, r"rate must be in \(0, 1\], got 0"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\], got 1.5"),
        ({"rate": float("nan")}, r"rate must be in \(0, 1\], got nan"),
        ({"by": "scene"}, "by must be one of class, cloud, got scene"),
        ({"points": 0}, "points must be at least 1 or null, got 0"),
        ({"points": 3, "mask": "masks"}, "mask must be null where points are given, got masks"),
        ({"seed": -1}, r"seed must be 0 to 2\^63 - 1, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, cause):
    with pytest.raises(UserError, match=cause):
        Labelling(**wrong)


def damage(path: Path, how: str) -> None:
    labels = np.load(path)
    if how == "cut short":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "not an array":
        path.write_bytes(b"labels")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other values":
        labels[3] = len(CLASSES)
        np.save(path, labels)
    elif how == "another scene's":
        np.save(path, labels[:-1])
    else:
        np.save(path, labels >= 0)


@pytest.mark.parametrize(
    "how, cause",
    [
        ("cut short", "cannot be read as weak labels"),
        ("not an array", "cannot be read as weak labels"),
        ("empty", "cannot be read as weak labels"),
        ("other values", "labels outside -1 to 2; the file is damaged"),
        ("another scene's", r"shape \(\d+,\), expected the int16 labels of \d+ points"),
        ("another type", r"bool values of shape \(\d+,\), expected the int16 labels of \d+ points"),
    ],
)
def test_a_stored_file_that_is_damaged_is_named(store, how, cause):
    damage(weak_labels(store, Labelling()).files[1], how)
    with pytest.raises(UserError, match=f"scene1.npy: .*{cause}.*delete"):
        weak_labels(store, Labelling())


def test_workers_do_not_check_the_files_again(store):
    """They would read every one of them, in every epoch."""
    labels = weak_labels(store, Labelling())
    copy = pickle.loads(pickle.dumps(labels))
    damage(labels.files[1], "other values")
    assert copy[1][3] == len(CLASSES)


def test_labels_travel_to_other_processes_as_their_paths(store):
    labels = weak_labels(store, Labelling())
    assert len(labels.by_class) == 3
    copy = pickle.dumps(labels)
    assert len(copy) < 1000 < sum(array.nbytes for array in labels)
    assert isinstance(pickle.loads(copy), WeakLabels)
    for first, second in zip(labels, pickle.loads(copy), strict=True):
        np.testing.assert_array_equal(first, second)


def test_rows_are_known_by_class_and_scene(store):
    labels = weak_labels(store, Labelling(rate=0.2))
    found = rows_by_class(labels)
    assert list(found) == [0, 1, 2]
    for scene, array in enumerate(labels):
        for label in found:
            rows = found[label].get(scene, np.empty(0))
            np.testing.assert_array_equal(rows, np.flatnonzero(array == label))
    assert labels.by_class is labels.by_class, "computed once a run"
    assert rows_by_class([np.full(5, -1), np.array([-1, 7]), np.empty(0, int)]) == {7: {1: np.array([1])}}


def write_masks(store, folder: Path, masks: dict[str, np.ndarray], suffix: str, field: str = "labelled") -> None:
    folder.mkdir()
    for cloud, mask in masks.items():
        if suffix == ".npy":
            np.save(folder / f"{cloud}.npy", mask)
        else:
            vertex = np.zeros(len(mask), [("x", "f4"), ("y", "f4"), ("z", "f4"), (field, "u1")])
            vertex[field] = 7 * mask
            write_ply(folder / f"{cloud}.ply", len(mask), [vertex[:100], vertex[100:]])


def random_masks(store, share=0.1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    counts = Counter()
    for scene in store.scenes:
        counts[scene.cloud] += scene.num_original
    return {cloud: generator.random(count) < share for cloud, count in counts.items()}


@pytest.mark.parametrize("suffix", [".npy", ".ply"])
@pytest.mark.parametrize("name", ["store", "tiled"])
def test_a_mask_labels_grid_points_by_the_majority_of_its_points(name, suffix, request, tmp_path):
    """A grid point is labelled if an original point in it is; its label is the most frequent one of those, and of
    equally frequent ones the smallest. The mask is of the source file's points, whatever the tiles of the cloud."""
    store = request.getfixturevalue(name)
    masks = random_masks(store, 0.5)
    write_masks(store, tmp_path / "masks", masks, suffix, "mine")
    labels = weak_labels(store, Labelling(mask=tmp_path / "masks", mask_field="mine"))
    for scene, array in zip(store.scenes, labels, strict=True):
        truth = tiny_cloud(int(scene.cloud[-1]), len(masks[scene.cloud])).labels
        votes = [Counter() for _ in range(scene.num_points)]
        rows = np.arange(scene.num_original) if scene.rows is None else scene.rows
        for row, cell in zip(rows, scene.inverse, strict=True):
            if masks[scene.cloud][row] and truth[row] >= 0:
                votes[cell][truth[row]] += 1
        expected = [min(v, key=lambda label: (-v[label], label)) if v else -1 for v in votes]
        np.testing.assert_array_equal(array, expected)
        assert (array >= 0).any()


def test_a_mask_is_read_again_when_it_has_changed(store, tmp_path):
    write_masks(store, tmp_path / "masks", random_masks(store), ".npy")
    labelling = Labelling(mask=str(tmp_path / "masks"))
    first = weak_labels(store, labelling)
    assert weak_labels(store, labelling).files == first.files
    np.save(tmp_path / "masks" / "scene0.npy", np.zeros(400, bool))
    os.utime(tmp_path / "masks" / "scene0.npy", (1, 1))
    assert (first[0] >= 0).any() and not (weak_labels(store, labelling)[0] >= 0).any()


def test_every_field_of_a_mask_has_labels_of_its_own(store, tmp_path):
    vertex = np.zeros(400, [("first", "u1"), ("second", "u1")])
    vertex["first"] = 1
    for scene in store.scenes:
        write_ply(tmp_path / "masks" / f"{scene.cloud}.ply", 400, [vertex])
    first, second = (
        weak_labels(store, Labelling(mask=tmp_path / "masks", mask_field=field)) for field in vertex.dtype.names
    )
    assert (first[0] >= 0).any() and not (second[0] >= 0).any()


def test_masks_that_do_not_fit_are_named(store, tmp_path):
    """A file that is missing, of other length, type or content, and a field that is not there; nothing is stored."""
    masks, folder = random_masks(store), tmp_path / "masks"
    write_masks(store, folder, masks, ".npy")
    file = folder / "scene1.npy"

    def refused(cause):
        with pytest.raises(UserError, match=cause):
            weak_labels(store, Labelling(mask=folder), store.scenes[1:2])
        assert not (store.path / "weak").exists()

    np.save(file, masks["scene1"][:-1])
    refused("scene1.npy: a mask of 399 points, the cloud has 400")
    np.save(file, masks["scene1"].astype(np.uint8))
    refused(r"scene1.npy: uint8 values of shape \(400,\), expected a bool for each point")
    np.save(file, masks["scene1"][:, None])
    refused(r"scene1.npy: bool values of shape \(400, 1\), expected a bool")
    file.write_bytes(b"nothing")
    refused("scene1.npy: cannot be read as a mask")
    file.unlink()
    refused("no mask of the cloud scene1, expected scene1.npy or scene1.ply")
    write_ply(folder / "scene1.ply", 400, [np.zeros(400, [("x", "f4"), ("chosen", "u1")])])
    refused("scene1.ply: no field labelled .label_mask_field., expected one of x, chosen")
    # Clouds that are not asked for need no mask.
    assert len(weak_labels(store, Labelling(mask=folder), store.scenes[:1])) == 1


def test_the_table_counts_points_labels_and_clouds(tiled):
    """Tiles of a cloud are one cloud; a class that is not labelled anywhere is named."""
    weak = [array.copy() for array in weak_labels(tiled, Labelling(points=20))]
    for array in weak:
        array[array == 2] = -1
    for scene, array in zip(tiled.scenes, weak, strict=True):
        if scene.cloud == "scene1":
            array[array == 1] = -1
    head, *rows, total, missing = label_table(tiled.classes, tiled.scenes, weak).splitlines()
    assert head.split() == ["class", "points", "labelled", "share", "clouds", "without", "label"]
    truth, known = all_labels(tiled), by_cloud(tiled, weak)
    for index, (name, row) in enumerate(zip(tiled.classes, rows, strict=True)):
        points = sum(int((a == index).sum()) for a in truth.values())
        labelled = sum(int((a == index).sum()) for a in known.values())
        assert row.split() == [name, f"{points:,}", f"{labelled:,}", f"{labelled / points:.3%}", "3", "013"[index]]
    assert total.startswith(f"{sum((a >= 0).sum() for a in weak)} of ") and total.endswith("3 clouds are labelled")
    assert missing == "no labelled point: rare"
    assert "no labelled point" not in label_table(tiled.classes, tiled.scenes, weak_labels(tiled, Labelling()))
