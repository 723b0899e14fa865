"""S3DIS, and everything in its layout: `Area_<k>/<room>/Annotations/<class>_<i>.txt` with lines `x y z r g b`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from .dataset import Dataset, RawCloud, RawScene, existing_folder
from .readers.text import Layout, Lines, rows

CLASSES = [
    "ceiling",
    "floor",
    "wall",
    "beam",
    "column",
    "window",
    "door",
    "table",
    "chair",
    "sofa",
    "bookcase",
    "board",
    "clutter",
]
COLOURS = {"red": 255.0, "green": 255.0, "blue": 255.0}

CONTROL = bytes(b for b in range(32) if chr(b) not in "\t\n\r") + b"\x7f"
CONTROL_TO_SPACE = bytes.maketrans(CONTROL, b" " * len(CONTROL))


def scenes(root: str | Path) -> Dataset:
    """Find the rooms below `root`; the groups are the areas. A room's own `.txt` is not needed.

    Raises:
        UserError: no such folder, no rooms in it, or a room without annotations.
    """
    root = existing_folder(root, "the folder of S3DIS that holds Area_1, Area_2, …")
    rooms = sorted(
        p for area in root.glob("Area_*") if area.is_dir() for p in area.iterdir() if p.is_dir() and p.name[0] != "."
    )
    if not rooms:
        raise UserError(f"{root}: no rooms found, expected folders like Area_1/office_1/Annotations")
    for room in rooms:
        if not _objects(room):
            raise UserError(f"{room}: no Annotations/*.txt, expected one file an object, like Annotations/chair_1.txt")
    found = [RawScene(f"{room.parent.name}_{room.name}", room.parent.name, room, partial(load, room)) for room in rooms]
    return Dataset("s3dis", root, CLASSES, COLOURS, found)


def load(room: Path) -> Iterator[RawCloud]:
    """Read one room: its objects' points in the order of their file names. Unknown class names count as clutter.

    Raises:
        UserError: a line that is not six finite numbers with colours from 0 to 255; names the file and the line.
    """
    for path in _objects(room):
        name = path.stem.rsplit("_", 1)[0]
        label = CLASSES.index(name if name in CLASSES else "clutter")
        with path.open("rb") as file:
            for values in rows(Lines(file, path), path, LAYOUT):
                colours = (values[:, 3:] / 255).astype(np.float32)
                yield RawCloud(values[:, :3], colours, np.full(len(values), label, np.int64))


def _objects(room: Path) -> list[Path]:
    """The files of a room's objects, without those that macOS puts beside them (`._chair_1.txt`)."""
    return sorted((room / "Annotations").glob("[!.]*.txt"))


def _valid(values: np.ndarray) -> np.ndarray:
    return (np.isfinite(values[:, :3]) & (values[:, 3:] >= 0) & (values[:, 3:] <= 255)).all(1)


def _clean(block: bytes) -> bytes:
    """Mend the stray control byte of the v1.2 release."""
    if len(block.translate(None, CONTROL)) == len(block):
        return block
    return b"\n".join(map(_without_control_bytes, block.split(b"\n")))


def _without_control_bytes(line: bytes) -> bytes:
    # The byte lies within a number or in place of a space: the six numbers tell which.
    joined = line.translate(None, CONTROL)
    return joined if len(joined.split()) == 6 else line.translate(CONTROL_TO_SPACE)


LAYOUT = Layout(6, "six numbers x y z r g b, colours from 0 to 255", clean=_clean, valid=_valid)
