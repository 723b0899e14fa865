"""The scene store: every data set, subsampled on a grid, in memory-mapped arrays.

store/manifest.json                 format, data set, grid, tiles, classes, features and the list of scenes
store/scenes/<cloud>/*.npy          arrays of the cloud's one scene, see `Scene`
store/scenes/<cloud>/tile_<k>/*.npy arrays of each of its scenes, of a cloud that was cut into tiles
store/scenes/<cloud>/scene.json     the entries of its scenes in the manifest
store/weak/                         weak labels, see `weak_labels`
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .index import CELLS, BlockIndex

FORMAT = 2
MANIFEST = "manifest.json"


def map_array(path: Path) -> np.ndarray:
    """An array of a `.npy` file, mapped read-only.

    Unlike `np.memmap` it holds no file open: a store has more arrays than a process may open files. Processes share
    the pages.

    Raises:
        OSError, ValueError: no such file, or one that is not whole.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](file)
        begin, size = file.tell(), file.seek(0, 2)
    expected = begin + int(np.prod(shape)) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{size} bytes, expected {expected}")
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    array = mapped[begin:].view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene of a store: a cloud or a tile of one. Its arrays are those of `GridCloud`, mapped at first use.

    Args:
        folder: where its arrays lie.
        number: its position in the store.
        name: unique in the store.
        cloud: name of its cloud in the data set; tiles of one cloud share it.
        group: what splits are made of.
        grid: cell size, metres.
        num_points: grid points, n.
        num_original: original points, N.
        origin: `[3]` float64, add it to `points` to get the original coordinates.
        tiled: whether it is one of several tiles.
        class_counts: how many original points each class has.
        blocks: number, lowest corner and shape of the blocks of its `index`.
    """

    folder: Path
    number: int
    name: str
    cloud: str
    group: str
    grid: float
    num_points: int
    num_original: int
    origin: np.ndarray
    tiled: bool
    class_counts: list[int]
    blocks: dict

    @cached_property
    def points(self) -> np.ndarray:
        return self._array("points", self.num_points)

    @cached_property
    def features(self) -> np.ndarray:
        return self._array("features", self.num_points)

    @cached_property
    def labels(self) -> np.ndarray:
        return self._array("labels", self.num_points)

    @cached_property
    def inverse(self) -> np.ndarray:
        return self._array("inverse", self.num_original)

    @cached_property
    def original_labels(self) -> np.ndarray:
        return self._array("original_labels", self.num_original)

    @cached_property
    def rows(self) -> np.ndarray | None:
        """`[N]` int64, the row of every original point in its cloud; None where the scene is a whole cloud."""
        return self._array("rows", self.num_original) if self.tiled else None

    @cached_property
    def index(self) -> BlockIndex:
        """What balls are cut out of `points` with."""
        return BlockIndex(
            low=np.array(self.blocks["low"]),
            edge=CELLS * self.grid,
            shape=tuple(self.blocks["shape"]),
            keys=self._array("block_keys", self.blocks["count"]),
            starts=self._array("block_starts", self.blocks["count"] + 1),
        )

    def __getstate__(self) -> dict:
        # Another process maps the files itself: a pickled array would be a copy of the data.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _array(self, name: str, rows: int) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = map_array(path)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete the cloud's folder and prepare again") from error
        if len(array) != rows:
            raise UserError(f"{path}: {len(array)} rows, expected {rows}; delete the cloud's folder and prepare again")
        return array


class SceneStore:
    """A finished store, opened for reading.

    Attributes:
        path: its folder.
        manifest: the manifest as written.
        grid: cell size in metres.
        classes: class names.
        features: names of the measured features and the raw value that stands for 1.
        coordinates: names of the fields that coordinates were read from.
        scenes: all scenes, in the order of the data set.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        if self.manifest is None:
            raise UserError(
                f"{path}: not a scene store (no {MANIFEST}); `dsp-sparse prepare` makes one, of procedural rooms for "
                f"example: `dsp-sparse rooms RAW`, then `dsp-sparse prepare s3dis RAW {path}`"
            )
        if self.manifest["scenes"] is None:
            raise UserError(f"{path}: the store is unfinished; run the same `dsp-sparse prepare` again to finish it")
        self.grid: float = self.manifest["grid"]
        self.classes: list[str] = self.manifest["classes"]
        self.features: dict[str, float] = self.manifest["features"]
        self.coordinates: list[str] = self.manifest["coordinates"]
        self.scenes = [
            Scene(
                folder=scene_folder(self.path, entry),
                number=number,
                name=entry["name"],
                cloud=entry["cloud"],
                group=entry["group"],
                grid=self.grid,
                num_points=entry["points"],
                num_original=entry["original_points"],
                origin=np.array(entry["origin"]),
                tiled=entry["tile"] is not None,
                class_counts=entry["class_counts"],
                blocks=entry["blocks"],
            )
            for number, entry in enumerate(self.manifest["scenes"])
        ]

    @classmethod
    def open(cls, path: str | Path) -> "SceneStore":
        """Open the store at `path`.

        Raises:
            UserError: no store there, an unfinished one, or one of another format version.
        """
        return cls(path)

    @property
    def in_channels(self) -> int:
        """Input channels of a network trained on this store, see `network_features`."""
        return 2 + len(self.features)

    def group(self, names: Iterable[str]) -> list[Scene]:
        """The scenes of the named groups, in store order; a UserError for a group the store does not have."""
        known = sorted({scene.group for scene in self.scenes})
        names = list(names)
        for name in names:
            if name not in known:
                raise UserError(f"{self.path}: no group {name!r}, expected one of {', '.join(known)}")
        return [scene for scene in self.scenes if scene.group in names]

    def require_grid(self, grid: float) -> None:
        """Raise a UserError unless the store was made with cells of `grid` metres."""
        if not np.isclose(self.grid, grid):
            raise UserError(f"{self.path}: the store's grid is {self.grid} m, expected {grid} m")


def require_labels(scenes: Iterable[Scene], what: str) -> None:
    """Raise a UserError that begins with `what` unless an original point of the scenes is labelled."""
    if not any(any(scene.class_counts) for scene in scenes):
        raise UserError(f"{what}: no scene there has a labelled point")


def scene_folder(store: Path, entry: dict) -> Path:
    """Where the arrays of a scene lie, by its entry in the manifest."""
    cloud = store / "scenes" / entry["cloud"]
    return cloud if entry["tile"] is None else cloud / f"tile_{entry['tile']}"


def read_manifest(path: Path) -> dict | None:
    """The manifest of a store in this version's format; None if there is none."""
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the manifest of a scene store") from error
    if found != FORMAT:
        raise UserError(f"{file}: store format {found}, this version reads format {FORMAT}; prepare the store again")
    return manifest
