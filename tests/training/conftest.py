"""A store of three tiny coloured rooms, and the settings of a short training on it."""

from functools import partial
from pathlib import Path

import pytest
from tiny import CLASSES, GRID, OPTIONS, RADIUS, room

from dsp_sparse.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    KPFCNNConfig,
    MinkUNetConfig,
    OptimConfig,
    TrainConfig,
)
from dsp_sparse.data import Dataset, RawScene, prepare


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Two rooms to train on (group `train`) and one to test on (group `test`)."""
    folder = tmp_path_factory.mktemp("store")
    scenes = [
        RawScene(f"room_{seed}", group, Path(f"room_{seed}"), partial(iter, [room(seed)]))
        for seed, group in enumerate(("train", "train", "test"))
    ]
    features = dict.fromkeys(("red", "green", "blue"), 255.0)
    return prepare(Dataset("rooms", folder, CLASSES, features, scenes), folder / "store", GRID, progress=False)


@pytest.fixture(scope="session")
def settings(store):
    """The settings of a short training."""
    data = DataConfig(
        store=str(store.path),
        train_groups=["train"],
        test_groups=["test"],
        label_rate=0.1,
        radius=RADIUS,
        batch_size=4,
    )
    optim = OptimConfig(epochs=2, steps_per_epoch=2, lr=0.05, lr_decay=0.1, momentum=0.9)
    return TrainConfig(
        data=data,
        device="cpu",
        kpfcnn=KPFCNNConfig(**OPTIONS["kpfcnn"]),
        minkunet=MinkUNetConfig(**OPTIONS["minkunet"]),
        augment=AugmentConfig(feature_drop=0.0),
        optim=optim,
        eval=EvalConfig(votes=1, batch_size=2),
    )


@pytest.fixture(params=sorted(OPTIONS))
def backbone(request):
    """Every backbone's name."""
    return request.param
