"""Samples are balls: where their centres lie, and how a ball is cut out of a scene."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ..errors import UserError
from .batch import Sample, network_features
from .store import GridCloud, Scene


@dataclass(frozen=True, eq=False)
class Ball:
    """A request for one sample.

    Args:
        scene: position of the scene in the list that the sampler was given.
        centre: `[3]` float64, in the scene's coordinates.
        seed: what its augmentation is drawn from.
        anchor: a row of the scene that the sample must contain; None: no such row.
    """

    scene: int
    centre: np.ndarray
    seed: tuple[int, ...]
    anchor: int | None = None


def near(point: np.ndarray, radius: float, generator: np.random.Generator) -> np.ndarray:
    """A centre for a ball about `point`, moved by normal noise of standard deviation `radius / 10` (KPConv)."""
    return point + generator.normal(0, radius / 10, 3)


def rows_within(tree: cKDTree, centre: np.ndarray, radius: float, max_points: int | None = None) -> np.ndarray:
    """Rows of the points within `radius` of `centre`, ascending; of more than `max_points` only the nearest."""
    rows = np.array(tree.query_ball_point(centre, radius, return_sorted=True), dtype=np.int64)
    if max_points is not None and len(rows) > max_points:
        distances = ((tree.data[rows] - centre) ** 2).sum(1)
        rows = np.sort(rows[np.argsort(distances, kind="stable")[:max_points]])
    return rows


def rows_around(
    tree: cKDTree, centre: np.ndarray, anchor: int, radius: float, max_points: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The centre and rows of a ball that contains the row `anchor`.

    Where noise or the cap on points would lose the anchor, the ball is centred on it instead.
    """
    rows = rows_within(tree, centre, radius, max_points)
    if anchor not in rows:
        centre = tree.data[anchor]
        rows = rows_within(tree, centre, radius, max_points)
    return centre, rows


def make_sample(
    cloud: Scene | GridCloud, labels: np.ndarray, centre: np.ndarray, rows: np.ndarray, scene: int
) -> Sample:
    """The points `rows` of a cloud as a sample around `centre`, with `labels [n]`; `scene` is its index."""
    points = np.asarray(cloud.points[rows])
    return Sample(
        feat=network_features(cloud.features[rows], points[:, 2]),
        coord=(points - centre).astype(np.float32),
        labels=np.asarray(labels[rows], dtype=np.int64),
        rows=rows,
        scene=scene,
    )


class Potentials:
    """Where balls have been: a potential per point, raised around every centre by a Tukey window (KPConv).

    The next centre is the point of least potential, so that balls spread evenly.

    Args:
        tree: search tree over the points that may become centres.
        radius: radius of the balls.
        generator: breaks the ties of the start.
    """

    def __init__(self, tree: cKDTree, radius: float, generator: np.random.Generator):
        self.tree = tree
        self.radius = radius
        self.values = generator.uniform(0, 1e-3, tree.n)

    def visit(self, centre: np.ndarray) -> None:
        """Raise the potentials around a ball's centre by `(1 - d² / R²)²`."""
        rows = np.array(self.tree.query_ball_point(centre, self.radius), dtype=np.int64)
        squared = ((self.tree.data[rows] - centre) ** 2).sum(1)
        self.values[rows] += (1 - squared / self.radius**2) ** 2


class BallSampler:
    """Batches of independent balls that cover the scenes evenly: a batch sampler for a `DataLoader`.

    Potentials start anew every epoch, which makes an epoch a function of (seed, epoch) alone.

    Args:
        scenes: scenes to cut from, at least one.
        radius: radius of the balls, metres.
        batch_size: balls a batch.
        steps: batches.
        seed: seed of the run.
        epoch: epoch of the run.
    """

    def __init__(self, scenes: Sequence[Scene], *, radius: float, batch_size: int, steps: int, seed: int, epoch: int):
        if not scenes:
            raise UserError("no scenes to sample from, expected at least one")
        self.scenes, self.radius, self.batch_size, self.steps = scenes, radius, batch_size, steps
        self.seed = (seed, epoch)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Ball]]:
        generator = np.random.default_rng([*self.seed, 0])
        potentials = [Potentials(scene.centres, self.radius, generator) for scene in self.scenes]
        lowest = np.array([p.values.min() for p in potentials])
        for step in range(self.steps):
            batch = []
            for position in range(self.batch_size):
                chosen = int(lowest.argmin())
                potential = potentials[chosen]
                centre = near(potential.tree.data[potential.values.argmin()], self.radius, generator)
                potential.visit(centre)
                lowest[chosen] = potential.values.min()
                batch.append(Ball(chosen, centre, (*self.seed, step, position + 1)))  # 0 is the sampler itself
            yield batch


def cover(
    points: np.ndarray,
    radius: float,
    votes: int,
    generator: np.random.Generator,
    max_points: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Balls that together see every point at least `votes` times.

    Args:
        points: `[n, 3]`, distinct.
        radius: radius of the balls.
        votes: how often every point is to be seen, at least 1.
        generator: source of randomness.
        max_points: most points a ball, the nearest to its centre.

    Yields:
        The centre `[3]` float64 and the ascending rows (int64) of each ball.
    """
    if votes < 1:
        raise UserError(f"votes must be at least 1, got {votes}")
    tree = cKDTree(points)
    potentials = Potentials(tree, radius, generator)
    seen = np.zeros(len(points), np.int64)
    while (wanting := np.flatnonzero(seen < votes)).size:
        # The anchor is a point that still wants a vote and gets one: the loop ends.
        anchor = wanting[potentials.values[wanting].argmin()]
        centre, rows = rows_around(tree, near(tree.data[anchor], radius, generator), anchor, radius, max_points)
        potentials.visit(centre)
        seen[rows] += 1
        yield centre, rows
