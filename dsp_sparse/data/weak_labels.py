"""Weak labels: the few points of a cloud whose label training may see."""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..config import Labelling
from ..errors import UserError
from ..files import atomic_path
from .readers import read_chunks
from .store import Scene, SceneStore, map_array


class WeakLabels(Sequence[np.ndarray]):
    """Per scene `[n]` int16 class ids, -1 on the points that are not labelled; memory-mapped when first asked for.

    Args:
        files: the file of every scene.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __getitem__(self, scene: int) -> np.ndarray:
        return self._arrays[scene]

    def __len__(self) -> int:
        return len(self.files)

    def __getstate__(self) -> dict:
        # Another process maps the files itself, and need not check them again.
        return {"files": self.files}

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        return [_open(map_array, file, "weak labels") for file in self.files]

    @cached_property
    def by_class(self) -> dict[int, dict[int, np.ndarray]]:
        """What `rows_by_class` returns, computed once."""
        return rows_by_class(self)


def rows_by_class(labels: Sequence[np.ndarray]) -> dict[int, dict[int, np.ndarray]]:
    """class -> position of the scene -> the ascending rows (int32) of its points with that label, at least one."""
    found: dict[int, dict[int, np.ndarray]] = {}
    for scene, array in enumerate(labels):
        rows = np.flatnonzero(array >= 0).astype(np.int32)
        known = array[rows]
        rows = rows[np.argsort(known, kind="stable")]
        ends = np.bincount(known).cumsum() if len(known) else []
        for label, part in enumerate(np.split(rows, ends)):
            if len(part):
                found.setdefault(label, {})[scene] = part
    return dict(sorted(found.items()))


def draw(labels: np.ndarray, labelling: Labelling, generator: np.random.Generator) -> np.ndarray:
    """Choose the points of a cloud that keep their label.

    Args:
        labels: `[n]` class ids, negative where there is none.
        labelling: how many to choose; it has no mask.
        generator: source of randomness.

    Returns:
        `[n]` bool, uniformly random points: by class, of every class present `round(rate · its points)`, at least one;
        by cloud, `round(rate · labelled points)`; with `labelling.points`, so many, or all if there are not as many.
    """
    chosen = np.zeros(len(labels), bool)
    known = np.flatnonzero(labels >= 0)
    if labelling.points is not None:
        chosen[generator.choice(known, min(labelling.points, len(known)), replace=False)] = True
    elif labelling.by == "cloud":
        chosen[generator.choice(known, round(labelling.rate * len(known)), replace=False)] = True
    else:
        for label in np.unique(labels[known]):
            rows = np.flatnonzero(labels == label)
            chosen[generator.choice(rows, max(1, round(labelling.rate * len(rows))), replace=False)] = True
    return chosen


def weak_labels(store: SceneStore, labelling: Labelling, scenes: Sequence[Scene] | None = None) -> WeakLabels:
    """The weak labels of scenes.

    They are drawn once and kept in the store as `weak/<labelling>/<scene>.npy`, so that every run with these settings
    trains on the same labels. Tiles of a cloud are drawn together, from a seed that depends on the cloud's name: a
    cloud keeps its labels when the store around it changes. With a mask, a grid point is labelled if one of its
    original points is, with the most frequent label of those (of equally frequent ones the smallest).

    Args:
        store: the store.
        labelling: which points are labelled.
        scenes: scenes of the store; None: all of them.

    Raises:
        UserError: a mask that is missing or does not fit its cloud, or a stored file that cannot be read.
    """
    scenes = store.scenes if scenes is None else scenes
    tiles: dict[str, list[Scene]] = {}
    for scene in store.scenes:
        tiles.setdefault(scene.cloud, []).append(scene)
    folder = store.path / "weak" / _name(labelling, tiles)
    for cloud in dict.fromkeys(scene.cloud for scene in scenes):
        _label(tiles[cloud], labelling, folder)
    labels = WeakLabels([folder / f"{scene.name}.npy" for scene in scenes])
    for path, array, scene in zip(labels.files, labels, scenes, strict=True):
        require_labels_of(scene, path, array)
    return labels


def label_table(classes: Sequence[str], scenes: Sequence[Scene], labels: Sequence[np.ndarray]) -> str:
    """Lines of a table for people: what `labels`, one array a scene, say of each class.

    Per class its grid points, how many of them are labelled, the clouds that it occurs in, and those of them where none
    of its points is labelled; below, the sums and the classes without any labelled point.
    """
    clouds = {name: number for number, name in enumerate(dict.fromkeys(scene.cloud for scene in scenes))}
    points, labelled = np.zeros((2, len(clouds), len(classes)), np.int64)
    for scene, array in zip(scenes, labels, strict=True):
        for counts, values in ((points, scene.labels), (labelled, array)):
            counts[clouds[scene.cloud]] += np.bincount(values[values >= 0], minlength=len(classes))
    width = max(map(len, [*classes, "class"]))
    lines = [f"{'class':{width}}  {'points':>12}  {'labelled':>10}  {'share':>8}  {'clouds':>6}  {'without label':>13}"]
    for name, count, known in zip(classes, points.T, labelled.T, strict=True):
        share = known.sum() / max(count.sum(), 1)
        where = f"{(count > 0).sum():6d}  {((count > 0) & (known == 0)).sum():13d}"
        lines.append(f"{name:{width}}  {count.sum():12,d}  {known.sum():10,d}  {share:8.3%}  {where}")
    lines.append(f"{labelled.sum():,} of {points.sum():,} grid points of {len(clouds)} clouds are labelled")
    if missing := [name for name, known in zip(classes, labelled.sum(0), strict=True) if not known]:
        lines.append(f"no labelled point: {', '.join(missing)}")
    return "\n".join(lines)


def _name(labelling: Labelling, clouds: Sequence[str]) -> str:
    """The folder of a labelling. That of a mask is another one when a file of the mask has changed."""
    if labelling.mask is None:
        rate = f"rate-{float(labelling.rate)!r}-by-{labelling.by}"
        return f"{rate if labelling.points is None else f'points-{labelling.points}'}-seed-{labelling.seed}"
    files = [path.stat() if (path := _mask_file(labelling, cloud)) else None for cloud in clouds]
    seen = (
        str(Path(labelling.mask).resolve()),
        labelling.mask_field,
        [f and (f.st_size, f.st_mtime_ns) for f in files],
    )
    return f"mask-{zlib.crc32(repr(seen).encode()):08x}"


def _label(tiles: list[Scene], labelling: Labelling, folder: Path) -> None:
    """Write the labels of one cloud, unless they are there."""
    paths = [folder / f"{tile.name}.npy" for tile in tiles]
    if all(path.is_file() for path in paths):
        return
    if labelling.mask is None:
        generator = np.random.default_rng([labelling.seed, zlib.crc32(tiles[0].cloud.encode())])
        drawn = draw(np.concatenate([tile.labels for tile in tiles]), labelling, generator)
        parts = np.split(drawn, np.cumsum([tile.num_points for tile in tiles])[:-1])
        labels = [np.where(part, tile.labels, np.int16(-1)) for part, tile in zip(parts, tiles, strict=True)]
    else:
        mask = _read_mask(labelling, tiles[0].cloud, sum(tile.num_original for tile in tiles))
        labels = [_masked(tile, mask) for tile in tiles]
    for path, array in zip(paths, labels, strict=True):
        if not path.is_file():
            with atomic_path(path) as temporary:
                np.save(temporary, array)


def _masked(scene: Scene, mask: np.ndarray) -> np.ndarray:
    """The labels of a scene's grid points under a mask of the original points of its cloud."""
    marked = (mask if scene.rows is None else mask[scene.rows]) & (scene.original_labels >= 0)
    labels = np.full(scene.num_points, -1, np.int16)
    # Every (grid point, label) with its count, ordered by grid point, then the most frequent label first.
    span = 1 + int(scene.original_labels.max(initial=0))
    keys, counts = np.unique(scene.inverse[marked] * np.int64(span) + scene.original_labels[marked], return_counts=True)
    cells, found = np.divmod(keys, span)
    order = np.lexsort((found, -counts, cells))
    cells, first = np.unique(cells[order], return_index=True)
    labels[cells] = found[order][first]
    return labels


