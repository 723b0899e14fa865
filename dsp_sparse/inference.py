"""Prediction by voting over balls, and evaluation on every original point."""

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .backbones.base import TapBackbone
from .data import GridCloud, Sample, Scene, collate, cover, make_sample
from .data.balls import rows_within
from .metrics import ConfusionMatrix
from .reallocation import CSFR, ISFR


@dataclass(frozen=True, kw_only=True)
class Voting:
    """How a cloud is covered with balls.

    Args:
        radius: radius of the balls in metres, as in training.
        max_points: most points a ball, as in training; None: no limit.
        votes: balls are drawn until every point was seen at least this often.
        batch_size: balls a forward pass.
        seed: seed of the balls' centres.
    """

    radius: float
    max_points: int | None = None
    votes: int = 3
    batch_size: int = 4
    seed: int = 0


class BasicBranch:
    """The backbone alone: what a trained network is used as."""

    def __init__(self, net: TapBackbone):
        self.net = net
        self.device = next(net.parameters()).device

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        """The logits `[n, C]` of each sample."""
        batch = collate(samples).to(self.device).input
        return list(self.net(batch).split(batch.lengths))


class IntraBranch(BasicBranch):
    """The decoder on features that ISFR reallocated within each sample (paper Table 3)."""

    def __init__(self, net: TapBackbone, isfr: ISFR):
        super().__init__(net)
        self.isfr = isfr.to(self.device)

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        batch = collate(samples).to(self.device).input
        tap, state = self.net.encode(batch)
        return list(self.net.decode(self.isfr(tap).feat, state).split(batch.lengths))


class CrossBranch(BasicBranch):
    """The decoder on features that CSFR reallocated from a partner (paper Table 3).

    The partner of a sample is a ball of the training scenes: a uniformly random scene, a uniformly random point of it
    as the centre, drawn from a generator seeded by `voting.seed`, the sample's scene and its rows. So the same sample
    always meets the same partner, and no label of either is looked at. The sample is the first of the pair.

    Args:
        net: the backbone.
        csfr: the trained module.
        scenes: the training scenes, at least one.
        voting: radius, cap on points and seed of the partners.
    """

    def __init__(self, net: TapBackbone, csfr: CSFR, scenes: Sequence[Scene], voting: Voting):
        super().__init__(net)
        self.csfr = csfr.to(self.device)
        self.scenes, self.voting = scenes, voting

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        batch = collate([s for target in samples for s in (target, self.partner(target))]).to(self.device).input
        tap, state = self.net.encode(batch)
        partner = torch.arange(batch.batch_size).view(-1, 2).flip(1).flatten()
        return list(self.net.decode(self.csfr(tap, partner).feat, state).split(batch.lengths)[::2])

    def partner(self, target: Sample) -> Sample:
        """The training ball that `target` attends to."""
        generator = np.random.default_rng([self.voting.seed, target.scene, zlib.crc32(target.rows.tobytes())])
        scene = self.scenes[generator.integers(len(self.scenes))]
        centre = scene.points[generator.integers(scene.num_points)]
        rows = rows_within(scene.tree, centre, self.voting.radius, self.voting.max_points)
        return make_sample(scene, scene.labels, centre, rows, scene.index)


def predict_probabilities(
    branch: BasicBranch, cloud: Scene | GridCloud, voting: Voting, index: int = 0, progress: bool = True
) -> Tensor:
    """Average the class probabilities of every grid point over the balls that saw it.

    Memory is that of the result and of one batch of balls. The network runs in eval mode and gets its own mode back.

    Args:
        branch: what turns balls into logits.
        cloud: the grid points, n of them, at least one.
        voting: how they are covered.
        index: the scene's index in its store; it seeds the balls beside `voting.seed`.
        progress: show a progress bar.

    Returns:
        `[n, C]` float32 on the CPU, rows sum to 1.
    """
    points = np.asarray(cloud.points)
    generator = np.random.default_rng([voting.seed, index])
    balls = cover(points, voting.radius, voting.votes, generator, voting.max_points)
    total = torch.zeros(len(points), branch.net.tap.out_channels)
    seen = torch.zeros(len(points), dtype=torch.int64)
    bar = tqdm(total=len(points), unit="point", unit_scale=True, leave=False, disable=not progress)
    with evaluating(branch.net), bar:
        while cut := [make_sample(cloud, cloud.labels, *ball, index) for ball in islice(balls, voting.batch_size)]:
            for ball, logits in zip(cut, branch(cut), strict=True):
                rows = torch.from_numpy(ball.rows)
                total[rows] += logits.float().softmax(1).cpu()
                seen[rows] += 1
            bar.update(int((seen >= voting.votes).sum()) - bar.n)
    return total / seen[:, None]


def evaluate(branch: BasicBranch, scenes: Sequence[Scene], classes: Sequence[str], voting: Voting) -> dict:
    """Score a network on scenes, with one confusion matrix summed over all of them.

    Args:
        branch: what turns balls into logits.
        scenes: the scenes to score, at least one.
        classes: the C class names.
        voting: how the scenes are covered.

    Returns:
        A dict that JSON can hold. The scores on the original points, to which the predictions of the grid points are
        carried back: `miou`, `overall_accuracy`, `mean_accuracy`, `iou` and `accuracy` by class name (None for a class
        without points), `confusion` (rows are the truth), `points`; the same on the grid points under `grid`;
        `scenes`, their number; `seconds`.
    """
    original, grid = ConfusionMatrix(len(classes)), ConfusionMatrix(len(classes))
    start = time.perf_counter()
    for scene in tqdm(scenes, desc="evaluate", unit="scene"):
        predicted = predict_probabilities(branch, scene, voting, scene.index).argmax(1).numpy()
        grid.update(scene.labels, predicted)
        original.update(scene.original_labels, predicted[scene.inverse])
    return {
        **_scores(original, classes),
        "grid": _scores(grid, classes),
        "scenes": len(scenes),
        "seconds": time.perf_counter() - start,
    }


def _scores(confusion: ConfusionMatrix, classes: Sequence[str]) -> dict:
    def number(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    return {
        "miou": number(confusion.miou()),
        "overall_accuracy": number(confusion.overall_accuracy()),
        "mean_accuracy": number(confusion.mean_accuracy()),
        "iou": dict(zip(classes, map(number, confusion.iou()), strict=True)),
        "accuracy": dict(zip(classes, map(number, confusion.accuracy()), strict=True)),
        "confusion": confusion.counts.tolist(),
        "points": int(confusion.counts.sum()),
    }


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Inside, `net` is in eval mode and records no gradient; its mode is restored afterwards."""
    mode = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.train(mode)
