import gc
import json
import multiprocessing
import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clouds import whole

from dsp_sparse.data import SceneStore, Tile, grid_cloud, prepare, scannet
from dsp_sparse.data.store import map_array, require_labels
from dsp_sparse.errors import UserError

ARRAYS = ("points", "features", "labels", "inverse", "original_labels")


@pytest.fixture
def store(tiny_dataset, tmp_path):
    """The store of `tiny_dataset`."""
    return prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)


@pytest.fixture
def tiled_store(tiny_dataset, tmp_path):
    """The store of `tiny_dataset`, its clouds cut into tiles."""
    return prepare(tiny_dataset, tmp_path / "tiled", 0.25, tile_points=150, progress=False)


def test_a_store_holds_what_was_prepared(store, tiny_dataset):
    assert (store.grid, store.classes, store.features) == (0.25, tiny_dataset.classes, tiny_dataset.features)
    assert store.in_channels == 5
    for number, (scene, raw) in enumerate(zip(store.scenes, tiny_dataset.scenes, strict=True)):
        expected = grid_cloud(Tile.whole(whole(raw)), 0.25)
        assert (scene.number, scene.name, scene.cloud, scene.group) == (number, raw.name, raw.name, raw.group)
        assert (scene.num_points, scene.num_original) == (len(expected.points), 400)
        assert scene.rows is None
        np.testing.assert_array_equal(scene.origin, expected.origin)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(scene, name), getattr(expected, name), strict=True)
        for name in ("low", "edge", "shape", "keys", "starts"):
            np.testing.assert_array_equal(getattr(scene.index, name), getattr(expected.index, name))


def test_tiles_of_a_cloud_are_scenes(tiled_store, tiny_dataset):
    """Tiles know their cloud and which of its points are theirs; together they hold every original point once."""
    for raw in tiny_dataset.scenes:
        cloud = whole(raw)
        scenes = [scene for scene in tiled_store.scenes if scene.cloud == raw.name]
        assert [scene.name for scene in scenes] == [f"{raw.name}_tile_{k}" for k in range(len(scenes))]
        assert len(scenes) > 2 and {scene.group for scene in scenes} == {raw.group}
        np.testing.assert_array_equal(np.sort(np.concatenate([scene.rows for scene in scenes])), np.arange(400))
        for scene in scenes:
            np.testing.assert_array_equal(scene.origin, cloud.points.min(0))
            np.testing.assert_array_equal(scene.original_labels, cloud.labels[scene.rows])
            restored = scene.origin + scene.points[scene.inverse]
            assert np.abs(restored - cloud.points[scene.rows]).max() < 0.25 + 1e-5


@pytest.mark.parametrize("name", ["store", "tiled_store"])
def test_labels_are_counted_without_reading_an_array(name, request, tiny_dataset):
    """Original points by class, those of a cloud's tiles add up; scenes without a label are named for what they are."""
    store = request.getfixturevalue(name)
    for array in store.path.rglob("*.npy"):
        array.unlink()
    for raw in tiny_dataset.scenes:
        labels = whole(raw).labels
        counts = sum(np.array(scene.class_counts) for scene in store.scenes if scene.cloud == raw.name)
        assert counts.tolist() == [(labels == label).sum() for label in range(3)]
    require_labels(store.scenes, "eval.groups")
    bare = [replace(scene, class_counts=[0, 0, 0]) for scene in store.scenes]
    require_labels([*bare, store.scenes[0]], "eval.groups")
    for scenes in (bare, []):
        with pytest.raises(UserError, match=r"eval.groups: no scene there has a labelled point"):
            require_labels(scenes, "eval.groups")


def test_groups(store):
    assert [s.name for s in store.group(["a"])] == ["scene0", "scene2"]
    assert [s.name for s in store.group(["b", "a"])] == ["scene0", "scene1", "scene2"]
    with pytest.raises(UserError, match="no group 'Area_7', expected one of a, b"):
        store.group(["a", "Area_7"])


def test_a_scene_travels_to_other_processes_as_its_path(store):
    scene = store.scenes[0]
    size = len(pickle.dumps(scene))
    assert len(scene.points) and len(scene.index.within(scene.points, scene.points[0], 1.0))
    copy = pickle.dumps(scene)
    assert len(copy) == size
    np.testing.assert_array_equal(pickle.loads(copy).points, scene.points)


def test_mapped_arrays_cannot_be_written(store):
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(store.scenes[0], name)[0] = 1