def _mask_file(labelling: Labelling, cloud: str) -> Path | None:
    files = [Path(labelling.mask) / f"{cloud}{suffix}" for suffix in (".npy", ".ply")]
    return next((file for file in files if file.is_file()), None)


def _read_mask(labelling: Labelling, cloud: str, count: int) -> np.ndarray:
    """The mask of a cloud of `count` original points."""
    path = _mask_file(labelling, cloud)
    if path is None:
        raise UserError(f"{labelling.mask}: no mask of the cloud {cloud}, expected {cloud}.npy or {cloud}.ply")
    if path.suffix == ".npy":
        mask = _open(partial(np.load, mmap_mode="r"), path, "a mask")
        if mask.dtype != bool or mask.ndim != 1:
            raise UserError(f"{path}: {mask.dtype} values of shape {mask.shape}, expected a bool for each point")
    else:
        parts = []
        for chunk in read_chunks(path):
            if labelling.mask_field not in chunk.dtype.names:
                names = ", ".join(chunk.dtype.names)
                raise UserError(f"{path}: no field {labelling.mask_field} (label_mask_field), expected one of {names}")
            parts.append(chunk[labelling.mask_field] != 0)
        mask = np.concatenate(parts)
    if len(mask) != count:
        raise UserError(f"{path}: a mask of {len(mask)} points, the cloud has {count}")
    return mask


def require_labels_of(scene: Scene, path: Path, labels: np.ndarray) -> None:
    """Raise a UserError unless the labels in a file can be those of a scene: as many, and of its classes."""
    classes = len(scene.class_counts)
    if labels.dtype != np.int16 or labels.shape != (scene.num_points,):
        found = f"{labels.dtype} values of shape {labels.shape}"
        raise UserError(f"{path}: {found}, expected the int16 labels of {scene.num_points} points; delete the file")
    if labels.min(initial=-1) < -1 or labels.max(initial=-1) >= classes:
        raise UserError(f"{path}: labels outside -1 to {classes - 1}; the file is damaged, delete it")


def _open(load: Callable[[Path], np.ndarray], path: Path, what: str) -> np.ndarray:
    try:
        return load(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as {what} ({error}); delete the file") from None
