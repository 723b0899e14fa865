"""A run folder as a training leaves it, with random weights: what is evaluated and predicted here need not be good."""

from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest
import torch

from dsp_sparse.backbones import build_backbone
from dsp_sparse.config import DataConfig, EvalConfig, KPFCNNConfig, TrainConfig
from dsp_sparse.data import collate, cover, make_sample
from dsp_sparse.reallocation import CSFR
from dsp_sparse.training.checkpoint import Model, save_model, save_modules
from dsp_sparse.training.run import Run

RADIUS = 1.5


def balls_of(scene):
    balls = islice(cover(scene, RADIUS, 1, np.random.default_rng(0)), 4)
    return [make_sample(scene, scene.labels, *ball, scene.number) for ball in balls]


@pytest.fixture(scope="session")
def build_run():
    """`build_run(folder, store)` makes a run folder on a store; it is tested on the group `test_group`."""

    def build(folder, store, test_group="Area_2", train_group="Area_1"):
        options = KPFCNNConfig(grid_size=store.grid, first_width=8, blocks=(1, 1, 1), bn_momentum=1.0)
        data = DataConfig(
            store=str(store.path), train_groups=[train_group], test_groups=[test_group], radius=RADIUS, batch_size=2
        )
        config = TrainConfig(data=data, method="csfr", device="cpu", kpfcnn=options, eval=EvalConfig(votes=1))
        torch.manual_seed(0)
        net = build_backbone("kpfcnn", store.in_channels, len(store.classes), **asdict(options))
        with torch.no_grad():  # the batch statistics of real balls, so that not all of them look the same
            net(collate(balls_of(store.scenes[0])).input)
        run = Run(folder, config)
        run.start()
        model = Model(
            net=net,
            backbone="kpfcnn",
            options=asdict(options),
            in_channels=store.in_channels,
            classes=store.classes,
            features=store.features,
            coordinates=store.coordinates,
            grid=store.grid,
            radius=RADIUS,
            max_points=None,
        )
        save_model(run.model, model)
        save_modules(run.modules, {"csfr": CSFR(net.tap.channels).state_dict()})
        return run.folder

    return build


@pytest.fixture
def make_run(build_run, tmp_path):
    """`make_run(store)` is such a folder, of its own for every `name`."""

    def make(store, name="run", *groups):
        return build_run(tmp_path / name, store, *groups)

    return make
