"""What stands in a procedural room: every surface as a parallelogram with a class, an object and a colour."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

MATERIALS = {
    "white": (226, 223, 216),
    "cream": (212, 202, 178),
    "beige": (188, 172, 148),
    "grey": (150, 150, 148),
    "black": (52, 52, 55),
    "steel": (120, 126, 132),
    "oak": (166, 128, 84),
    "walnut": (106, 74, 50),
    "blue": (72, 96, 142),
    "red": (150, 62, 54),
    "green": (84, 112, 82),
}
# Every class may have several materials and every material serves several classes: colour alone names no class.
CHOICES = {
    "ceiling": ("white", "white", "cream", "grey"),
    "floor": ("grey", "beige", "oak", "blue", "walnut"),
    "wall": ("white", "cream", "beige", "grey", "green"),
    "beam": ("white", "cream", "grey", "oak"),
    "column": ("white", "cream", "beige", "grey"),
    "window": ("steel", "white", "blue", "grey"),
    "door": ("oak", "walnut", "white", "grey", "beige"),
    "table": ("oak", "walnut", "white", "grey", "beige", "black"),
    "chair": ("black", "blue", "red", "grey", "green", "oak"),
    "sofa": ("black", "red", "blue", "beige", "green", "walnut"),
    "bookcase": ("oak", "walnut", "white", "grey", "black"),
    "board": ("white", "white", "green", "black", "grey"),
    "clutter": tuple(MATERIALS),
}


@dataclass
class Room:
    """A room of `size [3]` metres with one corner in the origin, filled by calling its methods.

    Surfaces are rows of four parallel lists: `(corner, edge u, edge v)`, class, object number, colour. `openings`
    lists the holes of the walls as (surface, u from, u to, v from, v to) in fractions of the edges; `taken` and
    `spans` what is occupied of the floor (x from, x to, y from, y to) and of the walls (wall, level, from, to).
    """

    size: np.ndarray
    generator: np.random.Generator
    shapes: list[tuple] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    colours: list[np.ndarray] = field(default_factory=list)
    openings: list[tuple] = field(default_factory=list)
    taken: list[tuple] = field(default_factory=list)
    spans: list[tuple] = field(default_factory=list)
    count: int = 0

    def start(self, name: str, material: str | None = None) -> np.ndarray:
        """Begin a new object of class `name`; returns its colour."""
        self.count += 1
        self.name = name
        material = material or self.generator.choice(CHOICES[name])
        self.colour = np.array(MATERIALS[material]) + self.generator.normal(0, 12, 3)
        return self.colour

    def surface(self, corner: Sequence[float], u: Sequence[float], v: Sequence[float]) -> None:
        """Add a parallelogram to the object."""
        self.shapes.append((np.array(corner, float), np.array(u, float), np.array(v, float)))
        self.classes.append(self.name)
        self.objects.append(self.count)
        self.colours.append(self.colour)

    def box(self, centre: Sequence[float], size: Sequence[float], yaw: float = 0.0) -> None:
        """Add a box to the object: `centre` is the middle of its bottom face, `yaw` its turn about z."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        x, y, z = np.array([cos, sin, 0]) * size[0], np.array([-sin, cos, 0]) * size[1], np.array([0, 0, size[2]])
        corner = np.array(centre, float) - x / 2 - y / 2
        for a, b, c in ((x, y, z), (y, z, x), (z, x, y)):
            self.surface(corner, a, b)
            self.surface(corner + c, a, b)

    def prism(self, centre: Sequence[float], radius: float, height: float, sides: int = 8) -> None:
        """Add the mantle of an upright prism to the object."""
        angles = np.linspace(0, 2 * np.pi, sides + 1)
        ring = np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
        for a, b in pairwise(ring):
            self.surface(a, b - a, (0, 0, height))

    def free_floor(self, width: float, depth: float, margin: float = 0.1) -> tuple[float, float] | None:
        """The middle of a free place on the floor, now taken; None if there is no room for it."""
        low = np.array([width, depth]) / 2 + margin
        high = self.size[:2] - low
        for _ in range(100 if (high > low).all() else 0):
            x, y = self.generator.uniform(low, high)
            if self.take(x, y, width, depth):
                return x, y
        return None

    def free_wall(
        self, width: float, depth: float = 0.0, levels: str = "low high"
    ) -> tuple[np.ndarray, np.ndarray, float, int] | None:
        """A free stretch of a wall, at the levels named, and of the floor before it, now taken.

        Returns:
            Its middle at floor level `[3]`, the inward normal `[3]`, the yaw that turns +y into the normal, the wall.
        """
        for _ in range(100):
            wall = int(self.generator.integers(4))
            corner, along, normal, yaw = self.wall(wall)
            length = np.linalg.norm(along)
            if length < width + 0.4:
                continue
            at = self.generator.uniform(width / 2 + 0.2, length - width / 2 - 0.2)
            spans = [(wall, level, at - width / 2 - 0.05, at + width / 2 + 0.05) for level in levels.split()]
            if any(s[:2] == t[:2] and s[2] < t[3] and t[2] < s[3] for s in spans for t in self.spans):
                continue
            middle = corner + along / length * at
            x, y = (middle + normal * (depth / 2 + 0.02))[:2]
            if depth and not self.take(x, y, *((width, depth) if wall % 2 == 0 else (depth, width))):
                continue
            self.spans += spans
            return middle, normal, yaw, wall
        return None

    def wall(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Corner, edge along the floor, inward normal and yaw of one of the four walls."""
        w, d, _ = self.size
        corner = np.array([(0, 0, 0), (w, 0, 0), (w, d, 0), (0, d, 0)][index], float)
        along = np.array([(w, 0, 0), (0, d, 0), (-w, 0, 0), (0, -d, 0)][index], float)
        normal = np.array([(0, 1, 0), (-1, 0, 0), (0, -1, 0), (1, 0, 0)][index], float)
        return corner, along, normal, index * np.pi / 2

    def take(self, x: float, y: float, width: float, depth: float) -> bool:
        """Claim a rectangle of the floor; False if something stands there."""
        new = (x - width / 2, x + width / 2, y - depth / 2, y + depth / 2)
        if any(new[0] < b and a < new[1] and new[2] < d and c < new[3] for a, b, c, d in self.taken):
            return False
        self.taken.append(new)
        return True

    def open_wall(self, wall: int, middle: np.ndarray, width: float, bottom: float, top: float) -> None:
        """Cut a hole into a wall."""
        corner, along, _, _ = self.wall(wall)
        length = np.linalg.norm(along)
        at = (middle - corner) @ along / length
        height = self.size[2]
        u, v = np.array([at - width / 2, at + width / 2]) / length, np.array([bottom, top]) / height
        self.openings.append((wall, *u, *v))


def furnish(kind: str, must_have: set[str], generator: np.random.Generator) -> Room:
    """A room of one of the `RECIPES`; classes in `must_have` are placed first, the other `OPTIONAL` ones by chance."""
    size = generator.uniform((4.2, 3.6, 2.6), (6.5, 5.5, 3.2))
    room = Room(size, generator)
    w, d, h = size

    # The walls come first: openings refer to them as surfaces 0 to 3.
    material = generator.choice(CHOICES["wall"])
    for wall in range(4):
        corner, along, _, _ = room.wall(wall)
        room.start("wall", material)
        room.surface(corner, along, (0, 0, h))
    room.start("floor")
    room.surface((0, 0, 0), (w, 0, 0), (0, d, 0))
    room.start("ceiling")
    room.surface((0, 0, h), (w, 0, 0), (0, d, 0))

    _door(room)
    # What is certain is placed while there is room for it; chance adds to it afterwards.
    for name, build in OPTIONAL.items():
        if name in must_have:
            build(room)
    RECIPES[kind](room)
    for build in OPTIONAL.values():
        if generator.random() < 0.4:
            build(room)
    for _ in range(int(generator.integers(3, 7))):
        _floor_clutter(room)
    for _ in range(int(generator.integers(1, 4))):
        _lamp(room)
    return room


def _door(room: Room) -> None:
    width, height = room.generator.uniform(0.85, 1.0), room.generator.uniform(2.0, 2.15)
    # The floor before a door stays free.
    if place := room.free_wall(width, 0.6):
        middle, normal, yaw, wall = place
        room.open_wall(wall, middle, width, 0, height)
        room.start("door")
        room.box(middle - normal * 0.06, (width, 0.05, height), yaw)


def _window(room: Room) -> None:
    width = room.generator.uniform(1.0, 1.9)
    if place := room.free_wall(width, levels="high"):
        middle, normal, yaw, wall = place
        bottom, top = room.generator.uniform(0.8, 1.0), room.size[2] - room.generator.uniform(0.3, 0.5)
        room.open_wall(wall, middle, width, bottom, top)
        room.start("window")
        up = np.array([0, 0, 1.0])
        side = np.array([np.cos(yaw), np.sin(yaw), 0])
        room.box(middle - normal * 0.12 + up * bottom, (width, 0.02, top - bottom), yaw)
        for shift in (-width / 2, 0, width / 2):
            room.box(middle + side * shift - normal * 0.06 + up * bottom, (0.05, 0.1, top - bottom), yaw)
        for z in (bottom, top - 0.05):
            room.box(middle - normal * 0.06 + up * z, (width, 0.1, 0.05), yaw)


def _board(room: Room) -> None:
    width = room.generator.uniform(1.2, 2.2)
    if place := room.free_wall(width, levels="high"):
        middle, normal, yaw, wall = place
        bottom, height = room.generator.uniform(0.85, 1.0), room.generator.uniform(0.9, 1.2)
        room.open_wall(wall, middle, width, bottom, bottom + height)
        room.start("board")
        room.box(middle + normal * 0.025 + np.array([0, 0, bottom]), (width, 0.03, height), yaw)


def _column(room: Room) -> None:
    width = room.generator.uniform(0.3, 0.5)
    if place := room.free_wall(width, width):
        middle, normal, yaw, _ = place
        room.start("column")
        room.box(middle + normal * width / 2, (width, width, room.size[2]), yaw)


def _beam(room: Room) -> None:
    w, d, h = room.size
    width, depth = room.generator.uniform(0.2, 0.4, 2)
    room.start("beam")
    if room.generator.random() < 0.5:
        room.box((room.generator.uniform(0.5, w - 0.5), d / 2, h - depth), (width, d, depth))
    else:
        room.box((w / 2, room.generator.uniform(0.5, d - 0.5), h - depth), (w, width, depth))


def _bookcase(room: Room) -> None:
    width, depth = room.generator.uniform(0.8, 1.4), room.generator.uniform(0.28, 0.4)
    if place := room.free_wall(width, depth):
        middle, normal, yaw, _ = place
        height = room.generator.uniform(1.4, 2.2)
        side = np.array([np.cos(yaw), np.sin(yaw), 0])
        room.start("bookcase")
        room.box(middle + normal * 0.03, (width, 0.02, height), yaw)
        for shift in (-1, 1):
            room.box(middle + normal * depth / 2 + side * shift * width / 2, (0.025, depth, height), yaw)
        for z in np.linspace(0.05, height - 0.03, int(height / 0.36) + 1):
            room.box(middle + normal * depth / 2 + np.array([0, 0, z]), (width, depth, 0.025), yaw)
            # Books count as part of their case, in their own colours.
            end, shelf = -width / 2 + 0.05, room.colour
            while z < height - 0.3 and (end := end + room.generator.uniform(0.02, 0.3)) < width / 2 - 0.15:
                thick, tall = room.generator.uniform((0.03, 0.18), (0.12, 0.28))
                room.colour = np.array(MATERIALS[room.generator.choice(CHOICES["clutter"])])
                room.box(
                    middle + normal * depth * 0.45 + side * end + np.array([0, 0, z]), (thick, depth * 0.7, tall), yaw
                )
                end += thick
            room.colour = shelf


def _sofa(room: Room) -> None:
    width, depth = room.generator.uniform(1.2, 2.1), room.generator.uniform(0.75, 0.9)
    if place := room.free_wall(width, depth, "low"):
        middle, normal, yaw, _ = place
        side = np.array([np.cos(yaw), np.sin(yaw), 0])
        room.start("sofa")
        room.box(middle + normal * depth / 2, (width, depth, 0.42), yaw)
        room.box(middle + normal * 0.14, (width, 0.2, room.generator.uniform(0.7, 0.9)), yaw)
        for shift in (-1, 1):
            room.box(middle + normal * depth / 2 + side * shift * (width / 2 - 0.1), (0.18, depth, 0.6), yaw)


def _chair(room: Room, x: float, y: float, yaw: float) -> None:
    """A chair whose back is towards +y before it is turned by `yaw`."""
    seat, width = room.generator.uniform(0.42, 0.5, 2)
    back = np.array([-np.sin(yaw), np.cos(yaw), 0])
    side = np.array([np.cos(yaw), np.sin(yaw), 0])
    middle = np.array([x, y, 0.0])
    room.start("chair")
    room.box(middle + np.array([0, 0, seat - 0.06]), (width, width, 0.06), yaw)
    room.box(middle + back * width / 2 + np.array([0, 0, seat]), (width * 0.9, 0.05, 0.45), yaw)
    if room.generator.random() < 0.5:
        room.prism(middle, 0.03, seat - 0.06, sides=6)
        for angle in np.arange(5) * 2 * np.pi / 5:
            room.box(middle + 0.14 * np.array([np.cos(angle), np.sin(angle), 0]), (0.28, 0.04, 0.05), angle)
    else:
        for a in (-1, 1):
            for b in (-1, 1):
                room.box(middle + (a * side + b * back) * (width / 2 - 0.03), (0.03, 0.03, seat - 0.06), yaw)


def _table(room: Room, x: float, y: float, width: float, depth: float, yaw: float) -> None:
    top = room.generator.uniform(0.7, 0.78)
    side, back = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
    middle = np.array([x, y, 0.0])
    room.start("table")
    room.box(middle + np.array([0, 0, top - 0.04]), (width, depth, 0.04), yaw)
    for a in (-1, 1):
        for b in (-1, 1):
            room.box(
                middle + a * side * (width / 2 - 0.06) + b * back * (depth / 2 - 0.06), (0.05, 0.05, top - 0.04), yaw
            )
    for _ in range(int(room.generator.integers(2, 6))):
        a, b = room.generator.uniform(-0.4, 0.4, 2)
        spot = middle + a * side * width + b * back * depth + np.array([0, 0, top])
        turn = yaw + room.generator.normal(0, 0.3)
        room.start("clutter")
        match int(room.generator.integers(3)):
            case 0:  # a screen
                room.box(spot, (0.2, 0.15, 0.02), turn)
                room.box(spot + np.array([0, 0, 0.12]), (room.generator.uniform(0.4, 0.6), 0.03, 0.33), turn)
            case 1:  # a pile of paper or books
                room.box(spot, (0.3, 0.22, room.generator.uniform(0.02, 0.2)), turn)
            case _:  # a cup, a pot
                room.prism(spot, room.generator.uniform(0.04, 0.1), room.generator.uniform(0.1, 0.3))


def _floor_clutter(room: Room) -> None:
    width, depth, height = room.generator.uniform((0.2, 0.2, 0.2), (0.6, 0.5, 0.9))
    if place := room.free_floor(width, depth):
        room.start("clutter")
        if room.generator.random() < 0.4:
            room.prism((*place, 0), min(width, depth) / 2, height)
        else:
            room.box((*place, 0), (width, depth, height))


def _lamp(room: Room) -> None:
    x, y = room.generator.uniform((0.8, 0.8), room.size[:2] - 0.8)
    room.start("clutter", "white")
    room.box((x, y, room.size[2] - 0.08), (1.2, 0.25, 0.06), room.generator.integers(2) * np.pi / 2)


def _office(room: Room) -> None:
    for _ in range(int(room.generator.integers(2, 5))):
        width, depth = room.generator.uniform((1.2, 0.65), (1.7, 0.8))
        if place := room.free_wall(width, depth + 0.8, "low"):
            middle, normal, yaw, _ = place
            x, y = (middle + normal * (depth / 2 + 0.05))[:2]
            _table(room, x, y, width, depth, yaw)
            x, y = (middle + normal * (depth + room.generator.uniform(0.2, 0.45)))[:2]
            _chair(room, x, y, yaw + room.generator.normal(0, 0.4))


def _meeting(room: Room) -> None:
    width, depth = room.generator.uniform((1.6, 0.9), (2.6, 1.2))
    if place := room.free_floor(width + 0.3, depth + 1.6, 0.0) or room.free_floor(width, depth + 1.2, 0.0):
        x, y = place
        _table(room, x, y, width, depth, 0.0)
        for row, yaw in ((1, 0.0), (-1, np.pi)):
            for shift in np.linspace(-width / 2 + 0.35, width / 2 - 0.35, int(width / 0.7)):
                out = depth / 2 + room.generator.uniform(0.1, 0.3)
                _chair(room, x + shift, y + row * out, yaw + room.generator.normal(0, 0.25))
    else:
        _office(room)


def _lounge(room: Room) -> None:
    _sofa(room)
    for _ in range(int(room.generator.integers(1, 4))):
        if place := room.free_floor(0.7, 0.7):
            _chair(room, *place, room.generator.uniform(0, 2 * np.pi))
    if place := room.free_floor(1.1, 0.7):
        _table(room, *place, 1.0, 0.6, 0.0)


RECIPES = {"office": _office, "conferenceRoom": _meeting, "lounge": _lounge}
# Classes a room may lack.
OPTIONAL = {
    "column": _column,
    "window": _window,
    "board": _board,
    "beam": _beam,
    "bookcase": _bookcase,
    "sofa": _sofa,
}
