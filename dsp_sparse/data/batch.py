"""What a training step receives: samples cut from scenes, packed into one ragged batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..ragged import Ragged


@dataclass(frozen=True, eq=False)
class Sample:
    """One ball of a scene, as arrays.

    Args:
        feat: `[n, C]` float32, see `network_features`.
        coord: `[n, 3]` float32, metres from the centre of the ball.
        labels: `[n]` int64, -1 where unlabelled.
        rows: `[n]` int64, the row each point has in its scene.
        scene: number of the scene in its store.
        pair_class: the class that its pair was drawn for; None for a sample of its own.
    """

    feat: np.ndarray
    coord: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    scene: int
    pair_class: int | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples, N points in all.

    Args:
        input: what the network sees; see `network_features` for its channels.
        labels: `[N]` int64 class ids, -1 on unlabelled points.
        rows: `[N]` int64, the row each point has in its scene.
        scenes: B numbers of scenes in their store.
        partner: `[B]` int64, the sample each sample is paired with; None in a batch of independent samples.
        pair_classes: the class that each pair was drawn for; none in a batch of independent samples.
    """

    input: Ragged
    labels: Tensor
    rows: Tensor
    scenes: list[int]
    partner: Tensor | None = None
    pair_classes: tuple[int, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies while the CPU goes on. The loader calls it."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Ragged | Tensor], Ragged | Tensor]) -> "Batch":
        parts = {name: getattr(self, name) for name in ("input", "labels", "rows", "partner")}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})


def network_features(features: np.ndarray, height: np.ndarray) -> np.ndarray:
    """The input channels of a network: `[1, measured features, height above the lowest point of the scene (m)]`.

    Args:
        features: `[n, F]` measured features in [0, 1].
        height: `[n]` metres above the lowest point of the scene; with a scene's own points, their z.

    Returns:
        `[n, F + 2]` float32.
    """
    channels = np.empty((len(height), 2 + features.shape[1]), np.float32)
    channels[:, 0], channels[:, 1:-1], channels[:, -1] = 1, features, height
    return channels


def collate(samples: Sequence[Sample]) -> Batch:
    """Pack samples, at least one, into a batch without partners."""
    return Batch(
        input=Ragged.pack([(torch.from_numpy(s.feat), torch.from_numpy(s.coord)) for s in samples]),
        labels=torch.from_numpy(np.concatenate([s.labels for s in samples])),
        rows=torch.from_numpy(np.concatenate([s.rows for s in samples])),
        scenes=[s.scene for s in samples],
    )
