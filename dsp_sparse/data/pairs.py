"""Pairs of samples that share a class among their weakly labelled points."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..errors import UserError
from .balls import Ball, BatchSampler, near
from .batch import Batch, Sample, collate
from .store import Scene
from .weak_labels import WeakLabels, rows_by_class


class PairSampler(BatchSampler):
    """Batches of pairs: samples 2k and 2k + 1 share a weakly labelled class.

    A pair starts with a class, drawn uniformly so that rare classes are not starved. Its first ball is centred near a
    labelled point of that class, the second near one in another scene, or near another point of the same scene where
    no other scene has the class. Both balls name their point as anchor, which survives cropping and the cap on points.

    A batch is a function of (seed, epoch, step) alone. Ranks take whole pairs.

    Args:
        scenes: scenes to cut from.
        weak_labels: per scene `[n]` class ids, -1 where unlabelled.
        batch_size: balls a batch and rank, even.
        settings: the rest of what a `BatchSampler` takes.

    Raises:
        UserError: an odd batch size, or no two samples with a common class (no class has two labelled points).
    """

    def __init__(self, scenes: Sequence[Scene], weak_labels: Sequence[np.ndarray], *, batch_size: int, **settings):
        if batch_size < 2 or batch_size % 2:
            raise UserError(f"batch_size must be even and at least 2 to hold pairs, got {batch_size}")
        super().__init__(scenes, batch_size=batch_size, **settings)
        # class -> scene -> rows of its labelled points
        stored = isinstance(weak_labels, WeakLabels)
        self.labelled = weak_labels.by_class if stored else rows_by_class(weak_labels)
        self.classes = [c for c, where in self.labelled.items() if sum(map(len, where.values())) > 1]
        if not self.classes:
            raise UserError(
                f"no two samples with a common class: none of the {len(self.labelled)} labelled classes of "
                f"{len(scenes)} scenes has two labelled points; expected more labels or more scenes"
            )

    def draw(self, seed: tuple[int, int], first_step: int) -> Iterator[list[Ball]]:
        for step in range(first_step, self.steps):
            generator = np.random.default_rng([*seed, step])
            anchors = [a for _ in range(self.size // 2) for a in self._pair(generator)]
            yield [
                Ball(
                    scene=scene,
                    centre=near(self.scenes[scene].points[row].astype(np.float64), self.radius, generator),
                    seed=(*seed, step, position + 1),  # seeds are padded with zeros: 0 is the sampler itself
                    anchor=row,
                )
                for position, (scene, row) in enumerate(anchors)
            ]

    def _pair(self, generator: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two labelled points of one class, as (scene, row)."""
        where = self.labelled[self.classes[generator.integers(len(self.classes))]]
        scenes = list(where)
        if len(scenes) > 1:
            pair = [scenes[i] for i in generator.choice(len(scenes), 2, replace=False)]
            return tuple((scene, int(where[scene][generator.integers(len(where[scene]))])) for scene in pair)
        (scene,) = scenes
        rows = where[scene][generator.choice(len(where[scene]), 2, replace=False)]
        return tuple((scene, int(row)) for row in rows)


def collate_pairs(samples: Sequence[Sample]) -> Batch:
    """Pack samples into a batch whose samples 2k and 2k + 1 are partners.

    Raises:
        RuntimeError: a pair without the class it was drawn for among the labelled points of both; the message names it.
    """
    for first in range(0, len(samples), 2):
        pair = samples[first : first + 2]
        if not all((sample.labels == pair[0].pair_class).any() for sample in pair):
            names = " and ".join(
                f"sample {first + i} of scene {s.scene} {sorted(set(s.labels[s.labels >= 0].tolist()))}"
                for i, s in enumerate(pair)
            )
            raise RuntimeError(f"a pair without the common labelled class {pair[0].pair_class}: {names}")
    partner = torch.arange(len(samples)).view(-1, 2).flip(1).reshape(-1)
    return replace(collate(samples), partner=partner, pair_classes=tuple(s.pair_class for s in samples[::2]))
