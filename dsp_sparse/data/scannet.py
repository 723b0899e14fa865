"""ScanNet: `scans/<scene>/<scene>_vh_clean_2.ply` with `….labels.ply` beside it, splits in `scannetv2_<split>.txt`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from .dataset import Dataset, RawCloud, RawScene, existing_folder
from .ply import columns, read_cloud, read_vertices
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
SPLITS = ("train", "val")


def scenes(root: str | Path) -> Dataset:
    """The scenes that the split files name; the groups are the splits.

    Raises:
        UserError: no such folder, no split file, or a scene without its folder.
    """
    root = existing_folder(root, "the folder of ScanNet that holds scans/ and scannetv2_train.txt")
    splits = {split: file for split in SPLITS if (file := root / f"scannetv2_{split}.txt").is_file()}
    if not splits:
        raise UserError(f"{root}: no split file, expected scannetv2_train.txt or scannetv2_val.txt")
    found = []
    for split, file in splits.items():
        for name in file.read_text().split():
            folder = existing_folder(root / "scans" / name, f"the scene that {file.name} names")
            found.append(RawScene(name, split, folder, partial(load, folder)))
    return Dataset("scannet", root, CLASSES, COLOURS, found)


def load(folder: Path) -> Iterator[RawCloud]:
    """Read one scene; ids outside the 20 classes become -1.

    Raises:
        UserError: a missing or broken file, or another number of labels than of points.
    """
    path = folder / f"{folder.name}_vh_clean_2.ply"
    labels_path = folder / f"{folder.name}_vh_clean_2.labels.ply"
    cloud = read_cloud(path, COLOURS)
    ids = columns(read_vertices(labels_path, triangles=True), labels_path, ["label"])[:, 0].astype(np.int64)
    if len(ids) != len(cloud.points):
        raise UserError(f"{labels_path}: {len(ids)} labels, expected {len(cloud.points)}, one a point of {path.name}")
    table = {nyu: label for label, nyu in enumerate(NYU40.values())}
    distinct, inverse = np.unique(ids, return_inverse=True)
    yield RawCloud(cloud.points, cloud.features, np.array([table.get(i, -1) for i in distinct.tolist()])[inverse])
