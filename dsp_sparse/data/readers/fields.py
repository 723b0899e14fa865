"""Fields of points: names for columns that have none, and arrays of several columns taken apart."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError

# The array that holds the coordinates where they are not fields of their own.
POINTS = "points"
COLOURS = ("colors", "colours", "rgb")
DEFAULT = {3: "x y z", 6: "x y z red green blue"}
# What scanners write into .pts files.
WITH_INTENSITY = {4: "x y z intensity", 7: "x y z intensity red green blue"}


def names_of(count: int, columns: Sequence[str] | None, path: Path, intensity: bool = False) -> list[str]:
    """Names for `count` columns: `columns`, or the usual ones.

    Args:
        count: number of columns in the file.
        columns: names the user gave.
        path: the file, for messages.
        intensity: four and seven columns have an intensity after the coordinates.

    Raises:
        UserError: another number of names than of columns, or no usual names for so many columns.
    """
    if columns is not None:
        if len(columns) != count or len(set(columns)) != count:
            raise UserError(
                f"{path}: {count} columns, expected {len(columns)} with distinct names: {' '.join(columns)}"
            )
        return list(columns)
    usual = (DEFAULT | WITH_INTENSITY if intensity else DEFAULT).get(count)
    if usual is None:
        raise UserError(f"{path}: {count} columns without names, expected `columns` to name them, like {DEFAULT[6]}")
    return usual.split()


def fields_of(name: str, part: np.ndarray, columns: Sequence[str] | None, path: Path) -> dict[str, np.ndarray]:
    """The fields `[n]` that a part of an array holds, by name.

    Args:
        name: name of the array; the columns of `points` are named by `names_of`, those of `colors` red green blue,
            those of another array `a` a_0, a_1, ...
        part: `[n]`, `[n, k]`, or structured `[n]`, whose fields may have several columns each.
        columns: names the user gave for the columns of `points`.
        path: the file, for messages.

    Raises:
        UserError: values that are no numbers, more dimensions, columns without names, or two fields of one name.
    """
    if part.dtype.names:
        return merge((fields_of(field, part[field], columns, path) for field in part.dtype.names), path)
    if part.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} is of type {part.dtype}, expected numbers")
    if part.ndim > 2:
        raise UserError(f"{path}: {name} has the shape {list(part.shape)}, expected a number or a row a point")
    if part.ndim == 1:
        return {name: part}
    if name == POINTS:
        names = names_of(part.shape[1], columns, path)
    elif name in COLOURS and part.shape[1] == 3:
        names = ["red", "green", "blue"]
    else:
        names = [f"{name}_{column}" for column in range(part.shape[1])] if part.shape[1] != 1 else [name]
    return {name: part[:, column] for column, name in enumerate(names)}


def not_whole(path: Path, what: str, error: Exception) -> UserError:
    """What to raise for a file that a library cannot read."""
    return UserError(f"{path}: not a whole {what} ({' '.join(str(error).split())})")


def merge(parts: Iterable[dict[str, np.ndarray]], path: Path) -> dict[str, np.ndarray]:
    """The fields of several arrays; a UserError for a name that occurs twice."""
    merged: dict[str, np.ndarray] = {}
    for fields in parts:
        for name in fields.keys() & merged.keys():
            raise UserError(f"{path}: the field {name} occurs twice, expected distinct names")
        merged |= fields
    return merged


def join(fields: dict[str, np.ndarray]) -> np.ndarray:
    """Fields of the same length, at least one, as one structured array."""
    dtype = [(name, values.dtype.newbyteorder("=")) for name, values in fields.items()]
    joined = np.empty(len(next(iter(fields.values()))), dtype)
    for name, values in fields.items():
        joined[name] = values
    return joined
