import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clouds import tiny_cloud

from dsp_sparse.data import Labelling, RawCloud, RawScene, SceneStore, prepare, s3dis, weak_labels
from dsp_sparse.data.check import check
from dsp_sparse.data.prepare import BrokenCloudsError
from dsp_sparse.errors import UserError
from dsp_sparse.files import locked

pytestmark = pytest.mark.filterwarnings("ignore:the .* tiles of a cloud")  # tiny ones


def contents(folder: Path) -> dict:
    """Every file below a folder, leftovers included."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def with_scene(dataset, index, chunks):
    """The data set with another way to read one scene."""
    scenes = list(dataset.scenes)
    scenes[index] = replace(scenes[index], chunks=chunks)
    return replace(dataset, scenes=scenes)


@pytest.mark.parametrize("tile_points", [100_000, 3000])
def test_any_number_of_workers_writes_the_same_store(rooms_folder, tmp_path, tile_points):
    dataset = s3dis.scenes(rooms_folder)
    prepare(dataset, tmp_path / "one", 0.1, workers=1, tile_points=tile_points, progress=False)
    prepare(dataset, tmp_path / "two", 0.1, workers=2, tile_points=tile_points, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_how_a_cloud_comes_in_pieces_does_not_matter(tiny_dataset, tmp_path):
    """A store depends on the points, not on how a reader dealt them out."""
    cloud = tiny_cloud(0)
    parts = [RawCloud(cloud.points[r], cloud.features[r], cloud.labels[r]) for r in np.array_split(np.arange(400), 7)]
    for tile_points in (10_000, 150):
        for name, pieces in (("one", [cloud]), ("many", parts)):
            dataset = with_scene(tiny_dataset, 0, partial(iter, pieces))
            prepare(dataset, tmp_path / f"{name}{tile_points}", 0.25, tile_points=tile_points, progress=False)
        assert contents(tmp_path / f"one{tile_points}") == contents(tmp_path / f"many{tile_points}")


def interrupted():
    raise KeyboardInterrupt


def interrupted_later():
    yield tiny_cloud(1, 300)
    raise KeyboardInterrupt


@pytest.mark.parametrize("interruption", [interrupted, interrupted_later])
def test_an_interrupted_preparation_goes_on_where_it_stopped(tiny_dataset, tmp_path, interruption):
    """Finished clouds stay as they are; nothing is half-written; the end result is that of an undisturbed run."""
    arguments = {"grid": 0.25, "tile_points": 150, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        prepare(with_scene(tiny_dataset, 1, interruption), tmp_path / "store", **arguments)
    assert sorted(p.name for p in (tmp_path / "store" / "scenes").iterdir()) == ["scene0"]
    with pytest.raises(UserError, match="the store is unfinished"):
        SceneStore.open(tmp_path / "store")
    before = (tmp_path / "store" / "scenes" / "scene0" / "scene.json").stat().st_mtime_ns

    prepare(with_scene(tiny_dataset, 0, interrupted), tmp_path / "store", **arguments)
    assert (tmp_path / "store" / "scenes" / "scene0" / "scene.json").stat().st_mtime_ns == before
    prepare(tiny_dataset, tmp_path / "clean", **arguments)
    assert contents(tmp_path / "store") == contents(tmp_path / "clean")


PROGRAM = """
import sys, time
from pathlib import Path
from dsp_sparse.data import prepare, s3dis

class Slow:
    # Hands out pieces with pauses, so that the test can stop the work at a known place.
    def __init__(self, chunks): self.chunks = chunks
    def __call__(self):
        for piece in self.chunks():
            yield piece
            time.sleep(float(sys.argv[5]))

if __name__ == "__main__":
    from dataclasses import replace
    dataset = s3dis.scenes(sys.argv[1])
    dataset = replace(dataset, scenes=[replace(s, chunks=Slow(s.chunks)) for s in dataset.scenes])
    prepare(dataset, sys.argv[2], 0.1, workers=int(sys.argv[3]), tile_points=int(sys.argv[4]), progress=False)
