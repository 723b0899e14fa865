"""What every loader of a data set returns, before anything is subsampled: clouds, a piece at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import numpy as np

from ..errors import UserError

# Points of a piece: what reading a cloud of any size holds in memory.
CHUNK = 1_000_000


@dataclass(frozen=True, eq=False)
class RawCloud:
    """A piece of a cloud as scanned, or all of it.

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
        chunks: reads the cloud, at most `CHUNK` points at a time; picklable, so that other processes can call it.
    """

    name: str
    group: str
    source: Path
    chunks: Callable[[], Iterable[RawCloud]]

    def read(self) -> Iterator[RawCloud]:
        """The pieces of the cloud in the original order of its points, checked.

        Raises:
            UserError: no points at all, or coordinates or features that are not finite.
        """
        return checked(self.chunks(), self.source)


@dataclass(frozen=True)
class Dataset:
    """A data set, its clouds not read yet.

    Args:
        name: the data set's name.
        root: folder it was found in.
        classes: class names; label c means `classes[c]`.
        features: names of the measured features and the raw value that stands for 1.
        scenes: its clouds.
        coordinates: the three fields of its files that hold coordinates.
        reading: what else the user said of how files are read, as JSON: with other values a cloud is another one.
    """

    name: str
    root: Path
    classes: list[str]
    features: dict[str, float]
    scenes: list[RawScene]
    coordinates: list[str] = field(default_factory=lambda: list("xyz"))
    reading: dict = field(default_factory=dict)


def checked(pieces: Iterable[RawCloud], source: Path) -> Iterator[RawCloud]:
    """The pieces that hold points, in order.

    Raises:
        UserError: the cloud is empty, or a piece holds coordinates or features that are not finite; names `source`
            and the first such point, counted from 1.
    """
    total = 0
    for piece in pieces:
        for name, values in (("coordinates", piece.points), ("features", piece.features)):
            finite = np.isfinite(values).all(1)
            if not finite.all():
                row = int(finite.argmin())
                raise UserError(f"{source}: point {total + row + 1} has {name} {values[row].tolist()}, expected finite")
        total += len(piece.points)
        if len(piece.points):
            yield piece
    if not total:
        raise UserError(f"{source}: the cloud is empty, expected at least one point")


def relabel(ids: np.ndarray, table: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[N]` int64 of ids `[N]` by a table, -1 for ids that it does not list, and which are listed `[N]` bool."""
    known = np.array(sorted(table))
    labels = np.array([table[i] for i in known.tolist()])
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    listed = known[place] == ids
    return np.where(listed, labels[place], -1), listed


def existing_folder(path: str | Path, what: str) -> Path:
    """`path` as a Path; a UserError unless it is a folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: {'a file' if path.exists() else 'no such folder'}, expected {what}")
    return path


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that a glob relative to it matches, sorted; links to folders are followed.

    Hidden files, and those in hidden folders, are left out.
    """
    names = map(Path, glob(pattern, root_dir=folder, recursive=True))  # Path.glob would not follow links
    shown = (name for name in names if not any(part[0] == "." for part in name.parts))
    return sorted(path for name in shown if (path := folder / name).is_file())
