"""ScanNet: `scans/<scene>/<scene>_vh_clean_2.ply` with its labels beside it, splits in `scannetv2_<split>.txt`."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from .dataset import Dataset, RawCloud, RawScene, existing_folder, relabel
from .readers import cloud_of, columns_of, read_chunks
from .readers.text import is_count
from .s3dis import COLOURS

# The 20 classes of the benchmark and their NYU40 ids.
NYU40 = {
    "wall": 1,
    "floor": 2,
    "cabinet": 3,
    "bed": 4,
    "chair": 5,
    "sofa": 6,
    "table": 7,
    "door": 8,
    "window": 9,
    "bookshelf": 10,
    "picture": 11,
    "counter": 12,
    "desk": 14,
    "curtain": 16,
    "refrigerator": 24,
    "shower curtain": 28,
    "toilet": 33,
    "sink": 34,
    "bathtub": 36,
    "other furniture": 39,
}
CLASSES = list(NYU40)
CLASS_OF = {nyu40: label for label, nyu40 in enumerate(NYU40.values())}
SPLITS = ("train", "val", "test")
# Raw categories, the words of the annotators, with their NYU40 ids.
CATEGORIES = "scannetv2-labels.combined.tsv"
LABELS = "_vh_clean_2.labels.ply"
GROUPS = ".aggregation.json"
SEGMENTS = "_vh_clean_2.0.010000.segs.json"


def scenes(root: str | Path) -> Dataset:
    """The scenes that the split files name; the groups are the splits.

    A scene lies in `scans/`, one of the test split in `scans_test/` or `scans/`. Its labels come from
    `<scene>_vh_clean_2.labels.ply`, else from `<scene>.aggregation.json` and `<scene>_vh_clean_2.0.010000.segs.json`
    with the NYU40 ids of `scannetv2-labels.combined.tsv`. Scenes of the test split may have none.

    Raises:
        UserError: no such folder, no split file, or a scene without its folder.
    """
    root = existing_folder(root, "the folder of ScanNet that holds scans/ and scannetv2_train.txt")
    splits = {split: file for split in SPLITS if (file := root / f"scannetv2_{split}.txt").is_file()}
    if not splits:
        raise UserError(f"{root}: no split file, expected scannetv2_train.txt, scannetv2_val.txt or scannetv2_test.txt")
    found = []
    for split, file in splits.items():
        for name in file.read_text().split():
            folder = root / "scans_test" / name
            if split != "test" or not folder.is_dir():
                folder = existing_folder(root / "scans" / name, f"the scene that {file.name} names")
            found.append(RawScene(name, split, folder, partial(load, folder, root / CATEGORIES, split != "test")))
    return Dataset("scannet", root, CLASSES, COLOURS, found)


def load(folder: Path, categories: Path, labelled: bool) -> Iterator[RawCloud]:
    """Read one scene; ids outside the 20 classes become -1.

    Args:
        folder: of the scene.
        categories: the table of raw categories.
        labelled: whether a scene without labels is an error.

    Raises:
        UserError: a missing or broken file, or another number of labels than of points.
    """
    path = folder / f"{folder.name}_vh_clean_2.ply"
    source, ids = _ids(folder, categories)
    if ids is None and labelled:
        raise UserError(f"{folder}: no labels, expected {source.name} or {folder.name}{GROUPS}")
    total = 0
    for chunk in read_chunks(path):
        cloud = cloud_of(chunk, path, COLOURS)
        if ids is None:
            yield cloud
            continue
        part = ids[total : total + len(chunk)]
        total += len(chunk)
        if len(part) == len(chunk):
            yield replace(cloud, labels=relabel(part, CLASS_OF)[0])
    if ids is not None and len(ids) != total:
        raise UserError(f"{source}: {len(ids)} labels, expected {total}, one a point of {path.name}")


def _ids(folder: Path, categories: Path) -> tuple[Path, np.ndarray | None]:
    """The file of the labels, and the NYU40 id of every vertex; None if there are no labels."""
    labels, groups, segments = (folder / f"{folder.name}{suffix}" for suffix in (LABELS, GROUPS, SEGMENTS))
    if labels.is_file():
        parts = [columns_of(chunk, labels, ["label"])[:, 0] for chunk in read_chunks(labels)]
        return labels, np.concatenate([np.empty(0), *parts])
    if not groups.is_file():
        return labels, None
    nyu40 = _nyu40(categories)
    segment = _whole_numbers(_list(segments, "segIndices"), segments)
    id_of_segment = np.zeros(segment.max(initial=0) + 1, np.int64)
    for group in _list(groups, "segGroups"):
        if not isinstance(group, dict) or not {"label", "segments"} <= group.keys():
            raise UserError(f"{groups}: a group {str(group)[:60]}, expected one with label and segments")
        if group["label"] not in nyu40:
            raise UserError(f"{groups}: label {group['label']!r}, expected a raw_category of {categories}")
        members = _whole_numbers(group["segments"], groups)
        id_of_segment[members[members < len(id_of_segment)]] = nyu40[group["label"]]
    return segments, id_of_segment[segment]


def _nyu40(path: Path) -> dict[str, int]:
    """The NYU40 id of every raw category."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the table of raw categories and their NYU40 ids")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = {"raw_category", "nyu40id"} - set(table.fieldnames or ())
        if missing:
            raise UserError(f"{path}:1: no column {', '.join(sorted(missing))}, expected raw_category and nyu40id")
        ids = {}
        for row in table:
            if not is_count(row["nyu40id"] or ""):
                raise UserError(f"{path}:{table.line_num}: nyu40id {row['nyu40id']!r}, expected a whole number")
            ids[row["raw_category"]] = int(row["nyu40id"])
    return ids


def _list(path: Path, key: str) -> list:
    """The list that a JSON file holds under a key."""
    try:
        return list(json.loads(path.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a JSON file with a list {key!r} ({error})") from error


def _whole_numbers(values: list, path: Path) -> np.ndarray:
    """A list of a JSON file as `[n]` int64, none of them negative."""
    try:
        array = np.array(values, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        array = np.array([-1])
    if array.ndim != 1 or array.min(initial=0) < 0:
        raise UserError(f"{path}: segments {str(values)[:60]}, expected a list of whole numbers, none negative")
    return array
