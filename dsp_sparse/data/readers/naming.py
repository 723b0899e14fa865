"""Names for the columns of files that have none."""

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError

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
