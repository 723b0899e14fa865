"""Voting over balls and evaluation, with a branch whose answers are known."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from dsp_sparse.backbones.base import TapInfo
from dsp_sparse.data import GridCloud, Sample
from dsp_sparse.data.index import BlockIndex
from dsp_sparse.inference import Voting, evaluate, evaluating, predict_probabilities, rotated


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
    number = 4
    cloud = property(id)

    @property
    def num_points(self):
        return len(self.points)


def scene_of(points=200, classes=3, seed=0) -> KnownScene:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, points)
    inverse = np.concatenate([np.arange(points), generator.integers(0, points, points)]).astype(np.int32)
    coordinates = generator.uniform(0, 4, (points, 3)).astype(np.float32)
    order, index = BlockIndex.build(coordinates, 0.5)
    return KnownScene(
        origin=np.zeros(3),
        points=coordinates[order],
        index=index,
        features=generator.uniform(0, 1, (points, 2)).astype(np.float32),
        labels=labels,
        inverse=inverse,
        original_labels=labels[inverse],
    )


@pytest.mark.parametrize("votes", [1, 3])
def test_every_point_is_seen_often_enough(votes):
    """Balls are drawn until each grid point has its votes, so that every point gets a probability."""
    branch, scene = KnownBranch(3), scene_of()
    probabilities = predict_probabilities(branch, scene, Voting(radius=1.0, votes=votes))
    seen = np.bincount(np.concatenate([ball.rows for ball in branch.balls]), minlength=len(scene.points))
    assert seen.min() >= votes
    assert probabilities.shape == (200, 3) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(200))


def test_probabilities_are_the_mean_over_the_balls_that_saw_a_point():
    """Averaging is over probabilities, point by point, each ball counting once."""
    answers = [[0.0, 1.0], [2.0, 0.0], [0.0, 5.0]]
    branch, scene = KnownBranch(2, answers), scene_of(300, 2)
    probabilities = predict_probabilities(branch, scene, Voting(radius=1.5, votes=2, batch_size=3))
    by_hand = [[] for _ in range(300)]
    for number, ball in enumerate(branch.balls):
        for row in ball.rows:
            by_hand[row].append(torch.tensor(answers[number % 3]).softmax(0))
    torch.testing.assert_close(probabilities, torch.stack([torch.stack(p).mean(0) for p in by_hand]))


def test_a_ball_is_turned_about_the_vertical_axis_through_its_centre():
    """A quarter turn takes x to y and y to -x; heights, features, rows and labels stay; no turn changes nothing."""
    ball = Sample(
        feat=np.float32([[1, 0.5, 2]]),
        coord=np.float32([[3, 4, 5]]),
        labels=np.array([1]),
        rows=np.array([7]),
        scene=0,
    )
    turned = rotated(ball, math.pi / 2)
    np.testing.assert_allclose(turned.coord, [[-4, 3, 5]], atol=1e-6)
    assert turned.coord.dtype == np.float32 and turned.feat is ball.feat and turned.rows is ball.rows
    assert rotated(ball, 0.0) is ball


class DirectionBranch(KnownBranch):
    """Answers with logits that depend on the direction in which a point lies from the centre of the ball."""

    def __call__(self, samples):
        super().__call__(samples)
        return [
            torch.from_numpy(np.stack([sample.coord[:, 0], np.zeros(len(sample.rows), "f4")], 1)) for sample in samples
        ]


def test_rotations_average_evenly_spaced_views():
    """Every ball is shown at 0, 90, 180 and 270 degrees, and each view counts the same."""
    scene, voting = scene_of(150, 2), Voting(radius=1.5, votes=2, batch_size=3)
    plain, turned = KnownBranch(2), DirectionBranch(2)
    predict_probabilities(plain, scene, voting)
    probabilities = predict_probabilities(turned, scene, replace(voting, rotations=4))
    assert len(turned.balls) == 4 * len(plain.balls), "the same balls, four times"
    by_hand = [[] for _ in range(150)]
    for ball in plain.balls:
        x, y = torch.from_numpy(ball.coord[:, :2].T)
        views = torch.stack([torch.stack([view, torch.zeros_like(view)], 1).softmax(1) for view in (x, -y, -x, y)])
        for row, probability in zip(ball.rows, views.mean(0), strict=True):
            by_hand[row].append(probability)
    torch.testing.assert_close(probabilities, torch.stack([torch.stack(p).mean(0) for p in by_hand]))


def test_the_bar_counts_every_point_once():
    """It ends at the number of grid points, however often a point was seen beyond its votes."""
    scene = scene_of()
    with tqdm(total=200, disable=False, file=io.StringIO()) as bar:
        predict_probabilities(KnownBranch(3), scene, Voting(radius=1.0, votes=2, rotations=2), bar=bar)
        assert bar.n == 200


def test_balls_depend_on_the_seed_and_the_scene_alone():
    """The same seed and scene index give the same balls, others do not."""
    scene, covers = scene_of(), []
    for seed, index in ((0, 4), (0, 4), (1, 4), (0, 5)):
        branch = KnownBranch(3)
        predict_probabilities(branch, scene, Voting(radius=1.0, seed=seed), index)
        covers.append([ball.rows.tolist() for ball in branch.balls])
    assert covers[0] == covers[1] and covers[0] != covers[2] and covers[0] != covers[3]


def test_batches_are_bounded():
    """No forward pass takes more balls than asked for, whatever the scene."""
    branch = KnownBranch(3)
    predict_probabilities(branch, scene_of(), Voting(radius=0.5, batch_size=5))
    sizes = [size for _, _, size in branch.modes]
    assert max(sizes) == 5 and set(sizes[:-1]) == {5}


@pytest.mark.parametrize("training", [True, False])
def test_the_network_runs_in_eval_mode_and_gets_its_mode_back(training):
    """Inside: eval mode, no gradient. Afterwards, even after an error: as before."""
    branch = KnownBranch(3)
    branch.net.train(training)
    predict_probabilities(branch, scene_of(100), Voting(radius=2.0))
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
