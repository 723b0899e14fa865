"""Turning a data set into a store: cloud by cloud, in bounded memory, by several processes, interruptible anywhere."""

import glob
import hashlib
import io
import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..errors import UserError
from ..files import atomic_folder, locked, remove_leftovers, write_json
from ..workers import go_on, run_all
from .dataset import Dataset, RawCloud, RawScene
from .store import FORMAT, MANIFEST, SceneStore, read_manifest
from .tiles import TILE_POINTS, GridCloud, Tile, TooWideError, grid_cloud, require_tiling, tiles


class BrokenCloudsError(UserError):
    """Clouds of a data set that cannot be prepared; the others are, so that only these are left to mend.

    Args:
        problems: what is wrong, one message a cloud.
        total: how many clouds were to be prepared.
    """

    def __init__(self, problems: list[str], total: int):
        more = f" (the first of {len(problems)} such clouds of {total})" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems, self.total = problems, total


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
    or failed goes on where it stopped, to the same store. Whether the source of a finished cloud has changed is not
    looked at: delete the cloud's folder to have it prepared again. A cloud that is broken leaves the others alone: all
    of them are named in the end.

    Args:
        dataset: what a loader returned.
        out: folder of the store; a new one, or one that the same data set was being prepared in.
        grid: cell size in metres, positive.
        workers: processes that prepare clouds.
        tile_points: most points of a scene; larger clouds are cut into tiles. Each process holds a tile and its margin.
        overlap: margin of the tiles in metres; None: 50 cells.
        progress: show a progress bar and a line with the result.

    Returns:
        The store, opened.

    Raises:
        BrokenCloudsError: bad input data (see the loaders).
        UserError: an argument out of its range, a folder that another process is preparing, or one that holds a store
            of another data set, read or tiled in another way, of another grid or format version.
    """
    out, begin = Path(out), time.perf_counter()
    if not (np.isfinite(grid) and grid > 0):
        raise UserError(f"grid must be a positive number of metres, got {grid}")
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    require_tiling(tile_points, overlap)
    header = {
        "format": FORMAT,
        "dataset": dataset.name,
        "source": str(dataset.root.resolve()),
        "grid": float(grid),
        "tile_points": tile_points,
        "overlap": None if overlap is None else float(overlap),
        "classes": dataset.classes,
        "features": dataset.features,
        "coordinates": dataset.coordinates,
        "reading": dataset.reading,
    }
    named: dict[str, RawScene] = {}
    for scene in dataset.scenes:
        if scene.name in named:
            both = " and ".join(f"{each.source} (group {each.group})" for each in (named[scene.name], scene))
            raise UserError(f"{both} have the same name {scene.name!r}; every cloud needs its own")
        named[scene.name] = scene
    folders = {name: out / "scenes" / name for name in named}
    created = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        remove_leftovers(out, MANIFEST)
        found = read_manifest(out)
        if found is None and any(out.iterdir()):
            raise UserError(f"{out}: the folder is not empty and holds no scene store; expected a new folder")
        for key, value in header.items():
            if found is not None and json.dumps(found.get(key)) != json.dumps(value):  # the order of features matters
                raise UserError(
                    f"{out}: the store there has {key} {found.get(key)!r}, not {value!r}; choose another folder"
                )
        remove_leftovers(out / "scenes")
        missing = [scene for scene in dataset.scenes if not (folders[scene.name] / "scene.json").is_file()]
        header["package_version"] = __version__
        if found is None or missing:
            write_json(out / MANIFEST, {**header, "scenes": None})
        for scene in missing:
            _remove_weak_labels(out, scene.name)
        try:
            with Progress(dataset.name, len(missing), show=progress) as bar:
                job = Job(grid, tile_points, overlap, len(dataset.classes), bar.points)
                jobs = [(number, scene, folders[scene.name]) for number, scene in enumerate(missing)]
                run_all(job, jobs, workers, bar.next_cloud, "fewer workers or a smaller tile_points")
            if bar.problems:
                raise BrokenCloudsError(sorted(bar.problems), len(missing))
        except BaseException:
            # Without a finished cloud there is nothing to go on from, so nothing is left behind.
            if found is None and not any(out.glob("scenes/*/scene.json")):
                shutil.rmtree(out / "scenes", ignore_errors=True)
                (out / MANIFEST).unlink(missing_ok=True)
                if created:
                    with suppress(OSError):  # the error above says more
                        out.rmdir()
            raise
        entries = [
            {**entry, "group": scene.group}
            for scene in dataset.scenes
            for entry in json.loads((folders[scene.name] / "scene.json").read_text())
        ]
        if len({entry["name"] for entry in entries}) < len(entries):
            raise UserError(f"{dataset.root}: a cloud has the name of a tile of another; rename it")
        if missing or found is None or found["scenes"] != entries:
            write_json(out / MANIFEST, {**header, "scenes": entries})
    if progress and not missing:
        print(f"all {len(folders)} clouds were there already")
    elif progress:
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
        points: shared memory: points read + points written of each cloud. One process writes each, so it has no lock,
            which a process that is killed would not give back.
        clouds: clouds finished so far.
        problems: what is wrong with the others, one message a cloud.
    """

    def __init__(self, name: str, total: int, show: bool):
        self.points = multiprocessing.get_context("spawn").RawArray("q", total)
        self.clouds, self.total, self.problems = 0, total, []
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

    def next_cloud(self, problem: str | None) -> None:
        if problem is None:
            self.clouds += 1
        else:
            self.problems.append(problem)

    def _tick(self) -> None:
        last = False
        while not last:
            last = self.closed.wait(0.2)
            broken = f", {len(self.problems)} broken" if self.problems else ""
            self.bar.set_postfix_str(f"{self.clouds}/{self.total} clouds{broken}", refresh=False)
            self.bar.update(sum(self.points) // 2 - self.bar.n)


@dataclass(frozen=True)
class Job:
    """What all clouds are prepared with.

    Args:
        grid, tile_points, overlap: see `prepare`.
        num_classes: number of classes.
        points: see `Progress`.
    """

    grid: float
    tile_points: int
    overlap: float | None
    num_classes: int
    points: object

    def __call__(self, number: int, scene: RawScene, folder: Path) -> str | None:
        """Prepare one cloud, into a folder that appears when it is complete; returns what is wrong with it, if so."""
        try:
            with atomic_folder(folder) as temporary:
                cut = tiles(
                    self.counted(scene.read(), number),
                    grid=self.grid,
                    tile_points=self.tile_points,
                    overlap=self.overlap,
                    scratch=temporary,
                )
                entries = []
                for tile in cut:
                    entries.append(self.write(tile, scene, temporary))
                    self.count(tile.num_core, number)
                    del tile  # before the next one is read
                write_json(temporary / "scene.json", entries)
        except TooWideError as error:
            return f"{scene.source}: {error}"
        except UserError as error:
            return str(error)
        except OSError as error:
            if error.filename is not None:
                raise
            raise UserError(f"{scene.source} cannot be prepared in {folder.parent}: {error.strerror}") from error

    def counted(self, pieces: Iterator[RawCloud], number: int) -> Iterator[RawCloud]:
        for piece in pieces:
            self.count(len(piece.points), number)
            yield piece

    def count(self, points: int, number: int) -> None:
        go_on()
        self.points[number] += points

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
