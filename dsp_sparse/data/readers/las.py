"""LAS and LAZ, through laspy."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from .. import dataset
from .fields import fields_of, join, merge, not_whole


def read(path: Path, columns: Sequence[str] | None) -> Iterator[np.ndarray]:
    """Points of a LAS or LAZ file, x y z scaled to metres, then its other dimensions; see `read_chunks`."""
    try:
        import laspy
    except ImportError as error:
        raise UserError(f"{path}: LAS files need laspy: pip install 'dsp-sparse[las]'") from error
    total = 0
    try:
        with laspy.open(path) as reader:
            count = reader.header.point_count
            for points in reader.chunk_iterator(dataset.CHUNK):
                total += len(points)
                yield _chunk(points, path)
    except UserError:
        raise
    except Exception as error:  # laspy and its decompressors raise whatever the broken bytes lead them to
        raise not_whole(path, "LAS file", error) from error
    if total != count:
        raise UserError(f"{path}: not a whole LAS file: {total} points, expected the {count} of its header")


def _chunk(points, path: Path) -> np.ndarray:
    names = [name for name in points.point_format.dimension_names if name not in ("X", "Y", "Z")]
    parts = (fields_of(name, np.asarray(points[name]), None, path) for name in ["x", "y", "z", *names])
    return join(merge(parts, path))
