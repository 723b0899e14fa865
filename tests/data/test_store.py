import json
import multiprocessing
import os
import pickle
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clouds import tiny_cloud, whole

from dsp_sparse.data import GridCloud, RawCloud, RawScene, SceneStore, grid_cloud, prepare, s3dis, scannet
from dsp_sparse.errors import UserError

ARRAYS = ("points", "features", "labels", "inverse", "original_labels")


def contents(folder: Path) -> dict:
    """Every file below a folder that is not hidden."""
    files = [p for p in folder.rglob("*") if p.is_file() and not any(part[0] == "." for part in p.parts)]
    return {p.relative_to(folder): p.read_bytes() for p in files}


def with_scene(dataset, index, chunks):
    """The data set with another way to read one scene."""
    scenes = list(dataset.scenes)
    scenes[index] = replace(scenes[index], chunks=chunks)
    return replace(dataset, scenes=scenes)


def test_a_grid_cloud_is_the_mean_and_mode_of_its_cells():
    """Every original point's grid row is its cell; a row holds its barycentre, mean feature and mode label."""
    cloud = tiny_cloud(0)
    grid = grid_cloud(cloud, 0.25)
    np.testing.assert_array_equal(grid.origin, cloud.points.min(0))
    assert (grid.points.dtype, grid.features.dtype, grid.inverse.dtype) == (np.float32, np.float32, np.int32)
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


def test_large_coordinates_lose_nothing():
    """A cloud moved by whole grid-free metres far away is the same grid cloud with another origin."""
    cloud = tiny_cloud(0)
    # Rounded to 1/1024 m, so that the moved coordinates are exact in float64.
    near = RawCloud((cloud.points * 1024).round() / 1024, cloud.features, cloud.labels)
    far = RawCloud(near.points + np.array([770_500, 6_277_500, 40]), cloud.features, cloud.labels)
    here, there = grid_cloud(near, 0.25), grid_cloud(far, 0.25)
    np.testing.assert_array_equal(there.origin - here.origin, (770_500, 6_277_500, 40))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_a_store_holds_what_was_prepared(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    assert (store.grid, store.classes, store.feature_names) == (0.25, tiny_dataset.classes, ["red", "green", "blue"])
    assert store.in_channels == 5
    for scene, raw in zip(store.scenes, tiny_dataset.scenes, strict=True):
        expected: GridCloud = grid_cloud(whole(raw), 0.25)
        assert (scene.name, scene.group) == (raw.name, raw.group)
        assert (scene.num_points, scene.num_original) == (len(expected.points), 400)
        np.testing.assert_array_equal(scene.origin, expected.origin)
        for name in ARRAYS:
            assert isinstance(getattr(scene, name), np.memmap)
            np.testing.assert_array_equal(getattr(scene, name), getattr(expected, name))
        counts = np.bincount(expected.labels[expected.labels >= 0], minlength=3).tolist()
        assert store.manifest["scenes"][scene.number]["class_counts"] == counts
    store.verify()


def test_groups(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    assert [s.name for s in store.group(["a"])] == ["scene0", "scene2"]
    assert [s.name for s in store.group(["b", "a"])] == ["scene0", "scene1", "scene2"]
    with pytest.raises(UserError, match="no group 'Area_7', expected one of a, b"):
        store.group(["a", "Area_7"])


def test_a_scene_travels_to_other_processes_as_its_path(tiny_dataset, tmp_path):
    scene = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False).scenes[0]
    size = len(pickle.dumps(scene))
    assert len(scene.points) and scene.tree.n
    copy = pickle.dumps(scene)
    assert len(copy) == size
    np.testing.assert_array_equal(pickle.loads(copy).points, scene.points)


def test_any_number_of_workers_writes_the_same_store(rooms_folder, tmp_path):
    dataset = s3dis.scenes(rooms_folder)
    prepare(dataset, tmp_path / "one", 0.1, workers=1, progress=False)
    prepare(dataset, tmp_path / "two", 0.1, workers=2, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def interrupted():
    raise KeyboardInterrupt


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_interrupted_preparation_goes_on_where_it_stopped(tiny_dataset, tmp_path):
    """Finished scenes stay as they are; nothing is half-written; the end result is that of an undisturbed run."""
    with pytest.raises(KeyboardInterrupt):
        prepare(with_scene(tiny_dataset, 1, interrupted), tmp_path / "store", 0.25, progress=False)
    assert sorted(p.name for p in (tmp_path / "store" / "scenes").iterdir()) == ["scene0"]
    with pytest.raises(UserError, match="the store is unfinished"):
        SceneStore.open(tmp_path / "store")
    before = (tmp_path / "store" / "scenes" / "scene0" / "points.npy").stat().st_mtime_ns

    prepare(with_scene(tiny_dataset, 0, interrupted), tmp_path / "store", 0.25, progress=False)
    assert (tmp_path / "store" / "scenes" / "scene0" / "points.npy").stat().st_mtime_ns == before
    prepare(tiny_dataset, tmp_path / "clean", 0.25, progress=False)
    assert contents(tmp_path / "store") == contents(tmp_path / "clean")


def test_a_killed_preparation_leaves_whole_scenes_only(tiny_dataset, tmp_path, monkeypatch):
    """Killed between two arrays of the second scene, the store holds the first scene and can be finished."""
    save, calls = np.save, []

    def save_or_die(path, array):
        save(path, array)
        calls.append(path)
        if len(calls) == len(ARRAYS) + 4:
            killed()

    def child():
        monkeypatch.setattr(np, "save", save_or_die)
        prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    visible = [p.name for p in (tmp_path / "store" / "scenes").iterdir() if p.name[0] != "."]
    assert visible == ["scene0"]
    with pytest.raises(UserError, match="unfinished"):
        SceneStore.open(tmp_path / "store")

    prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False).verify()
    prepare(tiny_dataset, tmp_path / "clean", 0.25, progress=False)
    assert contents(tmp_path / "store") == contents(tmp_path / "clean")


def bad_cloud(points=((0, 0, 0),)):
    points = np.array(points, float).reshape(-1, 3)
    return RawCloud(points, np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.int64))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_cloud_is_named_and_leaves_nothing_half_written(tiny_dataset, tmp_path, workers):
    chunks = partial(iter, [bad_cloud(((0, 0, np.nan), (0, 0, 0)))])
    bad = replace(tiny_dataset, scenes=[RawScene("bad", "a", Path("bad.txt"), chunks)])
    with pytest.raises(UserError, match=r"bad.txt: point 1 has coordinates \[0.0, 0.0, nan\], expected finite"):
        prepare(bad, tmp_path / "store", 0.25, workers=workers, progress=False)
    assert not (tmp_path / "store").exists()


