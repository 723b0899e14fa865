"""Clouds made up in memory."""

from dataclasses import fields

import numpy as np

from dsp_sparse.data import RawCloud, RawScene

CLASSES = ["floor", "thing", "rare"]


def tiny_cloud(seed: int, count: int = 400, shift: float = 0.0) -> RawCloud:
    """Random points in a 2 m cube: mostly floor, some things, three rare points, some without a label."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([-1, 0, 0, 0, 1], count)
    labels[generator.choice(count, 3, replace=False)] = 2
    return RawCloud(
        points=generator.uniform(0, 2, (count, 3)) + shift,
        features=generator.random((count, 3)).astype(np.float32),
        labels=labels,
    )


def whole(scene: RawScene) -> RawCloud:
    """The whole cloud of a scene, checked."""
    pieces = list(scene.read())
    return RawCloud(*(np.concatenate([getattr(piece, f.name) for piece in pieces]) for f in fields(RawCloud)))
