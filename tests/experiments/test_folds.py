"""Scores over folds."""

import json

import numpy as np
import pytest

from dsp_sparse.errors import UserError
from dsp_sparse.experiments.evaluation import evaluate_run
from dsp_sparse.experiments.folds import aggregate, fold_table
from dsp_sparse.files import write_json
from dsp_sparse.metrics import ConfusionMatrix


def scores_of(counts, grid, classes="ab") -> dict:
    parts = [ConfusionMatrix.of(np.array(c)).scores(classes) for c in (counts, grid)]
    settings = {"trained_on": [], "branch": "basic", "votes": 3, "rotations": 1}
    return {**parts[0], "grid": parts[1], "scenes": 1, "seconds": 1.0, **settings}


@pytest.fixture
def evaluations(tmp_path):
    """Two evaluation files of two classes."""
    first = scores_of([[2, 1], [0, 1]], [[1, 0], [0, 1]])
    second = scores_of([[0, 1], [0, 4]], [[0, 1], [0, 1]])
    for name, scores in (("one", first), ("two", second)):
        write_json(tmp_path / f"{name}.json", {**scores, "groups": [name]})
    return [tmp_path / "one.json", tmp_path / "two.json"]


def test_folds_are_pooled_point_by_point(evaluations):
    """The pooled scores are those of the summed matrix, not the mean of the folds' scores."""
    report = aggregate(evaluations)
    assert report["confusion"] == [[2, 2], [0, 5]] and report["grid"]["confusion"] == [[1, 1], [0, 2]]
    assert report["iou"] == {"a": 2 / 4, "b": 5 / 7}
    assert report["miou"] == pytest.approx((2 / 4 + 5 / 7) / 2)
    assert report["overall_accuracy"] == 7 / 9
    assert [fold["miou"] for fold in report["folds"]] == pytest.approx([(2 / 3 + 1 / 2) / 2, (0 + 4 / 5) / 2])
    assert [fold["groups"] for fold in report["folds"]] == [["one"], ["two"]]


def test_the_table_shows_folds_their_mean_and_the_pool(evaluations):
    """In percent, with the grid points' scores in brackets."""
    lines = fold_table(aggregate(evaluations)).splitlines()
    one, two, average = (line.replace("(", " ( ").split() for line in lines[1:4])
    assert one[-7:] == ["58.3", "75.0", "83.3", "(", "100.0", "100.0", "100.0)"]
    assert two[-7:] == ["40.0", "80.0", "50.0", "(", "25.0", "50.0", "50.0)"]
    assert average == ["mean", "of", "2", "folds", "49.2", "77.5", "66.7", "(", "62.5", "75.0", "75.0)"]
    pooled = {line.split()[0]: line.split()[1] for line in lines[5:]}
    assert (pooled["a"], pooled["b"], pooled["mIoU"]) == ("50.0", "71.4", "60.7")


def test_run_folders_and_evaluation_files_mix(make_run, rooms_store):
    """A finished run is scored on its test groups, an evaluation on those it names."""
    first, second = make_run(rooms_store, "first"), make_run(rooms_store, "second", "Area_1", "Area_2")
    results = {key: value for key, value in evaluate_run(first).items() if key != "groups"}
    write_json(first / "results.json", {**results, "steps": 1, "train_seconds": 1.0})
    other = evaluate_run(second)
    report = aggregate([first, second / other["file"]])
    assert report["points"] == sum(scene.num_original for scene in rooms_store.scenes)
    assert [fold["groups"] for fold in report["folds"]] == [["Area_2"], ["Area_1"]]
    assert report["folds"][1]["confusion"] == other["confusion"]


def test_folds_that_do_not_belong_together_are_refused(evaluations, make_run, rooms_store, tmp_path):
    """A group scored twice or trained on, other classes or votes, no groups, matrix or results: the file is named."""
    one, two = evaluations
    scores = json.loads(one.read_text())
    mistakes = {
        "again.json": (scores, "again.json: scores the group one, and so does .*one.json"),
        "classes.json": ({**scores_of([[1]], [[1]], "a"), "groups": ["c"]}, "scores the classes a, expected .* a, b"),
        "results.json": ({**scores, "groups": None}, "does not say which groups"),
        "branch.json": ({**scores, "branch": "cross"}, "branch.json: scored with branch cross, expected basic, as in"),
        "votes.json": ({**scores, "votes": 1}, "votes.json: scored with votes 1, expected 3, as in .*one.json"),
        "turned.json": ({**scores, "rotations": 4}, "turned.json: scored with rotations 4, expected 1"),
        "own.json": ({**scores, "groups": ["own"], "trained_on": ["own"]}, "that its run was trained on, own"),
        "matrix.json": ({**scores, "groups": ["m"], "confusion": [[1, 2]]}, "no confusion matrix"),
        "ragged.json": ({**scores, "groups": ["m"], "confusion": [[1, 2], [1]]}, "no confusion matrix"),
        "grid.json": ({key: scores[key] for key in scores if key != "grid"} | {"groups": ["g"]}, "no confusion matrix"),
        "broken.json": ([1], "not readable as results"),
    }
    for name, (content, message) in mistakes.items():
        write_json(tmp_path / name, content)
        with pytest.raises(UserError, match=message):
            aggregate([one, two, tmp_path / name])
    with pytest.raises(UserError, match=r"unfinished: not a finished run \(no results.json\)"):
        aggregate([one, make_run(rooms_store, "unfinished")])
