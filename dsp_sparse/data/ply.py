"""Any PLY files: which fields to read, which classes there are and how files form groups comes from a YAML file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from plyfile import PlyData, PlyParseError

from ..errors import UserError
from .dataset import Dataset, RawCloud, RawScene, checked, existing_folder


@dataclass(frozen=True, kw_only=True)
class PlyConfig:
    """How to read a folder of PLY files.

    Args:
        name: name of the data set.
        groups: group name to glob patterns relative to the folder; a file belongs to one group.
        coordinates: the three vertex fields that hold coordinates, in metres.
        features: vertex field to the value that becomes 1; features are divided by it and clipped to [0, 1].
        label: vertex field of the class ids; None: there are no labels.
        classes: class name to the ids that belong to it.
        ignore: ids of points without a class; an id that is neither here nor in `classes` is an error.
    """

    name: str
    groups: dict[str, list[str]]
    coordinates: list[str] = field(default_factory=lambda: ["x", "y", "z"])
    features: dict[str, float] = field(default_factory=dict)
    label: str | None = None
    classes: dict[str, list[int]] = field(default_factory=dict)
    ignore: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, path: str | Path) -> "PlyConfig":
        """Read a YAML file; a UserError naming the file and the key for anything that does not fit."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected a YAML that describes the PLY files")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            config = cls(**parser.parse_string(path.read_text()).as_dict())
        except (ArgumentError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error
        for pattern in (p for patterns in config.groups.values() for p in patterns):
            if not pattern or Path(pattern).is_absolute():
                raise UserError(f"{path}: groups has the pattern {pattern!r}, expected one relative to the folder")
        if len(config.coordinates) != 3:
            raise UserError(f"{path}: coordinates names {len(config.coordinates)} fields, expected 3")
        for name, full_scale in config.features.items():
            if not full_scale > 0:
                raise UserError(f"{path}: features.{name} is {full_scale}, expected a positive value that becomes 1")
        if config.label is not None and not config.classes:
            raise UserError(f"{path}: label is {config.label!r} but classes is empty, expected class names with ids")
        ids = [i for listed in [*config.classes.values(), config.ignore] for i in listed]
        for repeated in sorted({i for i in ids if ids.count(i) > 1}):
            raise UserError(f"{path}: id {repeated} is listed twice in classes and ignore, expected once")
        return config


def scenes(root: str | Path, config: PlyConfig) -> Dataset:
    """Find the PLY files below `root` that the groups' patterns name.

    Raises:
        UserError: no such folder, a pattern without a file, or a file in two groups.
    """
    root = existing_folder(root, "a folder of PLY files")
    groups: dict[Path, str] = {}
    for group, patterns in config.groups.items():
        for pattern in patterns:
            files = sorted(root.glob(pattern))
            if not files:
                raise UserError(f"{root}: no file matches {pattern!r} of group {group!r}")
            for file in files:
                if groups.setdefault(file, group) != group:
                    raise UserError(f"{file}: in the groups {groups[file]!r} and {group!r}, expected one")
    found = [
        RawScene("_".join(file.relative_to(root).with_suffix("").parts), group, file, partial(load, file, config))
        for file, group in groups.items()
    ]
    return Dataset(config.name, root, list(config.classes), dict(config.features), found)


def load(path: Path, config: PlyConfig) -> Iterator[RawCloud]:
    """Read one file with its labels.

    Raises:
        UserError: see `read_vertices`; or a class id that the configuration does not list.
    """
    vertices = read_vertices(path)
    cloud = cloud_of(vertices, path, config.features, config.coordinates)
    if config.label is None:
        yield cloud
        return
    ids, inverse = np.unique(columns(vertices, path, [config.label]).astype(np.int64), return_inverse=True)
    table = dict.fromkeys(config.ignore, -1)
    table |= {i: label for label, listed in enumerate(config.classes.values()) for i in listed}
    unknown = [int(i) for i in ids if i not in table]
    if unknown:
        raise UserError(f"{path}: {config.label} has the ids {unknown}, expected only ids listed in classes or ignore")
    yield RawCloud(cloud.points, cloud.features, np.array([table[i] for i in ids.tolist()])[inverse.reshape(-1)])


def read_cloud(
    path: str | Path, features: Mapping[str, float], coordinates: Sequence[str] = ("x", "y", "z")
) -> RawCloud:
    """Read one PLY file without labels, as for prediction.

    Args:
        path: the file.
        features: vertex field to the value that becomes 1, as in `SceneStore.features`.
        coordinates: vertex fields of the coordinates.

    Returns:
        The cloud, all its labels -1.

    Raises:
        UserError: see `read_vertices`; an empty cloud; values that are not finite.
    """
    path = Path(path)
    (cloud,) = checked([cloud_of(read_vertices(path), path, features, coordinates)], path)
    return cloud


def read_vertices(path: Path, triangles: bool = False) -> np.ndarray:
    """The vertices of a PLY file as a structured array.

    Args:
        path: the file.
        triangles: its faces are known to be triangles, which lets them be skipped instead of read one by one.

    Raises:
        UserError: a missing, truncated or malformed file, or one without vertices.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a PLY file")
    try:
        ply = PlyData.read(str(path), known_list_len={"face": {"vertex_indices": 3}} if triangles else {})
        return ply["vertex"].data
    except (PlyParseError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a whole PLY file ({error})") from error
    except KeyError as error:
        raise UserError(f"{path}: no element 'vertex', expected a point cloud") from error


def columns(vertices: np.ndarray, path: Path, names: Sequence[str]) -> np.ndarray:
    """The named fields as `[N, len(names)]` float64; a UserError naming the missing ones and those there are."""
    missing = [name for name in names if name not in vertices.dtype.names]
    if missing:
        raise UserError(f"{path}: no vertex field {', '.join(missing)}; it has {', '.join(vertices.dtype.names)}")
    return np.stack([vertices[name].astype(np.float64) for name in names], 1) if names else np.empty((len(vertices), 0))


def cloud_of(
    vertices: np.ndarray, path: Path, features: Mapping[str, float], coordinates: Sequence[str] = ("x", "y", "z")
) -> RawCloud:
    """The cloud that vertices hold, all its labels -1; arguments and errors as for `read_cloud`."""
    scaled = columns(vertices, path, list(features)) / np.array(list(features.values()))
    return RawCloud(
        points=columns(vertices, path, list(coordinates)),
        features=scaled.clip(0, 1).astype(np.float32),
        labels=np.full(len(vertices), -1, np.int64),
    )
