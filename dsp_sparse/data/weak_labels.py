"""Weak labels: the few points of a scene whose label training may see."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import atomic_path
from .store import Scene, SceneStore


def draw(labels: np.ndarray, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Choose the points that keep their label.

    Args:
        labels: `[n]` class ids, negative where there is none.
        rate: share of the points of each class to choose, in (0, 1].
        generator: source of randomness.

    Returns:
        `[n]` bool: of every class present `round(rate · points)` uniformly random points, at least one.

    Raises:
        UserError: a rate outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise UserError(f"label rate must be in (0, 1], got {rate}")
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        count = max(1, round(rate * len(rows)))
        chosen[generator.choice(rows, count, replace=False)] = True
    return chosen


def weak_labels(store: SceneStore, rate: float, seed: int) -> list[np.ndarray]:
    """The weak labels of every scene of a store, for one rate and seed.

    They are drawn once and kept beside the scenes as `weak/rate-<rate>-seed-<seed>/<scene>.npy` (bool masks), so that
    every run with this rate and seed trains on the same labels.

    Returns:
        Per scene, in store order, `[n]` int16 labels with -1 on the points that are not labelled.

    Raises:
        UserError: a rate outside (0, 1], a negative seed, or a stored mask that does not fit its scene.
    """
    if seed < 0:
        raise UserError(f"label seed must not be negative, got {seed}")
    folder = store.path / "weak" / f"rate-{float(rate)!r}-seed-{seed}"
    return [np.where(_mask(scene, folder, rate, seed), scene.labels, -1) for scene in store.scenes]


def label_table(store: SceneStore, labels: Sequence[np.ndarray]) -> str:
    """Lines of a table for people: per class its grid points, and how many of them `labels` (per scene) label."""
    num_classes = len(store.classes)

    def counts(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return sum(np.bincount(a[a >= 0], minlength=num_classes) for a in arrays)

    rows = zip(store.classes, counts(s.labels for s in store.scenes), counts(labels), strict=True)
    width = max(map(len, [*store.classes, "class"]))
    lines = [f"{'class':{width}}  {'points':>10}  {'labelled':>10}  {'share':>8}"]
    for name, points, labelled in rows:
        lines.append(f"{name:{width}}  {points:10d}  {labelled:10d}  {labelled / max(points, 1):8.2%}")
    return "\n".join(lines)


def _mask(scene: Scene, folder: Path, rate: float, seed: int) -> np.ndarray:
    path = folder / f"{scene.name}.npy"
    if path.is_file():
        mask = np.load(path)
        if len(mask) != scene.num_points:
            raise UserError(f"{path}: a mask of {len(mask)} points, the scene has {scene.num_points}; delete the file")
        return mask
    # Seeded by the scene's name: a scene keeps its labels when the store around it changes.
    mask = draw(scene.labels, rate, np.random.default_rng([seed, zlib.crc32(scene.name.encode())]))
    with atomic_path(path) as temporary:
        np.save(temporary, mask)
    return mask
