"""The scene store: every data set, subsampled on a grid, in memory-mapped arrays.

store/manifest.json            format, data set, grid, classes, features and the list of scenes
store/scenes/<scene>/*.npy     arrays of one scene, see `Scene`
store/scenes/<scene>/scene.json
store/weak/                    weak labels, see `weak_labels`
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from tqdm import tqdm

from kpconv_ops import grid_subsample

from .. import __version__
from ..errors import UserError
from ..files import atomic_folder, write_json
from .dataset import Dataset, RawCloud, RawScene, concatenate
from .index import CELLS, BlockIndex

FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class GridCloud:
    """A cloud subsampled on a grid, n of N points kept.

    Args:
        origin: `[3]` float64, the minimum of the original points; everything else is relative to it, so that
            float32 is exact enough for clouds in projected coordinates. z is the height above the lowest point.
        points: `[n, 3]` float32, barycentres of the occupied cells, in the order of the blocks.
        features: `[n, F]` float32, means over the cells, in [0, 1].
        labels: `[n]` int16, the most frequent label of the cell, -1 for none.
        inverse: `[N]` int32, the grid point of every original point.
        original_labels: `[N]` int16.
        index: the blocks of `points`, 5 x 5 x 5 cells each.
    """

    origin: np.ndarray
    points: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    inverse: np.ndarray
    original_labels: np.ndarray
    index: BlockIndex


def grid_cloud(cloud: RawCloud, grid: float) -> GridCloud:
    """Subsample a cloud with cells of `grid` metres."""
    origin = cloud.points.min(0)
    try:
        sub = grid_subsample(
            torch.from_numpy(cloud.points - origin),
            torch.tensor([0, len(cloud.points)]),
            grid,
            features=torch.from_numpy(cloud.features),
            labels=torch.from_numpy(cloud.labels),
        )
    except ValueError as error:  # more cells than 64-bit keys can number
        extent = np.ptp(cloud.points, axis=0).tolist()
        raise UserError(
            f"the cloud is {extent} m wide, too wide for a grid of {grid} m; are the units metres?"
        ) from error
    points = sub.points.float().numpy()
    order, index = BlockIndex.build(points, CELLS * grid)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return GridCloud(
        origin=origin,
        points=points[order],
        features=sub.features.numpy()[order],
        labels=sub.labels.numpy()[order].astype(np.int16),
        inverse=rank[sub.inverse.numpy()],
        original_labels=cloud.labels.astype(np.int16),
        index=index,
    )


ARRAYS = [f.name for f in fields(GridCloud) if f.name not in ("origin", "index")]


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene of a store. Its arrays are those of `GridCloud`, memory-mapped at first use.

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
        return None

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

    @cached_property
    def tree(self) -> cKDTree:
        """Search tree over `points`."""
        return cKDTree(self.points)

    @cached_property
    def centres(self) -> cKDTree:
        """Search tree over the points that balls are centred at: one of every block of 5 x 5 x 5 grid cells."""
        blocks = np.floor(self.points / (5 * self.grid)).astype(np.int64)
        return cKDTree(self.points[np.unique(blocks, axis=0, return_index=True)[1]])

    def __getstate__(self) -> dict:
        # Another process maps the files itself: a pickled memory map would be a copy of the data.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _array(self, name: str, rows: int) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete the scene's folder and prepare again") from error
        if len(array) != rows:
            raise UserError(f"{path}: {len(array)} rows, expected {rows}; delete the scene's folder and prepare again")
        return array


class SceneStore:
    """A finished store, opened for reading.

    Attributes:
        path: its folder.
        manifest: the manifest as written.
        grid: cell size in metres.
        classes: class names.
        features: names of the measured features and the raw value that stands for 1.
        scenes: all scenes, in the order of the data set.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
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
        self.scenes = [
            Scene(
                folder=self.path / "scenes" / entry["name"],
                number=number,
                name=entry["name"],
                cloud=entry["name"],
                group=entry["group"],
                grid=self.grid,
                num_points=entry["points"],
                num_original=entry["original_points"],
                origin=np.array(entry["origin"]),
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
    def feature_names(self) -> list[str]:
        """Names of the measured features, in column order."""
        return list(self.features)

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

    def verify(self) -> None:
        """Raise a UserError naming the first array that differs from its checksum."""
        for scene, entry in zip(self.scenes, self.manifest["scenes"], strict=True):
            for name, checksum in entry["sha256"].items():
                path = scene.folder / f"{name}.npy"
                if not path.is_file() or _sha256(path) != checksum:
                    raise UserError(f"{path}: differs from its checksum; delete the scene's folder and prepare again")


def prepare(dataset: Dataset, out: str | Path, grid: float, workers: int = 1, progress: bool = True) -> SceneStore:
    """Turn a data set into a store.

    Every scene is written whole or not at all, and finished scenes are skipped, so a run that was interrupted or
    failed goes on where it stopped.

    Args:
        dataset: what a loader returned.
        out: folder of the store; a new one, or one that the same data set was being prepared in.
        grid: cell size in metres, positive.
        workers: processes that prepare scenes.
        progress: show a progress bar.

    Returns:
        The store, opened.

    Raises:
        UserError: bad input data (see the loaders), a grid that is not positive, or a folder that holds a store of
            another data set, grid or format version.
    """
    out = Path(out)
    if not (np.isfinite(grid) and grid > 0):
        raise UserError(f"grid must be a positive number of metres, got {grid}")
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    header = {
        "format": FORMAT,
        "dataset": dataset.name,
        "source": str(dataset.root.resolve()),
        "grid": grid,
        "classes": dataset.classes,
        "features": dataset.features,
    }
    found = _read_manifest(out)
    if found is None and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty and holds no scene store; expected a new folder")
    for key, value in header.items():
        if found is not None and found.get(key) != value:
            raise UserError(
                f"{out}: the store there has {key} {found.get(key)!r}, not {value!r}; choose another folder"
            )

    folders = {scene.name: out / "scenes" / scene.name for scene in dataset.scenes}
    if len(folders) < len(dataset.scenes):
        raise UserError(f"{dataset.root}: two scenes have the same name")
    header["package_version"] = __version__
    missing = [scene for scene in dataset.scenes if not (folders[scene.name] / "scene.json").is_file()]
    if found is None or missing:
        write_json(out / MANIFEST, {**header, "scenes": None})

    try:
        with tqdm(total=len(missing), desc=f"prepare {dataset.name}", unit="scene", disable=not progress) as bar:
            _write_scenes(missing, [folders[s.name] for s in missing], grid, len(dataset.classes), workers, bar)
    except BaseException:
        # Without a finished scene there is nothing to go on from, so nothing is left behind.
        if found is None and not any((folder / "scene.json").is_file() for folder in folders.values()):
            shutil.rmtree(out)
        raise

    entries = [json.loads((folder / "scene.json").read_text()) for folder in folders.values()]
    write_json(out / MANIFEST, {**header, "scenes": entries})
    return SceneStore.open(out)


def _write_scenes(
    scenes: list[RawScene], folders: list[Path], grid: float, num_classes: int, workers: int, bar: tqdm
) -> None:
    if workers == 1:
        for scene, folder in zip(scenes, folders, strict=True):
            _write_scene(scene, folder, grid, num_classes)
            bar.update()
        return
    # Fresh processes: forked ones would inherit the locks of torch's threads.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, fresh, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = [pool.submit(_write_scene, *job, grid, num_classes) for job in zip(scenes, folders, strict=True)]
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_scene(scene: RawScene, folder: Path, grid: float, num_classes: int) -> None:
    cloud = grid_cloud(concatenate(scene.read()), grid)
    with atomic_folder(folder) as temporary:
        arrays = {name: getattr(cloud, name) for name in ARRAYS}
        arrays |= {"block_keys": cloud.index.keys, "block_starts": cloud.index.starts}
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        entry = {
            "name": scene.name,
            "group": scene.group,
            "points": len(cloud.points),
            "original_points": len(cloud.inverse),
            "origin": cloud.origin.tolist(),
            "blocks": {
                "count": len(cloud.index.keys),
                "low": cloud.index.low.tolist(),
                "shape": cloud.index.shape,
            },
            "class_counts": np.bincount(cloud.labels[cloud.labels >= 0], minlength=num_classes).tolist(),
            "sha256": {name: _sha256(temporary / f"{name}.npy") for name in arrays},
        }
        write_json(temporary / "scene.json", entry)


def _read_manifest(path: Path) -> dict | None:
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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
