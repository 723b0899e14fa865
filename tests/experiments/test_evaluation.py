"""Evaluation of a run folder: what is scored, with which settings, and where the scores go."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml

from dsp_sparse.data import prepare, s3dis
from dsp_sparse.errors import UserError
from dsp_sparse.experiments.evaluation import evaluate_run, evaluation_file, score_table
from dsp_sparse.training.checkpoint import load_model, save_model


def read(run, results):
    return json.loads((run / results["file"]).read_text())


def test_the_scores_are_written_with_what_they_are_of(make_run, rooms_store):
    """Every original point of the test group counts, and the file holds what is returned."""
    run = make_run(rooms_store)
    results = evaluate_run(run)
    scenes = rooms_store.group(["Area_2"])
    assert results["points"] == sum(scene.num_original for scene in scenes) and results["scenes"] == len(scenes)
    assert results["grid"]["points"] == sum(scene.num_points for scene in scenes)
    assert (results["groups"], results["votes"], results["rotations"]) == (["Area_2"], 1, 1)
    assert results["trained_on"] == []
    assert read(run, results) == results
    assert "mIoU" in score_table(results)


def test_no_evaluation_replaces_one_of_other_scenes(make_run, rooms_store, tmp_path):
    """Another branch, store, group, number of votes or of rotations is another file; the same one again is the same."""
    run = make_run(rooms_store)
    copy, another = (shutil.copytree(rooms_store.path, tmp_path / name) for name in ("copy", "another"))
    variants = [
        {},
        {"branch": "cross"},
        {"groups": ["Area_1"]},
        {"groups": ["Area_1", "Area_2"]},
        {"store": copy},
        {"store": another},
        {"votes": 2},
        {"rotations": 2},
    ]
    found = [evaluate_run(run, **variant) for variant in variants]
    assert len({results["file"] for results in found}) == len(variants)
    assert [read(run, results) for results in found] == found
    own = {"store": rooms_store.path, "groups": ["Area_2"], "votes": 1, "rotations": 1}
    assert evaluate_run(run, **own)["file"] == found[0]["file"] == evaluation_file(run, "basic").name
    assert evaluate_run(run, groups=["Area_2", "Area_1"])["file"] == found[3]["file"]


def test_rotations_change_the_prediction_and_not_what_is_scored(make_run, rooms_store):
    """The same points, seen at four angles: other probabilities, the same each time."""
    run = make_run(rooms_store)
    plain, turned, again = (evaluate_run(run, rotations=rotations) for rotations in (1, 4, 4))
    assert plain["points"] == turned["points"] and plain["confusion"] != turned["confusion"]
    assert turned["confusion"] == again["confusion"]


@pytest.mark.parametrize(("setting", "value"), [("votes", 0), ("rotations", 0)])
def test_settings_that_cannot_be_are_named(setting, value, make_run, rooms_store):
    run = make_run(rooms_store)
    with pytest.raises(UserError, match=f"{setting} must be at least 1, got 0"):
        evaluate_run(run, **{setting: value})
    assert not list(run.glob("evaluation*"))


def test_a_branch_that_was_not_trained_is_named(make_run, rooms_store):
    with pytest.raises(UserError, match="branch intra needs the module isfr, which the method csfr does not train"):
        evaluate_run(make_run(rooms_store), branch="intra")


def test_the_tiles_of_a_cloud_are_scored_as_one_scene(make_run, rooms_store, rooms_folder, tmp_path):
    """Every original point of a cloud in tiles counts once, margins not at all; its tiles are one scene."""
    tiled = prepare(s3dis.scenes(rooms_folder), tmp_path / "tiled", grid=rooms_store.grid, tile_points=3000)
    assert len(tiled.group(["Area_2"])) > 4
    results = evaluate_run(make_run(rooms_store), store=tiled.path)
    scenes = rooms_store.group(["Area_2"])
    assert results["scenes"] == len(scenes) == 2
    assert results["grid"]["points"] == sum(scene.num_points for scene in scenes)
    labels = np.concatenate([scene.original_labels for scene in scenes])
    assert [sum(row) for row in results["confusion"]] == np.bincount(labels, minlength=13).tolist()


def test_groups_that_a_run_was_trained_on_are_said(make_run, rooms_store, tmp_path):
    """Of its own store: named, or all that are not tested. In another store the same name is another group."""
    run = make_run(rooms_store)
    copy = shutil.copytree(rooms_store.path, tmp_path / "copy")
    both = ["Area_1", "Area_2"]
    assert evaluate_run(run, groups=both)["trained_on"] == ["Area_1"]
    assert evaluate_run(run, groups=both, store=copy)["trained_on"] == []
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["train_groups"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert evaluate_run(run, groups=both)["trained_on"] == ["Area_1"]


def without_labels(scene):
    for piece in scene.read():
        yield replace(piece, labels=np.full(len(piece.points), -1))


def test_groups_without_labels_are_named(make_run, rooms_store, rooms_folder, tmp_path):
    """There is nothing to score, nor in no group at all; no file says otherwise."""
    rooms = s3dis.scenes(rooms_folder)
    scenes = [replace(scene, chunks=partial(without_labels, scene)) for scene in rooms.scenes]
    bare = prepare(replace(rooms, scenes=scenes), tmp_path / "bare", grid=rooms_store.grid, progress=False)
    run = make_run(rooms_store)
    for settings, message in (
        ({"store": bare.path}, r"bare: groups \['Area_2'\]: no scene there has a labelled point"),
        ({"groups": []}, r"groups \[\]: no scene there has a labelled point"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_run(run, **settings)
    assert not list(run.glob("evaluation*"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", list("abcdefghijklm"), "the store has classes .*'m'.*, the model in .*run expects .*'ceiling'"),
        ("features", {"intensity": 1.0}, "the store has features {'intensity': 1.0}, the model in .*run expects"),
    ],
)
def test_a_store_that_does_not_fit_the_model_is_named(key, value, message, make_run, rooms_store, tmp_path):
    """Other classes or features would give scores that mean nothing."""
    run = make_run(rooms_store)
    copy = shutil.copytree(rooms_store.path, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(UserError, match=message):
        evaluate_run(run, store=copy)
    assert not list(run.glob("evaluation*"))


def test_a_store_of_other_cells_than_the_models_is_named(make_run, rooms_store):
    run = make_run(rooms_store)
    save_model(run / "model.pt", replace(load_model(run), grid=0.2))
    with pytest.raises(UserError, match=r"the store's grid is 0\.1 m, expected 0\.2 m"):
        evaluate_run(run)
