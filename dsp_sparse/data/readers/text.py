"""Text: lines of numbers, parsed a block of lines at a time; a block with a mistake is read again line by line."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import UserError
from .. import dataset
from .fields import names_of

# Bytes read at once: at the 33 bytes a line of S3DIS, half a million points.
BLOCK = 1 << 24


@dataclass(frozen=True)
class Layout:
    """What every line holds.

    Args:
        columns: count of numbers.
        expected: for messages, what a line should be.
        separator: between the numbers; None: spaces and tabs.
        comments: `#` starts a comment.
        clean: mends a block of lines before it is parsed.
        valid: tells of values `[n, columns]` which rows are as expected.
    """

    columns: int
    expected: str
    separator: str | None = None
    comments: bool = False
    clean: Callable[[bytes], bytes] = bytes
    valid: Callable[[np.ndarray], np.ndarray] | None = None


class Lines:
    """The lines of an open file, taken in blocks.

    Attributes:
        number: number of the next line, counted from 1.
    """

    def __init__(self, file: BinaryIO, path: Path, number: int = 1):
        self.number = number
        self._file, self._path, self._rest = file, path, b""

    def peek(self) -> bytes:
        """The next line, which is still to be taken; empty at the end of the file."""
        self._fill()
        return self._rest[: self._rest.find(b"\n") + 1] or self._rest

    def take(self, most: int) -> bytes:
        """The next lines: at least one and at most `most`, about `BLOCK` bytes; empty at the end of the file."""
        self._fill()
        found = self._rest.count(b"\n")
        if found <= most:
            end = self._rest.rfind(b"\n") + 1 or len(self._rest)
        else:
            found = most
            end = int(np.flatnonzero(np.frombuffer(self._rest, np.uint8) == ord("\n"))[most - 1]) + 1
        block, self._rest = self._rest[:end], self._rest[end:]
        self.number += found
        return block

    def skip(self, count: int) -> bool:
        """Take so many lines away; False if the file ends before."""
        last = self.number + count
        while self.number < last:
            if not self.take(last - self.number):
                return False
        return True

    def _fill(self) -> None:
        if b"\n" in self._rest:
            return
        self._rest += self._file.read(BLOCK)
        if b"\n" not in self._rest and len(self._rest) >= BLOCK:
            raise UserError(f"{self._path}:{self.number}: more than {BLOCK} bytes, expected lines of numbers")


def rows(lines: Lines, path: Path, layout: Layout, count: int | None = None) -> Iterator[np.ndarray]:
    """The numbers of the lines, `[n, columns]` float64, n <= `CHUNK`; blank lines count for nothing.

    Args:
        lines: the lines.
        path: their file, for messages.
        layout: what a line holds.
        count: number of rows after which to stop; None: at the end of the file.

    Raises:
        UserError: a line that is not as expected; names the file and the line.
    """
    left = float("inf") if count is None else count
    while left:
        first = lines.number
        block = lines.take(min(left, dataset.CHUNK))
        if not block:
            return
        block = layout.clean(block)
        values = _parse(block, layout)
        if values is None or (layout.valid is not None and not layout.valid(values).all()):
            values = _parse_by_line(block, first, path, layout)
        left -= len(values)
        if len(values):
            yield values


def _parse(block: bytes, layout: Layout) -> np.ndarray | None:
    """The numbers of a block; None if a line differs from the others or holds anything else."""
    # pandas takes a third of a second to import, and most commands read no text.
    import pandas

    if b"\0" in block:  # to older versions the end of a number
        return None
    # Single spaces, the usual case, parse twice as fast as any white space.
    for separator in (layout.separator,) if layout.separator else (" ", r"\s+"):
        try:
            table = pandas.read_csv(
                io.BytesIO(block),
                sep=separator,
                header=None,
                dtype=np.float64,
                comment="#" if layout.comments else None,
                # A missing number is then an error and not a NaN.
                keep_default_na=False,
                na_values=["nan", "-nan", "NaN", "NAN"],
                quoting=csv.QUOTE_NONE,
                **_exact(pandas),
            )
        except pandas.errors.EmptyDataError:
            return np.empty((0, layout.columns))
        except ValueError:
            continue
        if table.shape[1] == layout.columns:
            return table.to_numpy()
    return None


def _exact(pandas) -> dict[str, str]:
    """The option that makes pandas round as Python does, which is the default since 3.1."""
    version = tuple(int(part) for part in pandas.__version__.split(".")[:2])
    return {} if version >= (3, 1) else {"float_precision": "round_trip"}


def _parse_by_line(block: bytes, first: int, path: Path, layout: Layout) -> np.ndarray:
    values = []
    for number, line in enumerate(block.splitlines(), first):
        text = line.decode("utf-8", "replace")
        content = text.partition("#")[0] if layout.comments else text
        if not content.strip():
            continue
        words = content.split(layout.separator) if layout.separator else re.split("[ \t]+", content.strip())
        row = [to_number(word) for word in words]
        good = len(row) == layout.columns and None not in row
        if not good or (layout.valid is not None and not layout.valid(np.array([row]))[0]):
            raise UserError(f"{path}:{number}: {text.strip()[:60]!r}, expected {layout.expected}")
        values.append(row)
    return np.array(values).reshape(-1, layout.columns)


def to_number(word: str) -> float | None:
    """The number that a word is; None if it is none. Python's underscores and digits of other scripts are not taken."""
    try:
        return float(word) if word.isascii() and "_" not in word else None
    except ValueError:
        return None


