"""A tiny data set whose clouds are made up in memory."""

from functools import partial
from pathlib import Path

import pytest
from clouds import CLASSES, tiny_cloud

from dsp_sparse.data import Dataset, RawScene


@pytest.fixture
def tiny_dataset(tmp_path) -> Dataset:
    """Three clouds in two groups."""
    scenes = [
        RawScene(f"scene{i}", "ab"[i % 2], Path(f"scene{i}.txt"), partial(iter, [tiny_cloud(i)])) for i in range(3)
    ]
    return Dataset("tiny", tmp_path, CLASSES, {"red": 255.0, "green": 255.0, "blue": 255.0}, scenes)
