"""Turning a data set into a store: cloud by cloud, in bounded memory, by several processes, interruptible anywhere."""

import glob
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..errors import UserError
from ..files import atomic_folder, locked, write_json
from .dataset import Dataset, RawCloud, RawScene
from .store import FORMAT, MANIFEST, SceneStore, read_manifest
from .tiles import TILE_POINTS, GridCloud, Tile, TooWideError, grid_cloud, tiles


def prepare(
    dataset: Dataset,
    out: str | Path,
    grid: float,
    workers: int = 1,
    tile_points: int = TILE_POINTS,
    overlap: float | None = None,
    progress: bool = True,
) -> SceneStore:
    """Turn a data set into a store.

    Every cloud is written whole or not at all, and finished clouds are skipped, so a run that was interrupted, killed
    or failed goes on where it stopped, to the same store.

    Args:
        dataset: what a loader returned.
        out: folder of the store; a new one, or one that the same data set was being prepared in.
        grid: cell size in metres, positive.
        workers: processes that prepare clouds.
        tile_points: most points of a scene; larger clouds are cut into tiles. It bounds the memory of each process.
        overlap: margin of the tiles in metres; None: 50 cells.
        progress: show a progress bar and a line with the result.

    Returns:
        The store, opened.

    Raises:
        UserError: bad input data (see the loaders), an argument out of its range, a folder that another process is
            preparing, or one that holds a store of another data set, grid, tiling or format version.
    """
    out, begin = Path(out), time.perf_counter()
    if not (np.isfinite(grid) and grid > 0):
        raise UserError(f"grid must be a positive number of metres, got {grid}")
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    header = {
        "format": FORMAT,
        "dataset": dataset.name,
        "source": str(dataset.root.resolve()),
        "grid": grid,
        "tile_points": tile_points,
        "overlap": overlap,
        "classes": dataset.classes,
        "features": dataset.features,
        "coordinates": dataset.coordinates,
    }
    folders = {scene.name: out / "scenes" / scene.name for scene in dataset.scenes}
    if len(folders) < len(dataset.scenes):
        raise UserError(f"{dataset.root}: two clouds have the same name")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        found = read_manifest(out)
        if found is None and any(out.iterdir()):
            raise UserError(f"{out}: the folder is not empty and holds no scene store; expected a new folder")
        for key, value in header.items():
            if found is not None and found.get(key) != value:
                raise UserError(
                    f"{out}: the store there has {key} {found.get(key)!r}, not {value!r}; choose another folder"
                )
        for leftover in [*out.glob(f".{MANIFEST}.*"), *out.glob("scenes/.*")]:  # of a run that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        missing = [scene for scene in dataset.scenes if not (folders[scene.name] / "scene.json").is_file()]
        header["package_version"] = __version__
        if found is None or missing:
            write_json(out / MANIFEST, {**header, "scenes": None})
        for scene in missing:
            _remove_weak_labels(out, scene.name)
        try:
            with Progress(dataset.name, len(missing), show=progress) as bar:
                job = Job(grid, tile_points, overlap, len(dataset.classes), bar.done, bar.stop)
                _write_clouds(job, missing, [folders[s.name] for s in missing], workers, bar)
        except BaseException:
            # Without a finished cloud there is nothing to go on from, so nothing is left behind.
            if found is None and not any(out.glob("scenes/*/scene.json")):
                shutil.rmtree(out)
            raise
        entries = [entry for folder in folders.values() for entry in json.loads((folder / "scene.json").read_text())]
        if len({entry["name"] for entry in entries}) < len(entries):
            raise UserError(f"{dataset.root}: a cloud has the name of a tile of another; rename it")
        if found is None or found["scenes"] != entries:
            write_json(out / MANIFEST, {**header, "scenes": entries})
    if progress:
        seconds = time.perf_counter() - begin
        written = [e for e in entries if e["cloud"] in {scene.name for scene in missing}]
        points, kept = (sum(e[key] for e in written) for key in ("original_points", "points"))
        print(
            f"{len(missing)} of {len(folders)} clouds prepared: {points:,} points -> {kept:,} grid points "
            f"in {seconds:.1f} s, {points / seconds:,.0f} points/s"
        )
    return SceneStore.open(out)


