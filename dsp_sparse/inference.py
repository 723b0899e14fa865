"""Prediction by voting over balls, and evaluation on every original point."""

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .backbones.base import TapBackbone
from .data import GridCloud, Sample, Scene, collate, cover, make_sample
from .data.balls import rows_within
from .distributed import rank, share, sum_over_ranks
from .metrics import ConfusionMatrix
from .reallocation import CSFR, ISFR


@dataclass(frozen=True, kw_only=True)
class Voting:
    """How a cloud is covered with balls.

    Args:
        radius: radius of the balls in metres, as in training.
        max_points: most points a ball, as in training; None: no limit.
        votes: balls are drawn until every point was seen at least this often.
        rotations: every ball is shown at this many evenly spaced angles about the vertical axis, 0 among them.
        batch_size: balls a forward pass.
        seed: seed of the balls' centres.
    """

    radius: float
    max_points: int | None = None
    votes: int = 3
    rotations: int = 1
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
        rows = rows_within(scene, centre, self.voting.radius, self.voting.max_points)
        return make_sample(scene, scene.labels, centre, rows, scene.number)


def predict_probabilities(
    branch: BasicBranch, cloud: Scene | GridCloud, voting: Voting, number: int = 0, bar: tqdm | None = None
) -> Tensor:
    """Average the class probabilities of every grid point over the balls that saw it, each at all its rotations.

    Memory is that of the result and of one batch of balls. The network runs in eval mode and gets its own mode back.

    Args:
        branch: what turns balls into logits.
        cloud: the grid points, n of them, at least one.
        voting: how they are covered.
        number: the scene's position in its store; it seeds the balls beside `voting.seed`.
        bar: advances by every grid point that has its votes.

    Returns:
        `[n, C]` float32 on the CPU, rows sum to 1.
    """
    generator = np.random.default_rng([voting.seed, number])
    balls = cover(cloud, voting.radius, voting.votes, generator, voting.max_points)
    samples = (make_sample(cloud, cloud.labels, *ball, number) for ball in balls)
    angles = [2 * math.pi * turn / voting.rotations for turn in range(voting.rotations)]
    total = torch.zeros(len(cloud.points), branch.net.tap.out_channels)
    seen = torch.zeros(len(cloud.points), dtype=torch.int32)
    with evaluating(branch.net):
        while cut := list(islice(samples, voting.batch_size)):
            for angle in angles:
                for ball, logits in zip(cut, branch([rotated(ball, angle) for ball in cut]), strict=True):
                    total[torch.from_numpy(ball.rows)] += logits.float().softmax(1).cpu()
            for ball in cut:
                rows = torch.from_numpy(ball.rows)
                seen[rows] += 1
                if bar is not None:
                    bar.update(int((seen[rows] == voting.votes).sum()))
    return total.div_(seen.mul_(len(angles))[:, None])


def rotated(ball: Sample, angle: float) -> Sample:
    """A ball turned about the vertical axis through its centre by `angle` (radians)."""
    if not angle:
        return ball
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return replace(ball, coord=(ball.coord @ turn.T).astype(np.float32))


def evaluate(branch: BasicBranch, scenes: Sequence[Scene], classes: Sequence[str], voting: Voting) -> dict:
    """Score a network on scenes, with one confusion matrix summed over all of them.

    After `distributed.join` every rank scores its share of the scenes; what is returned is the same on every
    rank and for every number of ranks.

    Args:
        branch: what turns balls into logits.
        scenes: the scenes to score, at least one.
        classes: the C class names.
        voting: how the scenes are covered.

    Returns:
        A dict that JSON can hold. The scores on the original points, to which the predictions of the grid points are
        carried back: `miou`, `overall_accuracy`, `mean_accuracy`, `iou` and `accuracy` by class name (None for a class
        without points), `confusion` (rows are the truth), `points`; the same on the grid points under `grid`;
        `scenes`, the number of clouds; `seconds`.
    """
    original, grid = ConfusionMatrix(len(classes)), ConfusionMatrix(len(classes))
    start = time.perf_counter()
    mine = share(scenes, lambda scene: scene.num_points)
    points = sum(scene.num_points for scene in mine)
    with tqdm(total=points, desc="evaluate", unit="point", unit_scale=True, disable=rank() > 0) as bar:
        for number, scene in enumerate(mine, 1):
            bar.set_postfix_str(f"scene {number}/{len(mine)}")
            predicted = predict_probabilities(branch, scene, voting, scene.number, bar).argmax(1).numpy()
            grid.update(scene.labels, predicted)
            original.update(scene.original_labels, predicted[scene.inverse])
    original, grid = (ConfusionMatrix.of(sum_over_ranks(matrix.counts)) for matrix in (original, grid))
    return {
        **original.scores(classes),
        "grid": grid.scores(classes),
        "scenes": len({scene.cloud for scene in scenes}),
        "seconds": time.perf_counter() - start,
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