"""


# Seconds for what takes some. A machine may be busy.
TIME_LIMIT = 600


def wait_for(condition, seconds=TIME_LIMIT):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.mark.parametrize("tile_points", [100_000, 3000], ids=["whole", "tiled"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_is_finished_by_the_next(rooms_folder, tmp_path, workers, tile_points):
    """Killed by SIGKILL in the middle of a cloud: its processes end with it, and leave that cloud unfinished and the
    finished ones whole. Running again ends in the very bytes of an undisturbed run."""
    (tmp_path / "program.py").write_text(PROGRAM)
    folder = tmp_path / "store"
    arguments = [str(rooms_folder), str(folder), str(workers), str(tile_points)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, str(tmp_path / "program.py")]
    process = subprocess.Popen([*program, *arguments, "0.05"], env=environment, stdout=subprocess.PIPE)
    try:
        wait_for(lambda: [*folder.glob("scenes/[!.]*")])
        # in the middle of the next cloud; where it is cut into tiles, after its first one
        wait_for(lambda: [*folder.glob("scenes/.*/*/points.npy" if tile_points < 8000 else "scenes/.*")])
    finally:
        process.kill()
    process.communicate(timeout=TIME_LIMIT)  # to the end of the output: no process that inherited it is left
    assert any(part.startswith(".") for path in folder.rglob("*") for part in path.parts)
    with pytest.raises(UserError, match="unfinished"):
        SceneStore.open(folder)

    subprocess.run([*program, *arguments, "0"], env=environment, check=True)
    prepare(s3dis.scenes(rooms_folder), tmp_path / "clean", 0.1, tile_points=tile_points, progress=False)
    assert contents(folder) == contents(tmp_path / "clean")


@pytest.mark.parametrize("tile_points", [1000, 150], ids=["whole", "tiled"])
def test_weak_labels_go_with_their_cloud(tiny_dataset, tmp_path, tile_points):
    """A cloud that is prepared anew, with other labels, is labelled anew; those of other clouds stay, whatever their
    names."""
    names = ["room[1]", "room[1]0", "room1"]
    scenes = [replace(scene, name=name) for scene, name in zip(tiny_dataset.scenes, names, strict=True)]
    dataset = replace(tiny_dataset, scenes=scenes)
    arguments = {"grid": 0.25, "tile_points": tile_points, "progress": False}
    labels = weak_labels(prepare(dataset, tmp_path / "store", **arguments), Labelling(points=5))
    kept = {path: path.stat().st_mtime_ns for path in labels.files if path.stem.partition("_tile")[0] != "room[1]"}
    assert 0 < len(kept) < len(labels.files)

    shutil.rmtree(tmp_path / "store" / "scenes" / "room[1]")
    corrected = replace(tiny_cloud(0), labels=np.full(400, 1))
    store = prepare(with_scene(dataset, 0, partial(iter, [corrected])), tmp_path / "store", **arguments)
    drawn = weak_labels(store, Labelling(points=5), [scene for scene in store.scenes if scene.cloud == "room[1]"])
    assert [int((np.concatenate(drawn[:]) == label).sum()) for label in range(3)] == [0, 5, 0]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_leftovers_of_a_killed_run_are_removed(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    before = contents(store.path)
    (store.path / "scenes" / ".scene1.abc" / "tile_0").mkdir(parents=True)
    (store.path / "scenes" / ".scene1.abc" / "tile_0" / "points.npy").write_bytes(b"half")
    (store.path / ".manifest.json.abc.json").write_text("{")
    prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    assert contents(store.path) == before


def test_a_run_killed_before_its_first_manifest_leaves_nothing_in_the_way(tiny_dataset, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".manifest.json.abc.json").write_text("{")
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    assert not (store.path / ".manifest.json.abc.json").exists()


def test_a_cloud_that_was_deleted_comes_back(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    before = contents(store.path)
    shutil.rmtree(store.path / "scenes" / "scene1")
    prepare(tiny_dataset, store.path, 0.25, progress=False)
    assert contents(store.path) == before


def test_other_groups_are_taken_over(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    moved = replace(tiny_dataset, scenes=[replace(scene, group="c") for scene in tiny_dataset.scenes])
    store = prepare(moved, store.path, 0.25, progress=False)
    assert {scene.group for scene in store.scenes} == {"c"}
    assert check(store, progress=False)[0] == []


def test_a_folder_that_was_there_stays_when_nothing_comes_of_it(tiny_dataset, tmp_path):
    """The error is that of the cloud."""
    (tmp_path / "store").mkdir()
    scenes = with_scene(tiny_dataset, 0, partial(bad_cloud, ())).scenes[:1]
    with pytest.raises(UserError, match="the cloud is empty"):
        prepare(replace(tiny_dataset, scenes=scenes), tmp_path / "store", 0.25, progress=False)
    assert not [*(tmp_path / "store").iterdir()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_reported_with_the_cloud_and_the_folder(tiny_dataset, tmp_path, workers):
    """A limit on the size of files stands in for it: the error of the system names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = replace(
        tiny_dataset, scenes=[RawScene("large", "a", Path("large.txt"), partial(iter, [tiny_cloud(0, 10**5)]))]
    )
    prepare(tiny_dataset, tmp_path / "other", 0.25, progress=False)  # whatever else is written the first time
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, before[1]))
    try:
        with pytest.raises(UserError, match=r"large.txt cannot be prepared in .*store/scenes: File too large"):
            prepare(large, tmp_path / "store", 0.01, workers=workers, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def test_a_worker_that_is_killed_is_reported(tiny_dataset, tmp_path):
    with pytest.raises(
        UserError, match=r"a worker was killed \(out of memory\?\); try fewer workers or a smaller tile"
    ):
        prepare(with_scene(tiny_dataset, 1, killed), tmp_path / "store", 0.25, workers=2, progress=False)


def test_one_process_at_a_time(tiny_dataset, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    with locked(folder), pytest.raises(UserError, match="store: another process is writing this folder"):
        prepare(tiny_dataset, folder, 0.25, progress=False)
    assert not contents(folder)
    prepare(tiny_dataset, folder, 0.25, progress=False)


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    code = "import sys, time\nfrom dsp_sparse.files import locked\n"
    code += "with locked(sys.argv[1]): print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(UserError, match="another process"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path):
        pass
    process.stdout.close()


def test_progress_counts_points(tiny_dataset, tmp_path, capsys):
    """The bar counts points and clouds; a line sums up, and says so when there was nothing to do."""
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, tile_points=150)
    kept = sum(scene.num_points for scene in store.scenes)
    printed = capsys.readouterr()
    assert "1.20kpoint" in printed.err and "3/3 clouds" in printed.err
    assert printed.out.startswith(f"3 of 3 clouds prepared: 1,200 points -> {kept:,} grid points in ")
    assert printed.out.endswith(" points/s\n")
    prepare(tiny_dataset, tmp_path / "store", 0.25, tile_points=150)
    assert capsys.readouterr().out.startswith("all 3 clouds were there already")


def bad_cloud(points=((0, 0, 0),)):
    points = np.array(points, float).reshape(-1, 3)
    yield RawCloud(points, np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.int64))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_cloud_is_named_and_leaves_nothing_half_written(tiny_dataset, tmp_path, workers):
    chunks = partial(bad_cloud, ((0, 0, 0), (0, 0, np.nan)))
    bad = replace(tiny_dataset, scenes=[RawScene("bad", "a", Path("bad.txt"), chunks)])
    with pytest.raises(UserError, match=r"bad.txt: point 2 has coordinates"):
        prepare(bad, tmp_path / "store", 0.25, workers=workers, progress=False)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_clouds_leave_the_others_alone(tiny_dataset, tmp_path, workers):
    """All of them are named in the end, and only they are left to mend."""
    bad = with_scene(tiny_dataset, 0, partial(bad_cloud, ()))
    bad = with_scene(bad, 2, partial(bad_cloud, ((0, 0, 0), (0, 0, np.nan))))
    with pytest.raises(
        BrokenCloudsError, match=r"scene0.txt: the cloud is empty.* \(the first of 2 .* of 3\)"
    ) as error:
        prepare(bad, tmp_path / "store", 0.25, workers=workers, progress=False)
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["scene0.txt", "scene2.txt"]
    assert [path.name for path in (tmp_path / "store" / "scenes").iterdir()] == ["scene1"]
    with pytest.raises(UserError, match="the store is unfinished"):
        SceneStore.open(tmp_path / "store")
    prepare(with_scene(tiny_dataset, 1, interrupted), tmp_path / "store", 0.25, workers=workers, progress=False)
    prepare(tiny_dataset, tmp_path / "clean", 0.25, progress=False)
    assert contents(tmp_path / "store") == contents(tmp_path / "clean")


