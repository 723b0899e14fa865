"""Any point clouds: which fields to read, which classes there are and how files form groups comes from a YAML file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..settings import parse_config, read_settings
from .dataset import Dataset, RawCloud, RawScene, checked, existing_folder, files_below, relabel
from .readers import SUFFIXES, cloud_of, columns_of, read_chunks


@dataclass(frozen=True, kw_only=True)
class CloudConfig:
    """How to read a folder of point clouds.

    Args:
        name: name of the data set.
        groups: group name to glob patterns relative to the folder; a file belongs to one group.
        coordinates: the three fields that hold coordinates, in metres.
        features: field to the value that becomes 1; features are divided by it and clipped to [0, 1].
        label: field of the class ids; None: there are no labels.
        classes: class name to the ids that belong to it.
        columns: names of the columns where a file has none: text without a header line, plain arrays; None: the
            coordinates, the features and the label, in this order.
        ignore: ids of points without a class; an id that is neither here nor in `classes` is an error.
    """

    name: str
    groups: dict[str, list[str]]
    coordinates: list[str] = field(default_factory=lambda: ["x", "y", "z"])
    features: dict[str, float] = field(default_factory=dict)
    label: str | None = None
    classes: dict[str, list[int]] = field(default_factory=dict)
    columns: list[str] | None = None
    ignore: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, path: str | Path) -> "CloudConfig":
        """Read a YAML file; a UserError naming the file and the key for anything that does not fit."""
        settings = read_settings(path)
        try:
            config = parse_config(cls, settings)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if not config.groups or not all(config.groups.values()):
            raise UserError(f"{path}: groups is {config.groups}, expected group names, each with patterns of files")
        for pattern in (p for patterns in config.groups.values() for p in patterns):
            # A store takes names that begin with a dot for leftovers.
            if not pattern or Path(pattern).is_absolute() or any(part[0] == "." for part in Path(pattern).parts):
                raise UserError(
                    f"{path}: groups has the pattern {pattern!r}, expected one below the folder, not hidden"
                )
        if len(set(config.coordinates)) != 3 or len(config.coordinates) != 3:
            raise UserError(f"{path}: coordinates names the fields {config.coordinates}, expected three different ones")
        for name, full_scale in config.features.items():
            if not full_scale > 0:
                raise UserError(f"{path}: features.{name} is {full_scale}, expected a positive value that becomes 1")
        if config.label is not None and not config.classes:
            raise UserError(f"{path}: label is {config.label!r} but classes is empty, expected class names with ids")
        ids = [i for listed in [*config.classes.values(), config.ignore] for i in listed]
        for repeated in sorted({i for i in ids if ids.count(i) > 1}):
            raise UserError(f"{path}: id {repeated} is listed twice in classes and ignore, expected once")
        return config


def scenes(root: str | Path, config: CloudConfig) -> Dataset:
    """Find the files below `root` that the groups' patterns name, hidden ones left out.

    Raises:
        UserError: no such folder, a pattern without a file, a file of no known format, or a file in two groups.
    """
    root = existing_folder(root, "a folder of point clouds")
    groups: dict[Path, str] = {}
    for group, patterns in config.groups.items():
        for pattern in patterns:
            files = files_below(root, pattern)
            if not files:
                raise UserError(f"{root}: no file matches {pattern!r} of group {group!r}")
            for file in files:
                if file.suffix.lower() not in SUFFIXES:
                    raise UserError(f"{file}: in the group {group!r}, expected one of {' '.join(SUFFIXES)}")
                if groups.setdefault(file, group) != group:
                    raise UserError(f"{file}: in the groups {groups[file]!r} and {group!r}, expected one")
    found = [
        RawScene("_".join(file.relative_to(root).with_suffix("").parts), group, file, partial(load, file, config))
        for file, group in groups.items()
    ]
    reading = {"label": config.label, "ids": config.classes, "ignore": config.ignore, "columns": config.columns}
    return Dataset(config.name, root, list(config.classes), dict(config.features), found, config.coordinates, reading)


def load(path: Path, config: CloudConfig) -> Iterator[RawCloud]:
    """Read one file with its labels.

    Raises:
        UserError: see `read_chunks` and `cloud_of`; or a class id that the configuration does not list.
    """
    label = [] if config.label is None else [config.label]
    table = dict.fromkeys(config.ignore, -1)
    table |= {i: number for number, ids in enumerate(config.classes.values()) for i in ids}
    for chunk in read_chunks(path, config.columns or [*config.coordinates, *config.features, *label]):
        cloud = cloud_of(chunk, path, config.features, config.coordinates)
        if label:
            ids = columns_of(chunk, path, label)[:, 0]
            labels, listed = relabel(ids, table)
            if not listed.all():
                unknown = ", ".join(f"{i:g}" for i in np.unique(ids[~listed])[:10])
                raise UserError(f"{path}: {config.label} has ids {unknown}, expected ids of classes or ignore")
            cloud = replace(cloud, labels=labels)
        yield cloud


def read_cloud(
    path: Path,
    features: Mapping[str, float],
    coordinates: Sequence[str] = ("x", "y", "z"),
    columns: Sequence[str] | None = None,
) -> Iterator[RawCloud]:
    """Read one file without labels, as for prediction.

    Args:
        path: the file.
        features: field to the value that becomes 1, as in `SceneStore.features`.
        coordinates: the three fields that hold coordinates, in metres.
        columns: names of the columns where the file has none, see `read_chunks`.

    Returns:
        The pieces of the cloud in order, checked; all labels are -1.

    Raises:
        UserError: see `read_chunks`, `cloud_of` and `checked`.
    """
    return checked((cloud_of(chunk, path, features, coordinates) for chunk in read_chunks(path, columns)), path)
