"""Three tiny coloured rooms, and networks that train on them in seconds."""

from dataclasses import replace

import numpy as np
import torch

from dsp_sparse.backbones import build_backbone
from dsp_sparse.config import TrainConfig
from dsp_sparse.data import Labelling, RawCloud, train_loader, weak_labels

CLASSES = ["floor", "wall", "table"]
GRID, RADIUS = 0.1, 0.6
DEFORMABLE = {"deformable_levels": (1, 2), "modulated": True}
OPTIONS = {
    "kpfcnn": {"grid_size": GRID, "first_width": 16, "blocks": (1, 1, 1), "bn_momentum": 0.2},
    "minkunet": {"variant": "14A", "voxel_size": GRID, "planes": (8,) * 8},
}


def room(seed: int) -> RawCloud:
    """A floor, a wall and a table top; each class has its own colour, with noise."""
    generator = np.random.default_rng(seed)
    u, v = generator.uniform(0, 1, (2, 3, 1500))
    zero = np.zeros(1500)
    floor = np.stack([2 * u[0], 2 * v[0], zero], 1)
    wall = np.stack([2 * u[1], zero, 1.5 * v[1]], 1)
    table = np.stack([0.4 + 1.4 * u[2], 0.4 + 1.4 * v[2], zero + 0.6], 1)
    labels = np.repeat(np.arange(3), 1500)
    colours = np.eye(3)[labels] * 0.6 + generator.uniform(0, 0.4, (4500, 3))
    return RawCloud(np.concatenate([floor, wall, table]), colours.astype(np.float32), labels)


def tiny_net(name: str, seed: int = 0, **options):
    """A small backbone for the store's clouds; `options` on top of the tiny ones."""
    torch.manual_seed(seed)
    return build_backbone(name, 5, len(CLASSES), **OPTIONS[name] | options)


def batch_of(store, settings):
    """A batch of pairs."""
    scenes = store.group(["train"])
    labels = weak_labels(store, Labelling(rate=0.1), scenes)
    where = {"steps": 1, "seed": 0, "epochs": range(1), "pairs": True}
    return next(iter(train_loader(scenes, labels, settings.data, settings.augment, **where)))


def with_optim(config: TrainConfig, **changes) -> TrainConfig:
    """The same settings with another optimisation."""
    return replace(config, optim=replace(config.optim, **changes))
