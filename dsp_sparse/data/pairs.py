"""Pairs of samples that share a class among their weakly labelled points."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..errors import UserError
from .balls import Ball, near
from .batch import Batch, Sample, collate
from .store import Scene


class PairSampler:
    """Batches of pairs: samples 2k and 2k + 1 share a weakly labelled class. A batch sampler for a `DataLoader`.

    A pair starts with a class, drawn uniformly so that rare classes are not starved. Its first ball is centred near a
    labelled point of that class, the second near one in another cloud, or near another point of the same cloud where
    no other cloud has the class. Both balls name their point as anchor, which survives cropping and the cap on points.

    Args:
        scenes: scenes to cut from.
        weak_labels: per scene `[n]` class ids, -1 where unlabelled.
        radius: radius of the balls, metres.
        batch_size: balls a batch, even.
        steps: batches.
        seed: seed of the run.
        epoch: epoch of the run.

    Raises:
        UserError: an odd batch size, or no two samples with a common class (no class has two labelled points).
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        weak_labels: Sequence[np.ndarray],
        *,
        radius: float,
        batch_size: int,
        steps: int,
        seed: int,
        epoch: int,
    ):
        if batch_size < 2 or batch_size % 2:
            raise UserError(f"batch_size must be even and at least 2 to hold pairs, got {batch_size}")
        self.scenes, self.radius, self.batch_size, self.steps = scenes, radius, batch_size, steps
        self.seed = (seed, epoch)
        # class -> scene -> rows of its labelled points
        self.labelled: dict[int, dict[int, np.ndarray]] = {}
        for index, labels in enumerate(weak_labels):
            rows = np.flatnonzero(labels >= 0)
            for label in np.unique(labels[rows]):
                self.labelled.setdefault(int(label), {})[index] = rows[labels[rows] == label]
        self.classes = sorted(c for c, where in self.labelled.items() if sum(map(len, where.values())) > 1)
        if not self.classes:
            raise UserError(
                f"no two samples with a common class: none of the {len(self.labelled)} labelled classes of "
                f"{len(scenes)} scenes has two labelled points; expected a higher label rate or more scenes"
            )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Ball]]:
        for step in range(self.steps):
            generator = np.random.default_rng([*self.seed, step])
            anchors = [a for _ in range(self.batch_size // 2) for a in self._pair(generator)]
            yield [
                Ball(
                    scene=scene,
                    centre=near(self.scenes[scene].points[row].astype(float), self.radius, generator),
                    seed=(*self.seed, step, position + 1),  # seeds are padded with zeros: 0 is the sampler itself
                    anchor=row,
                )
                for position, (scene, row) in enumerate(anchors)
            ]

    def _pair(self, generator: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two labelled points of one class, as (scene, row)."""
        where = self.labelled[int(generator.choice(self.classes))]
        scenes = list(where)
        if len(scenes) > 1:
            first, second = generator.choice(scenes, 2, replace=False)
            return tuple((int(s), int(generator.choice(where[s]))) for s in (first, second))
        rows = generator.choice(where[scenes[0]], 2, replace=False)
        return tuple((scenes[0], int(row)) for row in rows)


def collate_pairs(samples: Sequence[Sample]) -> Batch:
    """Pack samples into a batch whose samples 2k and 2k + 1 are partners.

    Raises:
        RuntimeError: a pair without a common class among its labelled points; the message names the pair.
    """
    for first in range(0, len(samples), 2):
        pair = samples[first : first + 2]
        known = [set(np.unique(s.labels[s.labels >= 0]).tolist()) for s in pair]
        if not set.intersection(*known):
            names = " and ".join(
                f"sample {first + i} of scene {s.scene} {sorted(known[i])}" for i, s in enumerate(pair)
            )
            raise RuntimeError(f"a pair without a common labelled class: {names}")
    partner = torch.arange(len(samples)).view(-1, 2).flip(1).reshape(-1)
    return replace(collate(samples), partner=partner)