class Progress:
    """A bar of points that processes share. A point counts half when it was read, and half when it was written.

    Attributes:
        done: shared counter: points read + points written.
        stop: shared event: ends the work at the next piece.
        clouds: clouds finished so far.
    """

    def __init__(self, name: str, total: int, show: bool):
        context = multiprocessing.get_context("spawn")
        self.done, self.stop, self.clouds = context.Value("q", 0), context.Event(), 0
        self.total = total
        self.bar = tqdm(desc=f"prepare {name}", unit="point", unit_scale=True, disable=not show)
        self.closed = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self.ticker.start()
        return self

    def __exit__(self, *_) -> None:
        self.closed.set()
        self.ticker.join()
        self.bar.close()

    def _tick(self) -> None:
        last = False
        while not last:
            last = self.closed.wait(0.2)
            self.bar.set_postfix_str(f"{self.clouds}/{self.total} clouds", refresh=False)
            self.bar.update(self.done.value // 2 - self.bar.n)


@dataclass(frozen=True)
class Job:
    """What all clouds are prepared with.

    Args:
        grid, tile_points, overlap: see `prepare`.
        num_classes: number of classes.
        done, stop: see `Progress`.
    """

    grid: float
    tile_points: int
    overlap: float | None
    num_classes: int
    done: object
    stop: object

    def __call__(self, scene: RawScene, folder: Path) -> None:
        """Prepare one cloud, into a folder that appears when it is complete."""
        with atomic_folder(folder) as temporary:
            cut = tiles(
                self.counted(scene.read()),
                grid=self.grid,
                tile_points=self.tile_points,
                overlap=self.overlap,
                scratch=temporary,
            )
            entries = []
            try:
                for tile in cut:
                    entries.append(self.write(tile, scene, temporary))
                    self.count(tile.num_core)
                    del tile  # before the next one is read
            except TooWideError as error:
                raise UserError(f"{scene.source}: {error}") from None
            write_json(temporary / "scene.json", entries)

    def counted(self, pieces: Iterator[RawCloud]) -> Iterator[RawCloud]:
        for piece in pieces:
            self.count(len(piece.points))
            yield piece

    def count(self, points: int) -> None:
        if self.stop.is_set():
            raise InterruptedError("another process ended the work")
        with self.done.get_lock():
            self.done.value += points

    def write(self, tile: Tile, scene: RawScene, folder: Path) -> dict:
        """Write the arrays of a tile; returns the scene's entry in the manifest."""
        cloud = grid_cloud(tile, self.grid)
        tiled = tile.total > 1
        arrays = {f.name: getattr(cloud, f.name) for f in fields(GridCloud) if f.name not in ("origin", "index")}
        arrays |= {"block_keys": cloud.index.keys, "block_starts": cloud.index.starts}
        if tiled:
            arrays["rows"] = tile.rows
            folder = folder / f"tile_{tile.number}"
            folder.mkdir()
        labelled = cloud.original_labels[cloud.original_labels >= 0]
        return {
            "name": f"{scene.name}_tile_{tile.number}" if tiled else scene.name,
            "cloud": scene.name,
            "tile": tile.number if tiled else None,
            "group": scene.group,
            "points": len(cloud.points),
            "original_points": len(cloud.inverse),
            "origin": cloud.origin.tolist(),
            "blocks": {
                "count": len(cloud.index.keys),
                "low": cloud.index.low.tolist(),
                "shape": list(cloud.index.shape),
            },
            "class_counts": np.bincount(labelled, minlength=self.num_classes).tolist(),
            "sha256": {name: write_array(folder / f"{name}.npy", array) for name, array in arrays.items()},
        }


def write_array(path: Path, array: np.ndarray) -> str:
    """Write a `.npy` file; returns the SHA-256 of its bytes."""
    array, header = np.ascontiguousarray(array), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    checksum = hashlib.sha256()
    with path.open("wb") as file:
        for part in (header.getvalue(), array.reshape(-1).view(np.uint8)):
            file.write(part)
            checksum.update(part)
    return checksum.hexdigest()


def _remove_weak_labels(store: Path, cloud: str) -> None:
    """Weak labels belong to the cloud that they were drawn from, not to the one that takes its place."""
    name = glob.escape(cloud)
    for pattern in (f"weak/*/{name}.npy", f"weak/*/{name}_tile_*.npy"):
        for path in store.glob(pattern):
            path.unlink()


def _write_clouds(job: Job, scenes: Sequence[RawScene], folders: Sequence[Path], workers: int, bar: Progress) -> None:
    if workers == 1:
        for scene, folder in zip(scenes, folders, strict=True):
            job(scene, folder)
            bar.clouds += 1
        return
    # Fresh processes: forked ones would inherit the locks of torch's threads.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, fresh, _begin_worker, (job,)) as pool:
        try:
            for finished in as_completed([pool.submit(_work, *pair) for pair in zip(scenes, folders, strict=True)]):
                finished.result()
                bar.clouds += 1
        except BaseException:
            job.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker(job: Job) -> None:
    """Set up a worker process: one thread, and it ends with its parent, however that ends."""
    global _job
    _job = job  # its counter can only be handed to a process as it starts
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and tells its workers

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(scene: RawScene, folder: Path) -> None:
    _job(scene, folder)
