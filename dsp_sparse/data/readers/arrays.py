"""NumPy files: `.npy` through a memory map, `.npz` as a stream out of its archive."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import UserError
from .. import dataset
from .naming import names_of

# The array of an archive that holds the coordinates, where they are not fields of their own.
POINTS = "points"
COLOURS = ("colors", "colours", "rgb")


def read_npy(path: Path, columns: Sequence[str] | None) -> Iterator[np.ndarray]:
    """A structured array `[N]`, or numbers `[N, k]`; see `read_chunks`."""
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a whole .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != (1 if array.dtype.names else 2):
        shape = getattr(array, "shape", None)
        raise UserError(f"{path}: an array of shape {shape}, expected a structured one [N] or numbers [N, columns]")
    for start in range(0, len(array), dataset.CHUNK):
        part = array[start : start + dataset.CHUNK]
        yield _join(_fields(POINTS, part, columns, path), path)


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
                if member.shape[0] != total or len(member.shape) > 2:
                    raise UserError(f"{path}: {member.name} has the shape {list(member.shape)}, expected {total} rows")
            if len(members) == 1:
                members[0].name = POINTS
            for start in range(0, total, dataset.CHUNK):
                count = min(dataset.CHUNK, total - start)
                fields: dict[str, np.ndarray] = {}
                for member in members:
                    for name, values in _fields(member.name, member.take(count), columns, path).items():
                        if fields.setdefault(name, values) is not values:
                            raise UserError(f"{path}: the field {name} occurs twice, expected distinct names")
                yield _join(fields, path)
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a whole .npz file of numbers ({error})") from error


class _Member:
    """One array of an archive, taken some rows at a time.

    Attributes:
        name: its name.
        shape: its shape.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, stack: ExitStack):
        def opened() -> tuple[BinaryIO, tuple]:
            stream = stack.enter_context(archive.open(name))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return stream, read(stream)

        self.name = name.removesuffix(".npy")
        stream, (self.shape, fortran, self._dtype) = opened()
        if self._dtype.hasobject:
            raise UserError(f"{archive.filename}: {self.name} holds Python objects, expected numbers")
        self._streams = [stream]
        self._width = self.shape[1:]
        if fortran and len(self.shape) == 2:
            # Columns follow each other: each is a stream of its own.
            self._streams += [opened()[0] for _ in range(1, self.shape[1])]
            for column, stream in enumerate(self._streams):
                stream.seek(column * self.shape[0] * self._dtype.itemsize, 1)
            self._width = ()

    def take(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        size = int(np.prod((count, *self._width))) * self._dtype.itemsize
        parts = []
        for stream in self._streams:
            data = stream.read(size)
            if len(data) < size:
                raise EOFError(f"{self.name} ends early")
            parts.append(np.frombuffer(data, self._dtype).reshape(count, *self._width))
        return parts[0] if len(parts) == 1 else np.stack(parts, 1)


def _fields(name: str, part: np.ndarray, columns: Sequence[str] | None, path: Path) -> dict[str, np.ndarray]:
    """The fields that a part of an array holds, by name."""
    if part.dtype.names:
        nested = [_fields(field, part[field], columns, path) for field in part.dtype.names]
        return {key: values for fields in nested for key, values in fields.items()}
    if part.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} is of type {part.dtype}, expected numbers")
    if part.ndim == 1:
        return {name: part}
    if part.ndim != 2:
        raise UserError(f"{path}: {name} has the shape {list(part.shape)}, expected a number or a row a point")
    if name == POINTS:
        names = names_of(part.shape[1], columns, path)
    elif name in COLOURS and part.shape[1] == 3:
        names = ["red", "green", "blue"]
    else:
        names = [f"{name}_{column}" for column in range(part.shape[1])] if part.shape[1] > 1 else [name]
    return {name: part[:, column] for column, name in enumerate(names)}


def _join(fields: dict[str, np.ndarray], path: Path) -> np.ndarray:
    count = len(next(iter(fields.values())))
    chunk = np.empty(count, [(name, values.dtype.newbyteorder("=")) for name, values in fields.items()])
    for name, values in fields.items():
        chunk[name] = values
    return chunk