def test_an_empty_cloud_is_named(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match=r"scene0.txt: the cloud is empty"):
        prepare(with_scene(tiny_dataset, 0, partial(iter, [bad_cloud(())])), tmp_path / "store", 0.25, progress=False)


def test_a_folder_holds_one_data_set_on_one_grid(tiny_dataset, tmp_path):
    folder = tmp_path / "store"
    prepare(tiny_dataset, folder, 0.25, progress=False)
    before = contents(folder)
    for dataset, grid, problem in (
        (tiny_dataset, 0.1, "grid 0.25, not 0.1"),
        (replace(tiny_dataset, name="other"), 0.25, "dataset 'tiny', not 'other'"),
        (replace(tiny_dataset, classes=["x"]), 0.25, "classes"),
        (replace(tiny_dataset, root=tmp_path / "elsewhere"), 0.25, "source"),
    ):
        with pytest.raises(UserError, match=problem):
            prepare(dataset, folder, grid, progress=False)
    assert contents(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(UserError, match="mine: the folder is not empty"):
        prepare(tiny_dataset, tmp_path / "mine", 0.25, progress=False)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


@pytest.mark.parametrize("grid", [0, -1, float("nan"), float("inf")])
def test_the_grid_is_positive(tiny_dataset, tmp_path, grid):
    with pytest.raises(UserError, match="grid must be a positive number of metres"):
        prepare(tiny_dataset, tmp_path / "store", grid, progress=False)


def test_stores_of_another_kind_are_refused(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match="not a scene store"):
        SceneStore.open(tmp_path)
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    store.require_grid(0.25)
    with pytest.raises(UserError, match=r"grid is 0.25 m, expected 0.04 m"):
        store.require_grid(0.04)
    manifest = store.path / "manifest.json"
    manifest.write_text(json.dumps({**store.manifest, "format": 99}))
    for use in (SceneStore.open, lambda path: prepare(tiny_dataset, path, 0.25, progress=False)):
        with pytest.raises(UserError, match="store format 99, this version reads format 2"):
            use(store.path)
    manifest.write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: not the manifest of a scene store"):
        SceneStore.open(store.path)


def test_damaged_arrays_are_named(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    path = store.scenes[1].folder / "labels.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"labels.npy: cannot be read"):
        SceneStore.open(store.path).scenes[1].labels  # noqa: B018
    path.write_bytes(whole[:-8] + b"\1" * 8)
    with pytest.raises(UserError, match=r"labels.npy: differs from its checksum"):
        store.verify()


def test_real_scenes_go_back_to_every_original_point(real_data, tmp_path):
    dataset = scannet.scenes(real_data / "scannet")
    store = prepare(replace(dataset, scenes=dataset.scenes[:1]), tmp_path / "store", 0.04, progress=False)
    (scene,) = store.scenes
    cloud = whole(dataset.scenes[0])
    restored = scene.origin + scene.points[scene.inverse]
    assert np.abs(restored - cloud.points).max() < 0.04 + 1e-5
    assert (scene.labels[scene.inverse] == cloud.labels).mean() > 0.95
    np.testing.assert_array_equal(scene.original_labels, cloud.labels)
