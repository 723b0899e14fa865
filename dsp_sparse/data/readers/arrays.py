"""NumPy files: `.npy` through a memory map, `.npz` as a stream out of its archive."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import UserError
from .. import dataset
from .fields import POINTS, fields_of, join, merge, not_whole

# NumPy reads shorter ones unless it is told otherwise: one of a hundred fields is longer.
LONGEST_HEADER = 1 << 20


def read_npy(path: Path, columns: Sequence[str] | None) -> Iterator[np.ndarray]:
    """A structured array `[N]`, or numbers `[N, k]`; see `read_chunks`."""
    try:
        array = np.lib.format.open_memmap(path, "r", max_header_size=LONGEST_HEADER)
    except Exception as error:  # a header is Python source, and broken bytes lead to any error
        raise not_whole(path, ".npy file of numbers", error) from error
    if array.ndim != (1 if array.dtype.names else 2):
        raise UserError(
            f"{path}: an array of shape {array.shape}, expected a structured one [N] or numbers [N, columns]"
        )
    for start in range(0, len(array), dataset.CHUNK):
        part = array[start : start + dataset.CHUNK]
        yield join(fields_of(POINTS, part, columns, path))


def read_npz(path: Path, columns: Sequence[str] | None) -> Iterator[np.ndarray]:
    """Arrays with a row a point: fields `[N]`, structured `[N]`, or numbers `[N, k]`; see `read_chunks`.

    Columns of `points` are named like those of a plain array, those of `colors` red green blue, those of another array
    `a` a_0, a_1, ... Scalars are left out.
    """
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = [_Member(archive, name, stack) for name in archive.namelist() if name.endswith(".npy")]
            members = [member for member in members if member.shape]
            if not members:
                raise UserError(f"{path}: no arrays, expected coordinates and other fields of points")
            total = next((m for m in members if m.name == POINTS), members[0]).shape[0]
            for member in members:
                if member.dtype.hasobject:
                    raise UserError(f"{path}: {member.name} holds Python objects, expected numbers")
                if member.shape[0] != total or len(member.shape) > 2:
                    raise UserError(f"{path}: {member.name} has the shape {list(member.shape)}, expected {total} rows")
            if len(members) == 1:
                members[0].name = POINTS
            for start in range(0, total, dataset.CHUNK):
                count = min(dataset.CHUNK, total - start)
                yield join(merge((fields_of(m.name, m.take(count), columns, path) for m in members), path))
    except UserError:
        raise
    except Exception as error:  # so do the decompressors
        raise not_whole(path, ".npz file of numbers", error) from error


class _Member:
    """One array of an archive, taken some rows at a time.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: type of its numbers.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, stack: ExitStack):
        def opened() -> tuple[BinaryIO, tuple]:
            stream = stack.enter_context(archive.open(name))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return stream, read(stream, LONGEST_HEADER)

        self.name = name.removesuffix(".npy")
        stream, (self.shape, fortran, self.dtype) = opened()
        self._streams = [stream]
        self._width = self.shape[1:]
        if fortran and len(self.shape) == 2:
            # Columns follow each other: each is a stream of its own.
            self._streams += [opened()[0] for _ in range(1, self.shape[1])]
            for column, stream in enumerate(self._streams):
                _skip(stream, column * self.shape[0] * self.dtype.itemsize)
            self._width = ()

    def take(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        size = int(np.prod((count, *self._width))) * self.dtype.itemsize
        parts = []
        for stream in self._streams:
            data = stream.read(size)
            if len(data) < size:
                raise EOFError(f"{self.name} ends early")
            parts.append(np.frombuffer(data, self.dtype).reshape(count, *self._width))
        return parts[0] if len(parts) == 1 else np.stack(parts, 1)


def _skip(stream: BinaryIO, size: int) -> None:
    """Move on in small steps: a seek in an archive reads 16 MB at a time."""
    while size:
        step = len(stream.read(min(size, 1 << 20)))
        if not step:
            raise EOFError("an array ends early")
        size -= step