def test_an_empty_cloud_is_named(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match=r"scene0.txt: the cloud is empty"):
        prepare(with_scene(tiny_dataset, 0, partial(bad_cloud, ())), tmp_path / "store", 0.25, progress=False)


@pytest.mark.parametrize("tile_points", [1, 10])
def test_a_cloud_in_other_units_is_named(tiny_dataset, tmp_path, tile_points):
    wide = partial(bad_cloud, ((0, 0, 0), (1e15, 1e15, 0)))
    with pytest.raises(UserError, match=r"scene0.txt: the cloud is .* too wide for a grid of 0.25 m; are the units"):
        prepare(with_scene(tiny_dataset, 0, wide), tmp_path / "store", 0.25, tile_points=tile_points, progress=False)


def test_a_folder_holds_one_data_set_on_one_grid(tiny_dataset, tmp_path):
    folder = tmp_path / "store"
    prepare(tiny_dataset, folder, 0.25, progress=False)
    before = contents(folder)
    for dataset, arguments, problem in (
        (tiny_dataset, {"grid": 0.1}, "grid 0.25, not 0.1"),
        (tiny_dataset, {"grid": 0.25, "tile_points": 100}, "tile_points 8000000, not 100"),
        (tiny_dataset, {"grid": 0.25, "overlap": 2.0}, "overlap None, not 2.0"),
        (replace(tiny_dataset, name="other"), {"grid": 0.25}, "dataset 'tiny', not 'other'"),
        (replace(tiny_dataset, classes=["x"]), {"grid": 0.25}, "classes"),
        (replace(tiny_dataset, features=dict(reversed(tiny_dataset.features.items()))), {"grid": 0.25}, "features"),
        (replace(tiny_dataset, reading={"ids": {"floor": [2]}}), {"grid": 0.25}, "reading"),
        (replace(tiny_dataset, root=tmp_path / "elsewhere"), {"grid": 0.25}, "source"),
    ):
        with pytest.raises(UserError, match=problem):
            prepare(dataset, folder, progress=False, **arguments)
    assert contents(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(UserError, match="mine: the folder is not empty"):
        prepare(tiny_dataset, tmp_path / "mine", 0.25, progress=False)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


def test_a_finished_store_is_left_alone(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, progress=False)
    manifest = store.path / "manifest.json"
    before = manifest.stat().st_mtime_ns
    prepare(tiny_dataset, store.path, 0.25, progress=False)
    assert manifest.stat().st_mtime_ns == before
    assert check(store, progress=False)[0] == []


def test_scenes_have_names_of_their_own(tiny_dataset, tmp_path):
    twice = replace(tiny_dataset, scenes=[tiny_dataset.scenes[0]] * 2)
    with pytest.raises(UserError, match=r"scene0.txt \(group a\) and .*same name 'scene0'"):
        prepare(twice, tmp_path / "store", 0.25, progress=False)
    small = RawScene("scene0_tile_1", "a", Path("small.txt"), partial(bad_cloud, ((0, 0, 0),)))
    clash = replace(tiny_dataset, scenes=[tiny_dataset.scenes[0], small])
    with pytest.raises(UserError, match="a cloud has the name of a tile of another"):
        prepare(clash, tmp_path / "store", 0.25, tile_points=150, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"grid": grid}, "grid must be a positive number of metres") for grid in (0, -1, np.nan, np.inf)),
        ({"grid": 0.25, "workers": 0}, "workers must be at least 1, got 0"),
        ({"grid": 0.25, "tile_points": 0}, "tile_points must be at least 1, got 0"),
        ({"grid": 0.25, "overlap": -1.0}, "overlap must be a number of metres from 0, got -1.0"),
        ({"grid": 0.25, "overlap": np.inf}, "overlap must be a number of metres from 0, got inf"),
    ],
)
def test_bad_arguments_are_named(tiny_dataset, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        prepare(tiny_dataset, tmp_path / "store", progress=False, **arguments)
    assert not (tmp_path / "store").exists()


def test_the_manifest_says_what_was_done(tiny_dataset, tmp_path):
    store = prepare(tiny_dataset, tmp_path / "store", 0.25, tile_points=150, overlap=0.5, progress=False)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert (manifest["grid"], manifest["tile_points"], manifest["overlap"]) == (0.25, 150, 0.5)
    assert sum(entry["original_points"] for entry in manifest["scenes"]) == 1200
