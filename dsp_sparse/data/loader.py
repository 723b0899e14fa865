"""The loader of training."""

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..config import AugmentConfig, DataConfig
from .augment import augment
from .balls import Ball, BallSampler, make_sample, rows_around, rows_within
from .batch import Batch, Sample, collate
from .pairs import PairSampler, collate_pairs
from .store import Scene, SceneStore


def split(store: SceneStore, data: DataConfig) -> tuple[list[Scene], list[Scene]]:
    """The scenes to train on and those to test on. UserError: a group that the store does not have."""
    return store.group(train_groups(store, data)), store.group(data.test_groups)


def train_groups(store: SceneStore, data: DataConfig) -> list[str]:
    """The groups to train on; where the settings name none, all with labels that are not tested."""
    if data.train_groups is not None:
        return data.train_groups
    labelled = {scene.group for scene in store.scenes if any(scene.class_counts)}
    return sorted(labelled - set(data.test_groups))


class BallDataset(TorchDataset):
    """Cuts the balls that a sampler asks for, and augments them. Indexed by `Ball`."""

    def __init__(
        self, scenes: Sequence[Scene], labels: Sequence[np.ndarray], data: DataConfig, augmentation: AugmentConfig
    ):
        self.scenes, self.labels, self.data, self.augmentation = scenes, labels, data, augmentation

    def __getitem__(self, ball: Ball) -> Sample:
        scene = self.scenes[ball.scene]
        limits = (self.data.radius, self.data.max_points)
        labels = self.labels[ball.scene]
        if ball.anchor is None:
            cut = make_sample(scene, labels, ball.centre, rows_within(scene, ball.centre, *limits), scene.number)
        else:
            cut = make_sample(scene, labels, *rows_around(scene, ball.centre, ball.anchor, *limits), scene.number)
            cut = replace(cut, pair_class=int(labels[ball.anchor]))
        return augment(cut, self.augmentation, np.random.default_rng(ball.seed))


def ignore_stops(worker: int) -> None:
    """Let the training process alone decide when to stop: what a terminal or a cluster sends reaches its workers, too.

    A worker that is told to end does so a minute later, should it be there still: time for the state to be saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


def train_loader(
    scenes: Sequence[Scene],
    weak_labels: Sequence[np.ndarray],
    data: DataConfig,
    augment: AugmentConfig,
    *,
    steps: int,
    seed: int,
    epochs: range,
    pairs: bool,
    rank: int = 0,
    world: int = 1,
    first_step: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """The batches of consecutive epochs. They depend on the arguments alone, not on the number of workers.

    Workers start once, and prepare the next epoch's first batches while the one before it ends.

    Args:
        scenes: scenes to train on, at least one.
        weak_labels: per scene `[n]` class ids, -1 where training must not see the label.
        data: radius, cap on points, batch size (of a rank) and number of workers.
        augment: augmentation.
        steps: batches of an epoch.
        seed: seed of the run, not negative.
        epochs: epochs of the run, at least one.
        pairs: batches of pairs (see `PairSampler`) instead of independent samples.
        rank: number of this process; the ranks share what one process would see in batches `world` times as large.
        world: number of processes.
        first_step: batches to leave out at the start of the first epoch, one that is resumed.
        pin_memory: put batches where a GPU can copy them from while the CPU goes on.

    Returns:
        A loader of `Batch`.

    Raises:
        UserError: no scenes; with `pairs`, an odd batch size or no two samples with a common class.
    """
    where = {"radius": data.radius, "batch_size": data.batch_size, "steps": steps, "seed": seed, "epochs": epochs}
    where |= {"rank": rank, "world": world, "first_step": first_step}
    return DataLoader(
        BallDataset(scenes, weak_labels, data, augment),
        batch_sampler=PairSampler(scenes, weak_labels, **where) if pairs else BallSampler(scenes, **where),
        collate_fn=collate_pairs if pairs else collate,
        num_workers=data.workers,
        worker_init_fn=ignore_stops,
        pin_memory=pin_memory,
        # A generator of its own: starting an epoch must not move torch's global one.
        generator=torch.Generator(),
    )


def fetched(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader.

    Raises:
        RuntimeError: a worker ended, whichever way that shows first; the message begins with "DataLoader worker".
    """
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:  # it ended while it sent a batch
        time.sleep(1)  # a signal follows, and torch raises what says more, now rather than in the midst of other work
        raise RuntimeError("DataLoader worker ended while it sent a batch") from error
