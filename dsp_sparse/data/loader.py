"""The loader of one epoch of training."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..config import AugmentConfig, DataConfig
from .augment import augment
from .balls import Ball, BallSampler, make_sample, rows_around, rows_within
from .batch import Sample, collate
from .pairs import PairSampler, collate_pairs
from .store import Scene


class BallDataset(TorchDataset):
    """Cuts the balls that a sampler asks for, and augments them. Indexed by `Ball`."""

    def __init__(
        self, scenes: Sequence[Scene], labels: Sequence[np.ndarray], data: DataConfig, augmentation: AugmentConfig
    ):
        self.scenes, self.labels, self.data, self.augmentation = scenes, labels, data, augmentation

    def __getitem__(self, ball: Ball) -> Sample:
        scene = self.scenes[ball.scene]
        limits = (self.data.radius, self.data.max_points)
        if ball.anchor is None:
            centre, rows = ball.centre, rows_within(scene.tree, ball.centre, *limits)
        else:
            centre, rows = rows_around(scene.tree, ball.centre, ball.anchor, *limits)
        cut = make_sample(scene, self.labels[ball.scene], centre, rows, scene.number)
        return augment(cut, self.augmentation, np.random.default_rng(ball.seed))


def train_loader(
    scenes: Sequence[Scene],
    weak_labels: Sequence[np.ndarray],
    data: DataConfig,
    augment: AugmentConfig,
    *,
    steps: int,
    seed: int,
    epoch: int,
    pairs: bool,
) -> DataLoader:
    """The batches of one epoch. They depend on the arguments alone, not on the number of workers.

    Args:
        scenes: scenes to train on, at least one.
        weak_labels: per scene `[n]` class ids, -1 where training must not see the label.
        data: radius, cap on points, batch size and number of workers.
        augment: augmentation.
        steps: batches.
        seed: seed of the run, not negative.
        epoch: epoch of the run.
        pairs: batches of pairs (see `PairSampler`) instead of independent samples.

    Returns:
        A loader of `Batch`.

    Raises:
        UserError: no scenes; with `pairs`, an odd batch size or no two samples with a common class.
    """
    where = {"radius": data.radius, "batch_size": data.batch_size, "steps": steps, "seed": seed, "epoch": epoch}
    for scene in scenes:
        # Built here, once, and shared with the workers.
        scene.tree  # noqa: B018
    return DataLoader(
        BallDataset(scenes, weak_labels, data, augment),
        batch_sampler=PairSampler(scenes, weak_labels, **where) if pairs else BallSampler(scenes, **where),
        collate_fn=collate_pairs if pairs else collate,
        num_workers=data.workers,
        # A generator of its own: starting an epoch must not move torch's global one.
        generator=torch.Generator(),
    )
