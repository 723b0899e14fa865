"""Procedural rooms: furnished, scanned from a few places, and written in the layout of S3DIS."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_folder, locked, remove_leftovers, write_json
from ..workers import run_all
from .furniture import OPTIONAL, RECIPES, Room, furnish

MANIFEST = "rooms.json"
# Points drawn on the surfaces for each one that the scanners keep.
CANDIDATES = 4
PIECE = 1 << 14


def generate_rooms(
    out: str | Path, rooms: int, points: int, seed: int, areas: int = 2, workers: int = 1, progress: bool = False
) -> Path:
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
        workers: rooms made at the same time, each by a process of its own; at least 1.
        progress: show a progress bar.

    Returns:
        `out`.

    Raises:
        UserError: an argument out of its range, or a folder made with other arguments or in use by another process.
    """
    out = Path(out)
    for name, value, least in (
        ("areas", areas, 1),
        ("rooms", rooms, areas),
        ("points", points, 1000),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    settings = {"rooms": rooms, "points": points, "seed": seed, "areas": areas}
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        remove_leftovers(out, MANIFEST)
        if (out / MANIFEST).is_file():
            found = json.loads((out / MANIFEST).read_text())
            if found != settings:
                raise UserError(f"{out}: holds rooms made with {found}, not {settings}; choose another folder")
        elif any(out.iterdir()):
            raise UserError(f"{out}: the folder is not empty and holds no generated rooms; expected a new folder")
        write_json(out / MANIFEST, settings)

        missing = []
        for area in range(areas):
            remove_leftovers(out / f"Area_{area + 1}")
        for number in range(rooms):
            area, room = number % areas, number // areas
            folder = out / f"Area_{area + 1}" / f"{_kind(room)}_{room + 1}"
            if not folder.is_dir():
                missing.append((folder, area, room, points, seed))
        with tqdm(total=rooms, initial=rooms - len(missing), desc="rooms", unit="room", disable=not progress) as bar:
            run_all(_make_and_write, missing, workers, lambda _: bar.update(), "fewer workers")
    return out


def _make_and_write(folder: Path, *room: int) -> None:
    _write(folder, *make_room(*room))


def make_room(area: int, number: int, points: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One room as scanned.

    Args:
        area: number of its area.
        number: its number in the area.
        points: number of points.
        seed: seed.

    Returns:
        `[points, 6]` float64 x y z in metres and r g b in 0 to 255; the object of each point, `[points]` int16; and the
        names of the objects, like `chair_2`.
    """
    generator = np.random.default_rng([seed, area, number])
    # Alternating, so that no area lacks a class that another one has.
    must_have = {name for i, name in enumerate(OPTIONAL) if (i + number) % 2 == 0}
    room = furnish(_kind(number), must_have, generator)
    surfaces = Surfaces.of(room)
    candidates = surfaces.draw(room.openings, CANDIDATES * points, generator)
    kept, coordinates = _scan(room, surfaces, candidates, points, generator)
    surface = candidates[0][kept]
    colours = _colours(room, coordinates, surface, surfaces.normals[2, surface], generator)

    things, thing = np.unique(room.objects, return_inverse=True)
    numbers: dict[str, int] = {}
    names = []
    for name in (room.classes[room.objects.index(each)] for each in things.tolist()):
        numbers[name] = numbers.get(name, 0) + 1
        names.append(f"{name}_{numbers[name]}")
    # Rooms lie side by side in the frame of their building, as in S3DIS.
    place = np.array([8.0 * number - 20, 7.0 * area - 15, 0])
    return np.concatenate([coordinates + place, colours], 1), thing.astype(np.int16)[surface], names


def _kind(number: int) -> str:
    return list(RECIPES)[number % len(RECIPES)]


@dataclass(frozen=True)
class Surfaces:
    """All surfaces of a room, as columns: numpy is fast along long axes, not along one of three numbers.

    Args:
        corners: `[3, S]`.
        u: `[3, S]` one edge.
        v: `[3, S]` the other edge.
        normals: `[3, S]` of length one.
        areas: `[S]`.
    """

    corners: np.ndarray
    u: np.ndarray
    v: np.ndarray
    normals: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, room: Room) -> "Surfaces":
        corners, u, v = (np.stack(part) for part in zip(*room.shapes, strict=True))
        normals = np.cross(u, v)
        areas = np.linalg.norm(normals, axis=1)
        return cls(*(np.ascontiguousarray(each.T) for each in (corners, u, v, normals / areas[:, None])), areas)

    def draw(self, openings: list[tuple], count: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """About `count` uniformly random points outside the openings: surface numbers, places along u and along v."""
        surface = generator.choice(len(self.areas), count, p=self.areas / self.areas.sum()).astype(np.int32)
        a, b = generator.random((2, count))
        keep = np.ones(count, bool)
        for wall, a0, a1, b0, b1 in openings:
            rows = np.flatnonzero(surface == wall)
            keep[rows] &= ~((a[rows] > a0) & (a[rows] < a1) & (b[rows] > b0) & (b[rows] < b1))
        return surface[keep], a[keep], b[keep]

    def points(self, surface: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """`[3, n]` coordinates of the points drawn."""
        corners, u, v = (each.take(surface, axis=1) for each in (self.corners, self.u, self.v))
        return corners + a * u + b * v


def _scan(
    room: Room, surfaces: Surfaces, candidates: tuple[np.ndarray, ...], count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What scanners in a few places see: `count` chosen rows of `candidates`, and their noisy coordinates `[count, 3]`.

    Density falls with the square of the distance and with the angle of incidence. What another surface hides from
    every scanner is almost absent.
    """
    scanners = [
        np.array([*(room.free_floor(0.4, 0.4, 0.5) or room.size[:2] / 2), generator.uniform(1.3, 1.7)])
        for _ in range(int(generator.integers(2, 4)))
    ]
    weights, distances = _views(surfaces, candidates, scanners)
    # The `count` largest of log weight + Gumbel noise are a weighted sample without replacement.
    keys = np.log(weights.sum(0)) + generator.gumbel(size=weights.shape[1])
    kept = np.sort(np.argpartition(keys, -count)[-count:])

    seen_by = weights[:, kept].argmax(0)
    distance = distances[seen_by, kept]
    points = surfaces.points(*(column[kept] for column in candidates))
    rays = (points - np.stack(scanners, 1)[:, seen_by]) / distance
    noise = generator.normal(0, 0.0015 + 0.0008 * distance)
    # A few beams hit an edge and return a mix of two surfaces.
    mixed = generator.random(count) < 0.001
    noise[mixed] += generator.normal(0, 0.05, int(mixed.sum()))
    return kept, np.ascontiguousarray((points + rays * noise).T)


def _views(
    surfaces: Surfaces, candidates: tuple[np.ndarray, ...], scanners: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How well each scanner sees each candidate, `[scanners, n]`, and from how far, `[scanners, n]`.

    A point is seen unless another one hides it: a depth image tells, of about eight points a pixel.
    """
    count = len(candidates[0])
    # In pieces that the cache holds: numpy runs through them many times.
    pieces = [slice(start, start + PIECE) for start in range(0, count, PIECE)]
    image = max(8, int(np.sqrt(count / 16)))
    weights, distances = np.empty((2, len(scanners), count))
    pixels = np.empty((len(scanners), count), np.int32)
    nearest = np.full((len(scanners), image * (2 * image + 1)), np.inf)
    for piece in pieces:
        surface, a, b = (column[piece] for column in candidates)
        points, normals = surfaces.points(surface, a, b), surfaces.normals.take(surface, axis=1)
        for k, scanner in enumerate(scanners):
            x, y, z = points - scanner[:, None]
            distance = distances[k, piece] = np.sqrt(x * x + y * y + z * z)
            weights[k, piece] = np.abs(x * normals[0] + y * normals[1] + z * normals[2]) / distance  # for now
            pixel = _pixels(x, y, z / distance, image)
            pixels[k, piece] = pixel
            np.minimum.at(nearest[k], pixel, distance)
    for k in range(len(scanners)):
        for piece in pieces:
            distance, incidence = distances[k, piece], weights[k, piece]
            # A slanted surface spans a range of depths within one pixel.
            slack = 0.06 + distance * (np.pi / image) / np.maximum(incidence, 0.1)
            visible = distance < nearest[k].take(pixels[k, piece]) + slack
            weights[k, piece] = (0.01 + visible) * (0.1 + incidence) / np.maximum(distance, 0.8) ** 2
    return weights, distances


def _pixels(x: np.ndarray, y: np.ndarray, sine: np.ndarray, rows: int) -> np.ndarray:
    """Pixels of rays in a panorama of so many rows; `sine` is that of their elevation."""
    pixel = np.pi / rows
    row = ((np.arcsin(sine.clip(-1, 1)) / pixel).astype(int) + rows // 2).clip(0, rows - 1)
    return row * (2 * rows + 1) + ((np.arctan2(y, x) + np.pi) / pixel).astype(int)


def _colours(
    room: Room, points: np.ndarray, surfaces: np.ndarray, upright: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """`[n, 3]` colours in 0 to 255: material, uneven light, the room's tint, and camera noise.

    `upright` `[n]` is the z of the normals.
    """
    base = np.stack(room.colours)[surfaces]
    exposure = generator.uniform(0.7, 1.1) * generator.normal(1, 0.05, 3)
    # Light falls off to one side of the room, and less of it reaches vertical surfaces.
    direction = generator.normal(0, 1, 3)
    light = 1 + 0.15 * np.tanh((points - room.size / 2) @ direction / 2) - 0.12 * (1 - np.abs(upright))
    stains = 1 + 0.05 * np.sin(points @ generator.normal(0, 4, (3, 4)) + generator.uniform(0, 6, 4)).sum(1)
    colours = base * (exposure * (light * stains)[:, None]) + generator.normal(0, 9, points.shape)
    return colours.round().clip(0, 255)


def _write(folder: Path, cloud: np.ndarray, objects: np.ndarray, names: list[str]) -> None:
    order = np.argsort(objects, kind="stable")
    lines = format_lines(cloud[order])
    ends = np.bincount(objects, minlength=len(names)).cumsum().tolist()
    starts = [0, *ends[:-1]]
    with atomic_folder(folder) as temporary:
        (temporary / "Annotations").mkdir()
        for name, start, end in zip(names, starts, ends, strict=True):
            if end > start:
                text = lines[start:end].tobytes().translate(None, b"\0")
                (temporary / "Annotations" / f"{name}.txt").write_bytes(text)


def format_lines(cloud: np.ndarray) -> np.ndarray:
    """`[n, 6]` x y z r g b as text, a line a row; the NUL bytes in it, which fill short numbers up, are to be removed.

    The same as `"%.3f %.3f %.3f %d %d %d"` by looking numbers up, ten times as fast.
    """
    thousandths = np.rint(np.abs(cloud[:, :3]) * 1000).astype(np.int64)
    whole, part = thousandths // 1000, thousandths % 1000
    top = int(whole.max(initial=0)) + 1
    integers = np.array([f"{sign}{value}" for sign in ("", "-") for value in range(top)], "S")
    parts = np.array([f".{value:03d} " for value in range(1000)], "S")
    values = [np.array([f"{value}{end}" for value in range(256)], "S") for end in "  \n"]
    whole += top * np.signbit(cloud[:, :3])
    columns = [column for k in range(3) for column in (integers[whole[:, k]], parts[part[:, k]])]
    columns += [text[column] for text, column in zip(values, cloud[:, 3:].astype(np.int64).T, strict=True)]
    lines = np.empty(len(cloud), [(str(k), column.dtype) for k, column in enumerate(columns)])
    for k, column in enumerate(columns):
        lines[str(k)] = column
    return lines
