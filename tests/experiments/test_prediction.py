"""Prediction on files: every point is labelled once, everything else is kept, and mistakes are named."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from tqdm import tqdm

from dsp_sparse import distributed
from dsp_sparse.cli import main
from dsp_sparse.data import SceneStore
from dsp_sparse.data.dataset import RawCloud
from dsp_sparse.data.readers import read_chunks
from dsp_sparse.data.scannet import NYU40
from dsp_sparse.data.tiles import grid_cloud, tiles
from dsp_sparse.errors import UserError
from dsp_sparse.experiments import prediction
from dsp_sparse.experiments.labelled_files import PREDICTED, written
from dsp_sparse.experiments.labelled_files import write as write_labels
from dsp_sparse.experiments.prediction import label_points, predict
from dsp_sparse.files import locked
from dsp_sparse.inference import BasicBranch, Voting, predict_probabilities
from dsp_sparse.palette import palette
from dsp_sparse.training.checkpoint import load_model, save_model

COLOURED = [*((n, "f8") for n in "xyz"), *((n, "u1") for n in ("red", "green", "blue")), ("id", "i4")]


def cloud(count=600, seed=0, side=2.0) -> np.ndarray:
    """Coloured points in a cube far from the origin, numbered."""
    generator = np.random.default_rng(seed)
    vertex = np.zeros(count, COLOURED)
    for name in "xyz":
        vertex[name] = generator.uniform(0, side, count) + 6e5
    for name in ("red", "green", "blue"):
        vertex[name] = generator.integers(0, 256, count)
    vertex["id"] = np.arange(count)
    return vertex


def write(path, vertex):
    path.parent.mkdir(parents=True, exist_ok=True)
    PlyData([PlyElement.describe(vertex, "vertex")]).write(str(path))
    return path


def read(path) -> np.ndarray:
    return PlyData.read(str(path))["vertex"].data


@pytest.fixture
def run(make_run, rooms_store):
    return make_run(rooms_store)


def test_ply_keeps_the_fields_and_adds_label_colour_and_confidence(run, rooms_store, tmp_path):
    """Coordinates to the last bit; colours of the classes in place of the measured ones; comments name the classes."""
    vertex = cloud()
    assert predict(run, write(tmp_path / "in.ply", vertex), tmp_path / "out.ply") == 0
    found = read(tmp_path / "out.ply")
    for name in ("x", "y", "z", "id"):
        assert found[name].dtype == vertex[name].dtype
        np.testing.assert_array_equal(found[name], vertex[name])
    assert found["label"].dtype == np.int32 and found["confidence"].dtype == np.float32
    assert found["label"].min() >= 0 and found["label"].max() < 13 and len(np.unique(found["label"])) > 1
    assert found["confidence"].min() > 0 and found["confidence"].max() <= 1
    colours = np.stack([found[name] for name in ("red", "green", "blue")], 1)
    np.testing.assert_array_equal(colours, palette(13)[found["label"]])
    comments = PlyData.read(str(tmp_path / "out.ply")).comments
    assert comments == [f"label {number} {name}" for number, name in enumerate(rooms_store.classes)]
    assert sorted(p.name for p in tmp_path.iterdir() if p != run) == ["in.ply", "out.ply"]


def test_the_labels_are_those_of_the_votes(run, tmp_path):
    """Each point has the class of the highest mean probability of its grid point."""
    path = write(tmp_path / "in.ply", cloud())
    predict(run, path, tmp_path / "out.ply", votes=2, rotations=2)
    model = load_model(run)
    (chunk,) = read_chunks(path)
    points = np.stack([chunk[name] for name in "xyz"], 1)
    features = np.stack([chunk[name] / 255 for name in ("red", "green", "blue")], 1).astype(np.float32)
    (tile,) = tiles([RawCloud(points, features, np.full(len(chunk), -1))], grid=model.grid)
    grid = grid_cloud(tile, model.grid)
    voting = Voting(radius=model.radius, votes=2, rotations=2)
    confidence, label = predict_probabilities(BasicBranch(model.net), grid, voting).max(1)
    found = read(tmp_path / "out.ply")
    np.testing.assert_array_equal(found["label"], label.numpy()[grid.inverse])
    np.testing.assert_array_equal(found["confidence"], confidence.numpy()[grid.inverse])


def test_npy_and_ply_say_the_same(run, tmp_path):
    """Labels int32 and, beside them, confidences float32, in the order of the points; pieces change nothing."""
    path = write(tmp_path / "in.ply", cloud())
    predict(run, path, tmp_path / "out.ply")
    predict(run, path, tmp_path / "out.npy", format="npy")
    labels, confidence = np.load(tmp_path / "out.npy"), np.load(tmp_path / "out_confidence.npy")
    assert labels.dtype == np.int32 and confidence.dtype == np.float32
    found = read(tmp_path / "out.ply")
    np.testing.assert_array_equal(labels, found["label"])
    np.testing.assert_array_equal(confidence, found["confidence"])


def test_a_file_in_many_chunks_gives_the_same_result(run, tmp_path, monkeypatch):
    """How much is read and written at once is not seen in the result."""
    path = write(tmp_path / "in.ply", cloud())
    predict(run, path, tmp_path / "one.ply")
    monkeypatch.setattr("dsp_sparse.data.dataset.CHUNK", 130)
    monkeypatch.setattr(prediction, "CHUNK", 70)
    predict(run, path, tmp_path / "many.ply")
    assert (tmp_path / "one.ply").read_bytes() == (tmp_path / "many.ply").read_bytes()


class CountingBranch(BasicBranch):
    """The height of a point above the lowest of the cloud decides its class and its confidence; balls are kept."""

    def __call__(self, samples):
        answers = []
        for sample in samples:
            self.seen.append(sample)
            height = torch.from_numpy(sample.feat[:, -1])
            answers.append((4 + height)[:, None] * torch.nn.functional.one_hot((height < 0.5).long(), 13))
        return answers


def test_tiles_label_every_point_once_with_its_votes(run, tmp_path):
    """A cloud in tiles: each original point has one label, each tile covers its core with all votes, heights are those
    of the whole cloud. The balls of a tile are others than those of the whole cloud, so a network's probabilities agree
    up to what another ball around the same point changes; an answer that depends on the point alone is equal."""
    vertex = cloud(4000, side=4.0)
    points = np.stack([vertex[name] for name in "xyz"], 1)
    raw = RawCloud(points, np.zeros((len(points), 3), np.float32), np.full(len(points), -1))
    model = load_model(run)
    voting = Voting(radius=1.0, votes=2)
    results = []
    for tile_points in (10_000, 700):
        branch = CountingBranch(model.net)
        branch.seen = []
        pieces = [RawCloud(*(getattr(raw, n)[i::3] for n in ("points", "features", "labels"))) for i in range(3)]
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            where = (tmp_path / "cloud.ply", file, tmp_path)
            assert label_points(branch, model.grid, voting, pieces, *where, tile_points=tile_points) == len(points)
            file.seek(0)
            results.append(np.fromfile(file, PREDICTED))
    for tile in tiles(pieces, grid=model.grid, tile_points=700, overlap=1.0):
        grid = grid_cloud(tile, model.grid)
        balls = [sample.rows for sample in branch.seen if sample.scene == tile.number]
        assert np.bincount(np.concatenate(balls), minlength=len(grid.points))[grid.inverse].min() >= 2
    assert tile.total > 4
    whole, tiled = results
    np.testing.assert_array_equal(whole["label"], tiled["label"])
    assert len(np.unique(whole["confidence"])) > 1000
    np.testing.assert_allclose(whole["confidence"], tiled["confidence"], rtol=1e-5)


def test_reading_and_cutting_are_shown(run, tmp_path, monkeypatch):
    """One bar for both: it fills twice, and is gone when the first tile comes, or when a file is broken."""
    bars = []

    class Bar(tqdm):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.said = []
            bars.append(self)

        def update(self, n=1):
            super().update(n)
            self.said.append((self.desc, self.n, self.total))

    monkeypatch.setattr(prediction, "tqdm", Bar)
    vertex = cloud(900, side=4.0)
    points = np.stack([vertex[name] for name in "xyz"], 1)
    raws = [RawCloud(points[i::2], np.zeros((450, 3), np.float32), np.full(450, -1)) for i in range(2)]
    model = load_model(run)
    settings = (BasicBranch(model.net), model.grid, Voting(radius=1.0, votes=1))
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        label_points(*settings, raws, tmp_path / "cloud.ply", file, tmp_path, tile_points=500)
    assert [(name.rstrip(": "), n, total) for name, n, total in bars[0].said] == [
        ("cloud.ply: read", 450, None),
        ("cloud.ply: read", 900, None),
        ("cloud.ply: cut into tiles", 450, 900),
        ("cloud.ply: cut into tiles", 900, 900),
    ]

    def broken():
        yield raws[0]
        raise UserError("broken")

    bars.clear()
    with tempfile.TemporaryFile(dir=tmp_path) as file, pytest.raises(UserError, match="broken"):
        label_points(*settings, broken(), tmp_path / "cloud.ply", file, tmp_path)
    assert not Bar._instances


def test_memory_holds_one_tile_at_a_time(run, tmp_path, monkeypatch):
    """Before the next tile is read, nothing holds the last one or its grid points."""
    alive = []

    def watched(cut, *args, **settings):
        found = cut(*args, **settings)
        alive.append(weakref.ref(found))
        return found

    def one_by_one(*args, **settings):
        cut = tiles(*args, **settings)
        while (tile := next(cut, None)) is not None:
            alive.append(weakref.ref(tile))
            handed = [tile]
            del tile
            yield handed.pop()
            assert not any(reference() for reference in alive)

    monkeypatch.setattr(prediction, "tiles", one_by_one)
    monkeypatch.setattr(prediction, "grid_cloud", partial(watched, grid_cloud))
    vertex = cloud(3000, side=4.0)
    points = np.stack([vertex[name] for name in "xyz"], 1)
    raw = RawCloud(points, np.zeros((len(points), 3), np.float32), np.full(len(points), -1))
    model = load_model(run)
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        where = (tmp_path / "cloud.ply", file, tmp_path)
        label_points(BasicBranch(model.net), model.grid, Voting(radius=1.0, votes=1), [raw], *where, tile_points=900)
    assert len(alive) > 4


def test_a_folder_is_labelled_file_by_file_and_finished_files_are_kept(run, tmp_path, capsys):
    """Every known format, subfolders too; a bad file is named and leaves the others alone; the command goes on."""
    folder, out = tmp_path / "clouds", tmp_path / "out"
    write(folder / "a.ply", cloud(seed=1))
    (folder / "sub").mkdir()
    np.save(folder / "sub" / "b.npy", cloud(seed=2))
    np.savetxt(folder / "sub" / "c.txt", np.stack([cloud(seed=3)[n] for n in cloud().dtype.names[:6]], 1), fmt="%.3f")
    (folder / "bad.ply").write_bytes(b"ply\nformat")
    (folder / "notes.md").write_text("no cloud")
    (folder / ".hidden.ply").write_bytes(b"")
    assert predict(run, folder, out) == 1
    printed = capsys.readouterr()
    assert "bad.ply" in printed.err and "a.ply: 600 points" in printed.out
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.ply"))
    assert names == ["a.ply", "sub/b.ply", "sub/c.ply"]
    before = {name: (out / name).stat().st_mtime_ns for name in names}
    write(folder / "bad.ply", cloud(seed=4))
    assert predict(run, folder, out) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in names} == before
    alone = tmp_path / "alone.ply"
    predict(run, folder / "bad.ply", alone)
    assert alone.read_bytes() == (out / "bad.ply").read_bytes(), "a file is labelled alike alone and in a folder"


def test_the_exit_code_tells_of_a_bad_file(run, tmp_path):
    folder = tmp_path / "clouds"
    write(folder / "good.ply", cloud())
    (folder / "bad.xyz").write_text("1 2 three\n")
    with pytest.raises(SystemExit) as exit:
        main(["predict", str(run), str(folder), "--out", str(tmp_path / "out"), "--format", "npy"])
    assert exit.value.code == 1 and np.load(tmp_path / "out" / "good.npy").shape == (600,)


def test_links_to_folders_are_followed(run, tmp_path):
    """Clouds often lie on another disk."""
    write(tmp_path / "disk" / "a.ply", cloud())
    (tmp_path / "clouds").mkdir()
    (tmp_path / "clouds" / "link").symlink_to(tmp_path / "disk")
    assert predict(run, tmp_path / "clouds", tmp_path / "out", votes=1) == 0
    assert (tmp_path / "out" / "link" / "a.ply").is_file()


def test_what_a_killed_process_left_is_removed(run, tmp_path):
    """Half a result has a hidden name; the next run removes it, even where it is all there is, and nothing else."""
    folder, out = tmp_path / "clouds", tmp_path / "out"
    write(folder / "a.ply", cloud())
    write(folder / "sub" / "b.ply", cloud())
    out.mkdir()
    (out / ".prediction.json.abc.json").touch()
    assert predict(run, folder, out, votes=1) == 0
    for name in (".a.ply.abc.ply", "sub/.b.ply.abc.ply", ".hidden"):
        (out / name).touch()
    assert predict(run, folder, out, votes=1) == 0
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {"a.ply", "sub/b.ply", "prediction.json", ".hidden"}


def test_a_folder_is_written_by_one_job_at_a_time(run, tmp_path):
    write(tmp_path / "clouds" / "a.ply", cloud())
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(UserError, match="out: another process is writing this folder"):
        predict(run, tmp_path / "clouds", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_predictions_of_other_settings_are_not_mixed(run, tmp_path):
    """A folder belongs to one model and one way to vote; what holds anything else is not written into."""
    folder, out = tmp_path / "clouds", tmp_path / "out"
    write(folder / "a.ply", cloud())
    predict(run, folder, out)
    for settings, message in (({"votes": 1}, "votes is 3, not 1"), ({"format": "npy"}, "format is 'ply', not 'npy'")):
        with pytest.raises(UserError, match=message):
            predict(run, folder, out, **settings)
    model = load_model(run)
    save_model(run / "model.pt", replace(model, radius=1.0))
    with pytest.raises(UserError, match=r"model is .* choose another folder"):
        predict(run, folder, out)
    with pytest.raises(UserError, match="holds no predictions"):
        predict(run, folder, run)


def test_interrupted_it_goes_on_where_it_stopped(run, tmp_path):
    """Ctrl-C keeps what is finished and leaves no half file; the same command does the rest."""
    folder, out = tmp_path / "clouds", tmp_path / "out"
    for number in range(20):
        write(folder / f"{number:02}.ply", cloud(2000, number, 3.0))
    command = [sys.executable, "-m", "dsp_sparse", "predict", run, folder, "--out", out, "--votes", "9"]
    program = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    program.stdout.readline()
    program.send_signal(signal.SIGINT)
    _, message = program.communicate(timeout=60)
    assert program.returncode == 130 and "the same command labels the clouds that are left" in message
    done = sorted(out.glob("*.ply"))
    assert 1 <= len(done) < 20
    assert not [p for p in out.iterdir() if p.name[0] == "."]
    assert all(len(read(path)) == 2000 for path in done)
    for path in sorted(folder.iterdir())[4:]:
        path.unlink()  # four are enough
    before = {path: path.stat().st_mtime_ns for path in done}
    assert predict(run, folder, out, votes=9) == 0
    assert {path.stem for path in out.glob("*.ply")} >= {f"{number:02}" for number in range(4)}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error(run, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="locked"):
        predict(run, write(tmp_path / "in.ply", cloud()), locked / "out.ply")


def test_mistakes_are_named(run, tmp_path):
    """The file, the argument, what was expected; nothing is written."""
    good = write(tmp_path / "in" / "good.ply", cloud())
    nan = cloud()
    nan["y"][3] = np.nan
    write(tmp_path / "in" / "nan.ply", nan)
    write(tmp_path / "in" / "empty.ply", cloud(0))
    write(tmp_path / "in" / "plain.ply", np.array(cloud()[["x", "y", "z", "id"]], [COLOURED[i] for i in (0, 1, 2, 6)]))
    (tmp_path / "none").mkdir()
    (tmp_path / "twins").mkdir()
    for name in ("a.ply", "a.txt", "b.ply", "b_confidence.ply"):
        (tmp_path / "twins" / name).touch()
    np.save(tmp_path / "good_confidence.npy", cloud())
    file, out = tmp_path / "in", tmp_path / "out.ply"
    before = sorted(tmp_path.rglob("*"))
    mistakes = [
        (file / "nan.ply", out, {}, r"nan\.ply: point 4 has coordinates"),
        (file / "empty.ply", out, {}, r"empty\.ply: the cloud is empty"),
        (file / "plain.ply", out, {}, r"plain\.ply: no .*field red, green, blue; it has x, y, z, id"),
        (file / "missing.ply", out, {}, r"missing\.ply: no such file"),
        (good, tmp_path / "no" / "out.ply", {}, "existing folder"),
        (good, tmp_path, {}, "out must be a file"),
        (good, good, {}, "must not be the cloud itself"),
        (tmp_path / "none", tmp_path / "o", {}, "none: no point clouds, expected files ending in .ply"),
        (file, tmp_path / "o", {"pattern": "*.las"}, r"no point clouds, expected \*\.las"),
        (file, tmp_path / "o", {"pattern": "/x/*"}, r"pattern '/x/\*' must be relative to .*in, like"),
        (file, good / "below_a_file", {}, r"out must be a folder to write, got .*good\.ply is a file"),
        (file, file, {}, "another folder than the clouds' and not above it"),
        (file, tmp_path, {}, "another folder than the clouds' and not above it, got .* for .*in"),
        (tmp_path / "twins", tmp_path / "o", {}, "to be written for both .*a.ply and .*a.txt"),
        (
            tmp_path / "twins",
            tmp_path / "o",
            {"format": "npy", "pattern": "b*"},
            "b_confidence.npy: to be written for both .*b.ply and .*b_confidence.ply",
        ),
        (
            tmp_path / "good_confidence.npy",
            tmp_path / "good.npy",
            {"format": "npy"},
            "out must not be the cloud itself",
        ),
        (good, out, {"votes": 0}, "votes must be at least 1, got 0"),
        (good, out, {"rotations": 0}, "rotations must be at least 1, got 0"),
        (good, out, {"format": "scannet"}, "the model knows the class 'ceiling', expected only wall"),
        (good, out, {"device": "abacus"}, "device 'abacus'"),
    ]
    for source, place, settings, message in mistakes:
        with pytest.raises(UserError, match=message):
            predict(run, source, place, **settings)
        assert sorted(tmp_path.rglob("*")) == before


def test_outputs_below_the_source_are_not_taken_for_clouds(run, tmp_path):
    folder = tmp_path / "clouds"
    write(folder / "a.ply", cloud())
    for _ in range(2):
        assert predict(run, folder, folder / "labelled") == 0
        assert [p.name for p in (folder / "labelled").rglob("*.ply")] == ["a.ply"]


def test_columns_name_what_a_file_does_not(run, tmp_path):
    vertex = cloud()
    order = ["x", "y", "z", "id", "blue", "green", "red"]
    np.savetxt(tmp_path / "in.xyz", np.stack([vertex[name] for name in order], 1), fmt="%.9f")
    predict(run, write(tmp_path / "in.ply", vertex), tmp_path / "a.npy", format="npy")
    predict(run, tmp_path / "in.xyz", tmp_path / "b.npy", format="npy", columns=order)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_clouds_have_the_fields_of_the_training_data(run, tmp_path):
    """Coordinates too: a model knows what they were called."""
    predict(run, write(tmp_path / "in.ply", cloud()), tmp_path / "a.ply")
    named = cloud()
    named.dtype.names = ("east", "north", "up", *named.dtype.names[3:])
    save_model(run / "model.pt", replace(load_model(run), coordinates=["east", "north", "up"]))
    predict(run, write(tmp_path / "named.ply", named), tmp_path / "b.ply")
    a, b = (read(tmp_path / name) for name in ("a.ply", "b.ply"))
    assert b.dtype.names[:3] == ("east", "north", "up")
    for name in ("label", "confidence"):
        np.testing.assert_array_equal(a[name], b[name])
    with pytest.raises(UserError, match="no field east, north, up; it has x, y, z"):
        predict(run, tmp_path / "in.ply", tmp_path / "c.ply")


def test_where_labels_are_confidences_are(tmp_path, monkeypatch):
    """A file of labels says that its cloud is done, so it is the last one to appear."""
    entered = []
    replace_file = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: entered.append(new.name) or replace_file(old, new))
    write_labels("npy", tmp_path / "a.npy", 3, [np.zeros(3, PREDICTED)], [], [])
    assert entered == [path.name for path in written("npy", tmp_path / "a.npy")] == ["a_confidence.npy", "a.npy"]


@pytest.fixture
def scannet_run(make_run, rooms_store):
    """A run whose classes are ScanNet's."""
    store = SceneStore.open(rooms_store.path)
    store.classes = list(NYU40)
    return make_run(store, "scannet")


