"""PLY: ascii and binary, both endians. Only vertices are read; what follows them is never touched."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import UserError
from ...files import atomic_path
from .. import dataset
from .text import Layout, Lines, is_count, rows

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
# Types that PLY does not have; a double holds whole numbers up to 2⁵³.
WRITTEN_AS = {"b1": "u1", "i8": "f8", "u8": "f8", "f2": "f4"}
LONGEST_HEADER = 1 << 20


@dataclass
class Element:
    """An element of a header.

    Args:
        name: `vertex`, `face`, ...
        count: number of its rows.
        properties: of each its name, its type and, for a list, the type of its length.
    """

    name: str
    count: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(length is not None for _, _, length in self.properties)

    def dtype(self, order: str) -> np.dtype:
        """The type of its rows, in which no property is a list."""
        return np.dtype([(name, order + TYPES[kind]) for name, kind, _ in self.properties])


def read(path: Path, columns: Sequence[str] | None = None) -> Iterator[np.ndarray]:
    """The vertices of a PLY file, see `read_chunks`; a PLY file names its columns itself."""
    with path.open("rb") as file:
        form, elements, lines = _header(file, path)
        position = next((i for i, element in enumerate(elements) if element.name == "vertex"), None)
        if position is None:
            raise UserError(f"{path}: no element 'vertex', expected a point cloud")
        before, vertex, last = elements[:position], elements[position], position + 1 == len(elements)
        if vertex.has_lists or not vertex.properties:
            raise UserError(f"{path}: vertices with a list or without properties, expected numbers alone")
        if form == "ascii":
            yield from _ascii(Lines(file, path, lines + 1), path, before, vertex, last)
        else:
            yield from _binary(file, path, before, vertex, last, BYTE_ORDERS[form])


def _header(file: BinaryIO, path: Path) -> tuple[str, list[Element], int]:
    """Format, elements and number of lines."""
    if file.readline(16).rstrip(b"\r\n") != b"ply":
        raise UserError(f"{path}:1: no PLY file, expected 'ply' as its first line")
    form, elements, number = None, [], 1
    while True:
        number += 1
        line = file.readline(LONGEST_HEADER)
        if file.tell() > LONGEST_HEADER:
            raise UserError(f"{path}:{number}: no end_header so far, expected it within {LONGEST_HEADER} bytes")
        if not line.endswith(b"\n"):
            raise UserError(f"{path}:{number}: not a whole PLY file, its header has no end_header")
        words = line.decode("utf-8", "replace").split()
        match words:
            case ["end_header"]:
                break
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", form, "1.0"] if form in BYTE_ORDERS:
                pass
            case ["element", name, count] if is_count(count):
                elements.append(Element(name, int(count)))
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1].properties.append((name, kind, None))
            case ["property", "list", length, kind, name] if (
                elements and kind in TYPES and TYPES.get(length, "f")[0] != "f"
            ):
                elements[-1].properties.append((name, kind, length))
            case _:
                raise UserError(f"{path}:{number}: {' '.join(words)[:60]!r}, expected a line of a PLY header")
    if form is None:
        raise UserError(f"{path}: the header has no format, expected one of {', '.join(BYTE_ORDERS)}")
    for element in elements:
        names = [name for name, _, _ in element.properties]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: element {element.name} has two properties of the same name")
    return form, elements, number


def _ascii(lines: Lines, path: Path, before: list[Element], vertex: Element, last: bool) -> Iterator[np.ndarray]:
    dtype = vertex.dtype("=")
    whole = {i: np.iinfo(dtype[i]) for i in range(len(dtype)) if dtype[i].kind in "iu"}

    def valid(values: np.ndarray) -> np.ndarray:
        good = np.ones(len(values), bool)
        for column, limits in whole.items():
            value = values[:, column]
            good &= (value >= limits.min) & (value <= limits.max) & (np.trunc(value) == value)
        return good

    expected = "vertex " + " ".join(f"{name} ({kind})" for name, kind, _ in vertex.properties)
    found = 0
    if all(lines.skip(element.count) for element in before):
        for values in rows(lines, path, Layout(len(dtype), expected, valid=valid), vertex.count):
            chunk = np.empty(len(values), dtype)
            for column, name in enumerate(dtype.names):
                chunk[name] = values[:, column]
            found += len(values)
            yield chunk
    if found < vertex.count:
        raise UserError(f"{path}: not a whole PLY file: {found} vertices, expected the {vertex.count} of its header")
    while last and (line := lines.peek()):
        if line.strip():
            raise UserError(f"{path}:{lines.number}: more vertices, expected the {vertex.count} of its header")
        lines.take(1)


def _binary(
    file: BinaryIO, path: Path, before: list[Element], vertex: Element, last: bool, order: str
) -> Iterator[np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    for element in before:
        _skip(file, element, order, path)
    dtype = vertex.dtype(order)
    there = max(0, size - file.tell())
    if there < vertex.count * dtype.itemsize:
        found = there // dtype.itemsize
        raise UserError(f"{path}: not a whole PLY file: {found} vertices, expected the {vertex.count} of its header")
    if last and there > vertex.count * dtype.itemsize:
        more = there - vertex.count * dtype.itemsize
        raise UserError(f"{path}: {more} bytes after the {vertex.count} vertices of its header, expected the end")
    for start in range(0, vertex.count, dataset.CHUNK):
        chunk = np.fromfile(file, dtype, min(dataset.CHUNK, vertex.count - start))
        yield chunk.astype(dtype.newbyteorder("="), copy=False)


def _skip(file: BinaryIO, element: Element, order: str, path: Path) -> None:
    """Move behind an element."""
    if not element.has_lists:
        file.seek(element.count * element.dtype(order).itemsize, os.SEEK_CUR)
        return
    # Lists of any length: only a walk tells where they end.
    types = [
        (np.dtype(order + TYPES[kind]), length and np.dtype(order + TYPES[length]))
        for _, kind, length in element.properties
    ]
    for _ in range(element.count):
        for kind, length in types:
            count = 1
            if length is not None:
                data = file.read(length.itemsize)
                if len(data) < length.itemsize:
                    raise UserError(f"{path}: not a whole PLY file: it ends in the element {element.name!r}")
                count = int(np.frombuffer(data, length)[0])
            file.seek(max(count, 0) * kind.itemsize, os.SEEK_CUR)


def write_ply(path: str | os.PathLike, count: int, chunks: Iterable[np.ndarray], comments: Sequence[str] = ()) -> None:
    """Write points as a binary little-endian PLY file, whole or not at all.

    Args:
        path: file to write.
        count: number of points.
        chunks: structured arrays of the same fields, `count` rows together; at least one. Integers of 64 bits are
            written as doubles, booleans as uchar, float16 as float; white space in a name becomes an underscore.
        comments: lines for the header.

    Raises:
        UserError: another number of rows; a field that is not a number.
    """
    kinds = {
        "i1": "char",
        "u1": "uchar",
        "i2": "short",
        "u2": "ushort",
        "i4": "int",
        "u4": "uint",
        "f4": "float",
        "f8": "double",
    }
    chunks = iter(chunks)
    first = next(chunks)
    written = {name: WRITTEN_AS.get(code := first.dtype[name].str[1:], code) for name in first.dtype.names}
    for name, code in written.items():
        if code not in kinds:
            raise UserError(f"{path}: the field {name} is of type {first.dtype[name]}, which PLY does not have")
    dtype = np.dtype([(name, "<" + code) for name, code in written.items()])
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {' '.join(line.split())}" for line in comments)]
    header += [f"element vertex {count}"]
    header += [f"property {kinds[code]} {'_'.join(name.split())}" for name, code in written.items()]
    rows = 0
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write("\n".join([*header, "end_header", ""]).encode())
            for chunk in itertools.chain([first], chunks):
                packed = np.empty(len(chunk), dtype)
                for name in dtype.names:
                    packed[name] = chunk[name]
                packed.tofile(file)
                rows += len(chunk)
        if rows != count:
            raise UserError(f"{path}: {rows} points, expected {count}")
