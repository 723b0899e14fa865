"""Voting over balls and evaluation, with a branch whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from dsp_sparse.backbones.base import TapInfo
from dsp_sparse.data import GridCloud
from dsp_sparse.inference import Voting, evaluate, evaluating, predict_probabilities


class KnownBranch:
    """Answers with the true labels, or with one logit row per call; remembers which balls it saw."""

    def __init__(self, classes: int, answers=None):
        self.net = nn.Linear(1, 1)
        self.net.tap = TapInfo(channels=1, stride=1, out_channels=classes)
        self.classes, self.answers = classes, answers
        self.balls, self.modes = [], []

    def __call__(self, samples):
        self.modes.append((self.net.training, torch.is_grad_enabled(), len(samples)))
        logits = []
        for sample in samples:
            row = None if self.answers is None else torch.tensor(self.answers[len(self.balls) % len(self.answers)])
            self.balls.append(sample)
            if row is None:
                logits.append(20.0 * nn.functional.one_hot(torch.from_numpy(sample.labels), self.classes))
            else:
                logits.append(row.expand(len(sample.rows), -1))
        return logits


class KnownScene(GridCloud):
    index = 4


def scene_of(points=200, classes=3, seed=0) -> KnownScene:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, points)
    inverse = np.concatenate([np.arange(points), generator.integers(0, points, points)]).astype(np.int32)
    return KnownScene(
        origin=np.zeros(3),
        points=generator.uniform(0, 4, (points, 3)).astype(np.float32),
        features=generator.uniform(0, 1, (points, 2)).astype(np.float32),
        labels=labels,
        inverse=inverse,
        original_labels=labels[inverse],
    )


@pytest.mark.parametrize("votes", [1, 3])
def test_every_point_is_seen_often_enough(votes):
    """Balls are drawn until each grid point has its votes, so that every point gets a probability."""
    branch, scene = KnownBranch(3), scene_of()
    probabilities = predict_probabilities(branch, scene, Voting(radius=1.0, votes=votes), progress=False)
    seen = np.bincount(np.concatenate([ball.rows for ball in branch.balls]), minlength=len(scene.points))
    assert seen.min() >= votes
    assert probabilities.shape == (200, 3) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(200))


def test_probabilities_are_the_mean_over_the_balls_that_saw_a_point():
    """Averaging is over probabilities, point by point, each ball counting once."""
    answers = [[0.0, 1.0], [2.0, 0.0], [0.0, 5.0]]
    branch, scene = KnownBranch(2, answers), scene_of(300, 2)
    probabilities = predict_probabilities(branch, scene, Voting(radius=1.5, votes=2, batch_size=3), progress=False)
    by_hand = [[] for _ in range(300)]
    for number, ball in enumerate(branch.balls):
        for row in ball.rows:
            by_hand[row].append(torch.tensor(answers[number % 3]).softmax(0))
    torch.testing.assert_close(probabilities, torch.stack([torch.stack(p).mean(0) for p in by_hand]))


def test_balls_depend_on_the_seed_and_the_scene_alone():
    """The same seed and scene index give the same balls, others do not."""
    scene, covers = scene_of(), []
    for seed, index in ((0, 4), (0, 4), (1, 4), (0, 5)):
        branch = KnownBranch(3)
        predict_probabilities(branch, scene, Voting(radius=1.0, seed=seed), index, progress=False)
        covers.append([ball.rows.tolist() for ball in branch.balls])
    assert covers[0] == covers[1] and covers[0] != covers[2] and covers[0] != covers[3]


def test_batches_are_bounded():
    """No forward pass takes more balls than asked for, whatever the scene."""
    branch = KnownBranch(3)
    predict_probabilities(branch, scene_of(), Voting(radius=0.5, batch_size=5), progress=False)
    sizes = [size for _, _, size in branch.modes]
    assert max(sizes) == 5 and set(sizes[:-1]) == {5}


@pytest.mark.parametrize("training", [True, False])
def test_the_network_runs_in_eval_mode_and_gets_its_mode_back(training):
    """Inside: eval mode, no gradient. Afterwards, even after an error: as before."""
    branch = KnownBranch(3)
    branch.net.train(training)
    predict_probabilities(branch, scene_of(100), Voting(radius=2.0), progress=False)
    assert {mode[:2] for mode in branch.modes} == {(False, False)}
    assert branch.net.training is training and torch.is_grad_enabled()
    with pytest.raises(RuntimeError), evaluating(branch.net):
        raise RuntimeError
    assert branch.net.training is training


def test_scores_are_on_every_original_point():
    """Predictions are carried back to each original point; all right on the grid is all right on the originals."""
    scenes = [scene_of(seed=0), scene_of(seed=1)]
    results = evaluate(KnownBranch(4), scenes, ["a", "b", "c", "absent"], Voting(radius=1.0))
    assert results["points"] == 800 and results["grid"]["points"] == 400 and results["scenes"] == 2
    assert results["miou"] == results["grid"]["miou"] == results["overall_accuracy"] == results["mean_accuracy"] == 1
    assert results["iou"] == {"a": 1, "b": 1, "c": 1, "absent": None}
    assert np.diag(results["confusion"]).sum() == 800
    assert results["seconds"] > 0


def test_original_labels_decide_not_those_of_the_grid():
    """A cell holds points of several classes: the score on original points counts each with its own label."""
    scene = scene_of(classes=2)
    scene.original_labels[:50] = 1 - scene.original_labels[:50]
    results = evaluate(KnownBranch(2), [scene], ["a", "b"], Voting(radius=1.0))
    assert results["grid"]["overall_accuracy"] == 1
    assert results["overall_accuracy"] == pytest.approx(350 / 400)