def test_scannet_scenes_become_the_benchmarks_text_files(scannet_run, real_data, tmp_path):
    """Of real scenes: `<scene>.txt`, a NYU40 id of the benchmark for every vertex; label meshes are not clouds."""
    scans = tmp_path / "scans"
    for scene in ("scene0000_00", "scene0001_00"):
        (scans / scene).mkdir(parents=True)
        for mesh in (real_data / "scannet" / "scans" / scene).iterdir():
            (scans / scene / mesh.name).symlink_to(mesh)
        (scans / scene / f"{scene}.txt").write_text("axisAlignment = 1 0 0\n")  # as in the release
    assert predict(scannet_run, scans, tmp_path / "out", format="scannet", votes=1) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.txt")) == ["scene0000_00.txt", "scene0001_00.txt"]
    for path in (tmp_path / "out").glob("*.txt"):
        ids = path.read_text().split("\n")
        assert ids.pop() == "" and len(ids) == 50_000
        assert set(map(int, ids)) <= set(NYU40.values()) and len(set(ids)) > 1


def test_scannet_texts_are_named_by_the_scene(scannet_run, tmp_path):
    """Whatever files the pattern takes."""
    for name in ("scene0000_00_vh_clean_2.ply", "mine.v2.ply"):
        write(tmp_path / "scans" / name, cloud())
    predict(scannet_run, tmp_path / "scans", tmp_path / "out", format="scannet", pattern="*.ply", votes=1)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.txt")) == ["mine.v2.txt", "scene0000_00.txt"]


