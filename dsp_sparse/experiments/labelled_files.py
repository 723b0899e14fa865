"""Files that labelled clouds are written to, whole or not at all.

ply      all fields of the source but those below, and `red green blue`, the colour of the class; `label`, int32, its
         number; `confidence`, float32, its probability. Comments name the classes.
npy      `NAME.npy`, `[N]` int32 labels; beside it `NAME_confidence.npy`, `[N]` float32.
scannet  what the ScanNet benchmark takes: text, a line a point, the NYU40 id of its class.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..data.readers.ply import write_ply
from ..data.scannet import NYU40
from ..errors import UserError
from ..files import atomic_path
from ..palette import palette

Format = Literal["ply", "npy", "scannet"]
EXTENSIONS = {"ply": ".ply", "npy": ".npy", "scannet": ".txt"}
SCANNET_MESH = "_vh_clean_2"
PREDICTED = np.dtype([("label", np.int32), ("confidence", np.float32)])
COLOURS = ("red", "green", "blue")


def written(format: Format, out: Path) -> list[Path]:
    """The files that `write` leaves; `out` is renamed last, so where it is, the others are."""
    return [out.with_name(f"{out.stem}_confidence.npy"), out] if format == "npy" else [out]


def write(
    format: Format,
    out: Path,
    count: int,
    predicted: Iterable[np.ndarray],
    chunks: Iterable[np.ndarray],
    classes: Sequence[str],
) -> None:
    """Write a labelled cloud.

    Args:
        format: see above.
        out: file to write.
        count: number of points, N.
        predicted: `[N]` of `PREDICTED`, a piece at a time.
        chunks: the points themselves, a piece at a time; only ply reads them.
        classes: class names.

    Raises:
        UserError: the points are not N any more; with scannet, classes that are not ScanNet's.
    """
    if format == "ply":
        comments = [f"label {number} {name}" for number, name in enumerate(classes)]
        write_ply(out, count, _labelled(chunks, predicted, palette(len(classes))), comments)
    elif format == "npy":
        _write_npy(*written(format, out), count, predicted)
    else:
        ids = nyu40_ids(classes)
        with atomic_path(out) as temporary, temporary.open("w") as file:
            for piece in predicted:
                file.writelines(f"{number}\n" for number in ids[piece["label"]].tolist())


def nyu40_ids(classes: Sequence[str]) -> np.ndarray:
    """The NYU40 id of each class. UserError: a class that ScanNet's benchmark does not have."""
    for name in classes:
        if name not in NYU40:
            raise UserError(f"format scannet: the model knows the class {name!r}, expected only {', '.join(NYU40)}")
    return np.array([NYU40[name] for name in classes])


def _labelled(
    chunks: Iterable[np.ndarray], predicted: Iterable[np.ndarray], colours: np.ndarray
) -> Iterator[np.ndarray]:
    """Points with their labels. The pieces of both need not be of the same length."""
    predicted, waiting = iter(predicted), np.empty(0, PREDICTED)
    for chunk in chunks:
        while len(waiting) < len(chunk) and (piece := next(predicted, None)) is not None:
            waiting = np.concatenate([waiting, piece])
        found, waiting = waiting[: len(chunk)], waiting[len(chunk) :]
        chunk = chunk[: len(found)]  # a file that has grown since: `write_ply` counts
        kept = [name for name in chunk.dtype.names if name not in (*COLOURS, *PREDICTED.names)]
        fields = [*((name, chunk.dtype[name]) for name in kept), *((name, "u1") for name in COLOURS), *PREDICTED.descr]
        labelled = np.empty(len(chunk), fields)
        for name in kept:
            labelled[name] = chunk[name]
        for column, name in enumerate(COLOURS):
            labelled[name] = colours[found["label"], column]
        for name in PREDICTED.names:
            labelled[name] = found[name]
        yield labelled


def _write_npy(confidences: Path, labels: Path, count: int, predicted: Iterable[np.ndarray]) -> None:
    # What is entered first is renamed last.
    with (
        atomic_path(labels) as first,
        atomic_path(confidences) as second,
        first.open("wb") as a,
        second.open("wb") as b,
    ):
        files = {"label": a, "confidence": b}
        for name, file in files.items():
            header = {"descr": PREDICTED[name].str, "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)
        for piece in predicted:
            for name, file in files.items():
                np.ascontiguousarray(piece[name]).tofile(file)
