"""Procedural rooms: furnished, scanned from a few places, and written in the layout of S3DIS."""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_folder, write_json
from .furniture import OPTIONAL, RECIPES, Room, furnish

MANIFEST = "rooms.json"
# Points drawn on the surfaces for each one that the scanners keep.
CANDIDATES = 4


def generate_rooms(out: str | Path, rooms: int, points: int, seed: int, areas: int = 2, progress: bool = False) -> Path:
    """Write rooms with the 13 classes of S3DIS as `Area_<k>/<kind>_<j>/Annotations/<class>_<i>.txt`.

    Rooms go to the areas in turn. Two rooms of an area that follow each other have all the classes between them. Every
    room is written whole or not at all and depends on the seed, the area and its number alone; finished rooms are
    skipped.

    Args:
        out: folder to write to; a new one, or one made with the same arguments.
        rooms: number of rooms, at least `areas`.
        points: points a room, at least 1000.
        seed: seed, not negative.
        areas: number of areas, at least 1.
        progress: show a progress bar.

    Returns:
        `out`.

    Raises:
        UserError: an argument out of its range, or a folder made with other arguments.
    """
    out = Path(out)
    for name, value, least in (
        ("areas", areas, 1),
        ("rooms", rooms, areas),
        ("points", points, 1000),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    settings = {"rooms": rooms, "points": points, "seed": seed, "areas": areas}
    if (out / MANIFEST).is_file():
        found = json.loads((out / MANIFEST).read_text())
        if found != settings:
            raise UserError(f"{out}: holds rooms made with {found}, not {settings}; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty and holds no generated rooms; expected a new folder")
    write_json(out / MANIFEST, settings)

    for number in tqdm(range(rooms), desc="rooms", unit="room", disable=not progress):
        area, room = number % areas, number // areas
        folder = out / f"Area_{area + 1}" / f"{_kind(room)}_{room + 1}"
        if not folder.is_dir():
            _write(folder, *make_room(area, room, points, seed))
    return out


def make_room(area: int, number: int, points: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """One room as scanned.

    Args:
        area: number of its area.
        number: its number in the area.
        points: number of points.
        seed: seed.

    Returns:
        `[points, 6]` x y z in metres and r g b in 0 to 255, and the object of each point, like `chair_2`.
    """
    generator = np.random.default_rng([seed, area, number])
    # Alternating, so that no area lacks a class that another one has.
    must_have = {name for i, name in enumerate(OPTIONAL) if (i + number) % 2 == 0}
    room = furnish(_kind(number), must_have, generator)
    coordinates, surfaces, normals = _surface_points(room, CANDIDATES * points, generator)
    kept, coordinates = _scan(room, coordinates, normals, points, generator)
    colours = _colours(room, coordinates, surfaces[kept], normals[kept], generator)

    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for name, thing in zip(room.classes, room.objects, strict=True):
        if thing not in names:
            numbers[name] = numbers.get(name, 0) + 1
            names[thing] = f"{name}_{numbers[name]}"
    # Rooms lie side by side in the frame of their building, as in S3DIS.
    place = np.array([8.0 * number - 20, 7.0 * area - 15, 0])
    objects = [names[room.objects[s]] for s in surfaces[kept]]
    return np.concatenate([coordinates + place, colours], 1), objects


def _kind(number: int) -> str:
    return list(RECIPES)[number % len(RECIPES)]


def _surface_points(room: Room, count: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """About `count` uniformly random points on all surfaces: coordinates, surface numbers and unit normals."""
    corner, u, v = (np.stack(part) for part in zip(*room.shapes, strict=True))
    normal = np.cross(u, v)
    area = np.linalg.norm(normal, axis=1)
    surface = generator.choice(len(area), count, p=area / area.sum())
    a, b = generator.random((2, count))
    keep = np.ones(count, bool)
    for wall, a0, a1, b0, b1 in room.openings:
        keep &= ~((surface == wall) & (a > a0) & (a < a1) & (b > b0) & (b < b1))
    surface, a, b = surface[keep], a[keep, None], b[keep, None]
    return corner[surface] + a * u[surface] + b * v[surface], surface, (normal / area[:, None])[surface]


def _scan(
    room: Room, points: np.ndarray, normals: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What scanners in a few places see: `count` chosen rows of `points`, and their noisy coordinates.

    Density falls with the square of the distance and with the angle of incidence. What another surface hides from
    every scanner is almost absent.
    """
    scanners = [
        np.array([*(room.free_floor(0.4, 0.4, 0.5) or room.size[:2] / 2), generator.uniform(1.3, 1.7)])
        for _ in range(int(generator.integers(2, 4)))
    ]
    weights, distances = [], []
    for scanner in scanners:
        rays = points - scanner
        distance = np.linalg.norm(rays, axis=1)
        incidence = np.abs((rays * normals).sum(1)) / distance
        visible = _visible(rays, distance, incidence)
        weights.append((0.01 + visible) * (0.1 + incidence) / np.maximum(distance, 0.8) ** 2)
        distances.append(distance)
    weights, distances = np.stack(weights), np.stack(distances)
    # The `count` largest of log weight + Gumbel noise are a weighted sample without replacement.
    keys = np.log(weights.sum(0)) + generator.gumbel(size=len(points))
    kept = np.sort(np.argpartition(keys, -count)[-count:])

    seen_by = weights[:, kept].argmax(0)
    distance = distances[seen_by, kept]
    rays = (points[kept] - np.stack(scanners)[seen_by]) / distance[:, None]
    noise = generator.normal(0, 0.0015 + 0.0008 * distance)
    # A few beams hit an edge and return a mix of two surfaces.
    mixed = generator.random(count) < 0.001
    noise[mixed] += generator.normal(0, 0.05, int(mixed.sum()))
    return kept, points[kept] + rays * noise[:, None]


def _visible(rays: np.ndarray, distance: np.ndarray, incidence: np.ndarray) -> np.ndarray:
    """Which points no other point hides, by a depth image of about eight points a pixel."""
    rows = max(8, int(np.sqrt(len(rays) / 16)))
    pixel = np.pi / rows
    elevation = np.arcsin((rays[:, 2] / distance).clip(-1, 1))
    row = ((elevation / pixel).astype(int) + rows // 2).clip(0, rows - 1)
    column = ((np.arctan2(rays[:, 1], rays[:, 0]) + np.pi) / pixel).astype(int)
    index = row * (2 * rows + 1) + column
    nearest = np.full(rows * (2 * rows + 1), np.inf)
    np.minimum.at(nearest, index, distance)
    # A slanted surface spans a range of depths within one pixel.
    return distance < nearest[index] + 0.06 + distance * pixel / np.maximum(incidence, 0.1)


def _colours(
    room: Room, points: np.ndarray, surfaces: np.ndarray, normals: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """`[n, 3]` colours in 0 to 255: material, uneven light, the room's tint, and camera noise."""
    base = np.stack(room.colours)[surfaces]
    exposure = generator.uniform(0.7, 1.1) * generator.normal(1, 0.05, 3)
    # Light falls off to one side of the room, and less of it reaches vertical surfaces.
    direction = generator.normal(0, 1, 3)
    light = 1 + 0.15 * np.tanh((points - room.size / 2) @ direction / 2) - 0.12 * (1 - np.abs(normals[:, 2]))
    stains = 1 + 0.05 * np.sin(points @ generator.normal(0, 4, (3, 4)) + generator.uniform(0, 6, 4)).sum(1)
    colours = base * (exposure * (light * stains)[:, None]) + generator.normal(0, 9, points.shape)
    return colours.round().clip(0, 255)


def _write(folder: Path, cloud: np.ndarray, objects: list[str]) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "Annotations").mkdir()
        names, which = np.unique(objects, return_inverse=True)
        for number, name in enumerate(names):
            rows = cloud[which == number]
            # One format for all lines is twice as fast as a format a line.
            text = "%.3f %.3f %.3f %d %d %d\n" * len(rows) % tuple(rows.ravel().tolist())
            (temporary / "Annotations" / f"{name}.txt").write_text(text)
