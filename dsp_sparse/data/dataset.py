"""What every loader of a data set returns, before anything is subsampled."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError


@dataclass(frozen=True, eq=False)
class RawCloud:
    """One cloud as scanned.

    Args:
        points: `[N, 3]` float64, metres.
        features: `[N, F]` float32 measured features in [0, 1].
        labels: `[N]` int64 class ids, -1 where there is none.
    """

    points: np.ndarray
    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class RawScene:
    """One cloud of a data set, not read yet.

    Args:
        name: unique in the data set; becomes a folder name.
        group: what splits are made of (an S3DIS area, a ScanNet split).
        source: file or folder it is read from, for messages.
        load: reads the cloud; picklable, so that other processes can call it.
    """

    name: str
    group: str
    source: Path
    load: Callable[[], RawCloud]

    def read(self) -> RawCloud:
        """Load the cloud and check it.

        Raises:
            UserError: no points, or coordinates or features that are not finite.
        """
        cloud = self.load()
        check_cloud(cloud, self.source)
        return cloud


@dataclass(frozen=True)
class Dataset:
    """A data set, its clouds not read yet.

    Args:
        name: the data set's name.
        root: folder it was found in.
        classes: class names; label c means `classes[c]`.
        features: names of the measured features and the raw value that stands for 1.
        scenes: its clouds.
    """

    name: str
    root: Path
    classes: list[str]
    features: dict[str, float]
    scenes: list[RawScene]


def check_cloud(cloud: RawCloud, source: Path) -> None:
    """Raise a UserError naming `source` if the cloud is empty or holds values that are not finite."""
    if not len(cloud.points):
        raise UserError(f"{source}: the cloud is empty, expected at least one point")
    for name, values in (("coordinates", cloud.points), ("features", cloud.features)):
        bad = int((~np.isfinite(values).all(1)).sum())
        if bad:
            raise UserError(f"{source}: {bad} of {len(values)} points have {name} that are not finite")


def existing_folder(path: str | Path, what: str) -> Path:
    """`path` as a Path; a UserError unless it is a folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, expected {what}")
    return path
