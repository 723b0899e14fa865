"""Point clouds in files: every format as structured arrays of at most `CHUNK` points, never a whole file in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..dataset import RawCloud
from . import arrays, las, ply, text

READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[np.ndarray]]] = {
    ".ply": ply.read,
    ".las": las.read,
    ".laz": las.read,
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    **dict.fromkeys((".txt", ".xyz", ".pts", ".csv", ".asc"), text.read),
}
SUFFIXES = tuple(READERS)


def read_chunks(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[np.ndarray]:
    """The points of a file, in order, a chunk at a time.

    Args:
        path: the file; its suffix, in any case, tells the format.
        columns: names of the columns where the file has none (text without a header line, a plain array); by default
            x y z for three and x y z red green blue for six.

    Returns:
        An iterator of structured arrays `[n]`, n <= `CHUNK`, with all fields of the points under their names. Numbers
        of a text file are float64; names in its header line are lower-cased, and r g b are red green blue. Coordinates
        of LAS files are x y z in metres, float64.

    Raises:
        UserError: an unknown suffix, a missing, truncated or malformed file, columns without names. At once for a
            missing file and an unknown suffix, else when the iterator gets there.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}, expected one of {' '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a point cloud")
    return reader(path, columns)


def columns_of(chunk: np.ndarray, path: Path, names: Sequence[str]) -> np.ndarray:
    """The named fields as `[n, len(names)]` float64; a UserError naming the missing ones and those there are."""
    missing = [name for name in names if name not in chunk.dtype.names]
    if missing:
        raise UserError(f"{path}: no field {', '.join(missing)}; it has {', '.join(chunk.dtype.names)}")
    values = np.empty((len(chunk), len(names)))
    for column, name in enumerate(names):
        values[:, column] = chunk[name]
    return values


def cloud_of(
    chunk: np.ndarray, path: Path, features: Mapping[str, float], coordinates: Sequence[str] = ("x", "y", "z")
) -> RawCloud:
    """The piece of a cloud that a chunk holds.

    Args:
        chunk: of `read_chunks`.
        path: the file, for messages.
        features: field to the value that becomes 1, as in `SceneStore.features`; clipped to [0, 1].
        coordinates: fields of the coordinates.

    Returns:
        The piece, all its labels -1; values are not checked, see `dataset.checked`.

    Raises:
        UserError: a field that is missing; names it and those there are.
    """
    scaled = columns_of(chunk, path, list(features)) / np.array(list(features.values()))
    return RawCloud(
        points=columns_of(chunk, path, coordinates),
        features=scaled.clip(0, 1).astype(np.float32),
        labels=np.full(len(chunk), -1, np.int64),
    )