def test_projected_coordinates_come_back_exactly(make_run, rooms_store, real_data, tmp_path):
    """A real lidar tile, thousands of kilometres from its origin: float64 in, the same float64 out, all fields kept."""
    run = make_run(rooms_store)
    tile = next((real_data / "custom_lidar").glob("tile_*.ply"))
    vertex = read(tile)[:3000]
    model = load_model(run)
    # The network was not made for this cloud: its features are renamed, its grid is the cloud's.
    features = dict(zip(("intensity", "classification", "z"), (65535.0, 10.0, 1e4), strict=True))
    save_model(run / "model.pt", replace(model, features=features, radius=10.0))
    predict(run, write(tmp_path / "in.ply", vertex), tmp_path / "out.ply", votes=1)
    found = read(tmp_path / "out.ply")
    assert vertex["x"].dtype == np.float64 and vertex["y"].min() > 6e6
    for name in vertex.dtype.names:
        assert found[name].dtype == vertex[name].dtype
        np.testing.assert_array_equal(found[name], vertex[name])


def test_ranks_share_the_files_of_a_folder(run, tmp_path):
    """Two processes: the same files as one, byte for byte; a bad file of one of them is exit code 1 of the job."""
    folder = tmp_path / "clouds"
    for number in range(3):
        write(folder / f"{number}.ply", cloud(seed=number))
    (folder / "bad.ply").write_bytes(b"")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (
        ("one", []),
        ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]),
    ):
        command = [sys.executable, "-m", *launcher, "dsp_sparse", "predict", run, folder, "--out", tmp_path / name]
        begin = time.perf_counter()
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 1 and "bad.ply" in done.stderr and time.perf_counter() - begin < 60
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == ["0.ply", "1.ply", "2.ply", "prediction.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / "prediction.json").read_text())["votes"] == 3


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is rank 1 of 2. What the ranks add up is told by a list of rank 0's terms."""
    terms = []

    def sum_over_ranks(counts):
        term = terms.pop(0)
        if term is None:
            raise ConnectionError("rank 0 is gone")
        return counts + np.array(term)

    for module in (distributed, prediction):
        monkeypatch.setattr(module, "rank", lambda: 1)
        monkeypatch.setattr(module, "sum_over_ranks", sum_over_ranks)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    return terms


@pytest.mark.parametrize(
    ("first", "error"), [([None], ConnectionError), ([[1, 1]], SystemExit), ([[0, 0], None], ConnectionError)]
)
def test_other_ranks_wait_for_rank_0(first, error, run, tmp_path, second_of_two):
    """Nobody writes before rank 0 has the folder and has looked what is in it."""
    write(tmp_path / "clouds" / "a.ply", cloud())
    second_of_two[:] = first
    with pytest.raises(error):
        predict(run, tmp_path / "clouds", tmp_path / "out", votes=1)
    assert not (tmp_path / "out").exists()


def test_ranks_share_what_is_missing(run, tmp_path, second_of_two):
    """By what rank 0 found, whatever has been finished since; each rank returns the failures of all."""
    for number in range(4):
        write(tmp_path / "clouds" / f"{number}.ply", cloud())
    (tmp_path / "clouds" / "3.ply").write_bytes(b"")
    second_of_two[:] = [[0, 0], [1, 1, 0, 0], [3]]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "2.ply").touch()  # by rank 0, just now
    assert predict(run, tmp_path / "clouds", tmp_path / "out", votes=1) == 3 + 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2.ply"]