@pytest.mark.parametrize("array", [np.arange(12.0).reshape(4, 3), np.empty((0, 3), np.float32), np.empty((5, 0))])
def test_arrays_of_every_shape_are_mapped(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(map_array(tmp_path / "a.npy"), array, strict=True)


def test_mapped_arrays_hold_no_file_open(tiny_dataset, tmp_path):
    """A store has more arrays than a process may open files."""
    scenes = [replace(tiny_dataset.scenes[0], name=f"copy{i}") for i in range(12)]
    store = prepare(replace(tiny_dataset, scenes=scenes), tmp_path / "store", 0.25, progress=False)
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    try:
        arrays = [getattr(scene, name) for scene in store.scenes for name in (*ARRAYS, "index")]
        assert len(arrays) == 72
        assert len(os.listdir("/proc/self/fd")) <= used
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened_files(path, connection):
    """Opens a store; reports the files it read and the growth of the process's memory, in bytes."""
    import sys

    SceneStore.open(path)  # what is imported at first use does not count
    files = []
    sys.addaudithook(lambda event, arguments: files.append(str(arguments[0])) if event == "open" else None)
    page = os.sysconf("SC_PAGE_SIZE")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    store = SceneStore.open(path)
    after = int(Path("/proc/self/statm").read_text().split()[1]) * page
    connection.send((files, after - before, len(store.scenes)))


def test_opening_a_large_store_reads_its_manifest_alone(store, tmp_path):
    """300 scenes are opened without touching one of their files, in a few MB."""
    entries = [
        {**store.manifest["scenes"][0], "name": f"room{i}", "cloud": f"room{i}", "points": 10**7} for i in range(300)
    ]
    large = tmp_path / "large"
    large.mkdir()
    (large / "manifest.json").write_text(json.dumps({**store.manifest, "scenes": entries}))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=opened_files, args=(large, theirs))
    process.start()
    files, growth, scenes = ours.recv()
    process.join()
    assert scenes == 300
    assert [f for f in files if str(large) in f] == [str(large / "manifest.json")]
    assert growth < 20e6


def private_pages(scenes, names, connection):
    """Reads all arrays of scenes; reports how much of them are copies of its own, in bytes."""
    arrays = [getattr(scene, name) for scene in scenes for name in names]
    sum(float(array.sum()) for array in arrays)
    private, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(".npy")
        elif inside and line.startswith("Anonymous:"):
            private += int(line.split()[1]) * 1024
    connection.send(private)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_share_the_pages_of_arrays(store, start):
    """A worker that reads every array has no page of its own: they are those of the system's file cache."""
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("pages are counted in /proc/self/smaps")
    ours, theirs = multiprocessing.Pipe()
    arguments = (store.scenes, ("points", "features", "inverse"), theirs)
    process = multiprocessing.get_context(start).Process(target=private_pages, args=arguments)
    process.start()
    assert ours.poll(60) and ours.recv() == 0
    process.join()


def test_stores_of_another_kind_are_refused(store, tiny_dataset, tmp_path):
    with pytest.raises(UserError, match="not a scene store"):
        SceneStore.open(tmp_path)
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


@pytest.mark.parametrize("name", ["points", "labels", "inverse", "block_keys", "block_starts"])
def test_damaged_arrays_are_named(store, name):
    """An array that is missing, cut off, too long or of another scene is named instead of read."""

    def use():
        scene = SceneStore.open(store.path).scenes[1]
        getattr(scene, "index" if name.startswith("block") else name)

    path = store.scenes[1].folder / f"{name}.npy"
    whole = path.read_bytes()
    use()
    for damaged in (whole[:-8], whole + b"\0", whole[:40], b"", b"text" * 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}.npy: cannot be read"):
            use()
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}.npy: cannot be read"):
        use()
    np.save(path, np.zeros((3, 3), np.float32))
    with pytest.raises(UserError, match=rf"{name}.npy: 3 rows, expected"):
        use()


def test_real_scenes_go_back_to_every_original_point(real_data, tmp_path):
    dataset = scannet.scenes(real_data / "scannet")
    store = prepare(replace(dataset, scenes=dataset.scenes[:1]), tmp_path / "store", 0.04, progress=False)
    (scene,) = store.scenes
    cloud = whole(dataset.scenes[0])
    restored = scene.origin + scene.points[scene.inverse]
    assert np.abs(restored - cloud.points).max() < 0.04 + 1e-5
    assert (scene.labels[scene.inverse] == cloud.labels).mean() > 0.95
    np.testing.assert_array_equal(scene.original_labels, cloud.labels)