def is_count(word: str) -> bool:
    """Whether a word is a whole number, not negative and not beyond any file's."""
    return re.fullmatch("[0-9]{1,15}", word) is not None


def read(path: Path, columns: Sequence[str] | None) -> Iterator[np.ndarray]:
    """Lines of numbers between white space, commas or semicolons; see `read_chunks`.

    Comments (`#`, `//`), a header line, which may be the last comment, and in `.pts` files a line with the number of
    points may stand above. The header counts if all of its words are names, and a comment only if x, y and z are
    among them.
    """
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        lines = Lines(file, path)
        if b"\0" in lines.peek():
            raise UserError(f"{path}: a zero byte in the first line, expected text in UTF-8 or ASCII")
        count, names, separator = _header(lines, path, columns)
        expected = f"{len(names)} numbers {' '.join(names)}"
        layout = Layout(len(names), expected, separator, comments=True)
        total = 0
        for values in rows(lines, path, layout):
            total += len(values)
            yield structured(values, names)
    if count is not None and total != count:
        raise UserError(f"{path}: {total} points, expected the {count} that its first line says")


def structured(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """`[n, k]` float64 as `[n]` with k named fields."""
    return np.ascontiguousarray(values).view([(name, np.float64) for name in names]).reshape(len(values))


def _header(lines: Lines, path: Path, columns: Sequence[str] | None) -> tuple[int | None, list[str], str | None]:
    """Take what stands above the data: number of points, names of the columns, separator."""
    comment = _take_comments(lines)
    count = None
    pts = path.suffix.lower() == ".pts"
    if pts and is_count(lines.peek().decode("utf-8", "replace").strip()):
        count = int(lines.take(1))
        comment = _take_comments(lines) or comment
    words, separator = _split(lines.peek())
    if words and all(to_number(word) is None for word in words):
        lines.take(1)
        return count, _lower(words, path, lines.number - 1), separator
    header, _ = _split(comment)
    if len(header) == len(words) and {"x", "y", "z"} <= {name.lower() for name in header}:
        return count, _lower(header, path, lines.number - 1), separator
    if not words:
        return count, list(columns or "xyz"), separator
    return count, names_of(len(words), columns, path, intensity=pts), separator


def _take_comments(lines: Lines) -> bytes:
    """Take blank lines and comments away; the last comment without its mark."""
    comment = b""
    while (line := lines.peek()) and (not line.strip() or line.lstrip().startswith((b"#", b"//"))):
        comment = line.strip().lstrip(b"#/") or comment
        lines.take(1)
    return comment


def _split(line: bytes) -> tuple[list[str], str | None]:
    """The words of a line and what separates them."""
    text = line.decode("utf-8", "replace").partition("#")[0].strip()
    # Between semicolons a comma is a decimal one, which is an error.
    separator = next((mark for mark in ";," if mark in text), None)
    return [word.strip().strip("\"'") for word in text.split(separator)], separator


def _lower(names: Sequence[str], path: Path, line: int) -> list[str]:
    """Names of a header line as the other formats have them."""
    colours = {"r": "red", "g": "green", "b": "blue"}
    lowered = [colours.get(name.lower(), name.lower()) for name in names]
    for name in lowered:
        if lowered.count(name) > 1 or not name:
            raise UserError(
                f"{path}:{line}: the column name {name!r} occurs twice or is empty, expected distinct names"
            )
    return lowered
