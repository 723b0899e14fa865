"""Samples are balls: where their centres lie, and how a ball is cut out of a scene."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .batch import Sample, network_features
from .store import Scene
from .tiles import GridCloud


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


def rows_within(
    cloud: Scene | GridCloud, centre: np.ndarray, radius: float, max_points: int | None = None
) -> np.ndarray:
    """Rows of the points within `radius` of `centre`, ascending; of more than `max_points` only the nearest."""
    return cloud.index.within(cloud.points, centre, radius, max_points)


def rows_around(
    cloud: Scene | GridCloud, centre: np.ndarray, anchor: int, radius: float, max_points: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The centre and rows of a ball that contains the row `anchor`.

    Where noise or the cap on points would lose the anchor, the ball is centred on it instead.
    """
    rows = rows_within(cloud, centre, radius, max_points)
    if anchor not in rows:
        centre = cloud.points[anchor].astype(np.float64)
        rows = rows_within(cloud, centre, radius, max_points)
    return centre, rows


def make_sample(
    cloud: Scene | GridCloud, labels: np.ndarray, centre: np.ndarray, rows: np.ndarray, scene: int
) -> Sample:
    """The points `rows` of a cloud as a sample around `centre`, with `labels [n]`; `scene` is its number."""
    points = cloud.points.take(rows, axis=0)
    return Sample(
        feat=network_features(cloud.features.take(rows, axis=0), points[:, 2]),
        # In float64, and straight into the result.
        coord=np.subtract(points, centre, out=np.empty(points.shape, np.float32), casting="same_kind"),
        labels=labels.take(rows).astype(np.int64),
        rows=rows,
        scene=scene,
    )


class Potentials:
    """Where balls have been: a potential per block of a cloud, raised around every centre by a Tukey window (KPConv).

    It is that of the block's first point. The next ball goes where the potential is least, so that balls spread evenly.

    Args:
        cloud: the cloud; its blocks are those of its index.
        radius: radius of the balls.
        generator: breaks the ties of the start.
    """

    def __init__(self, cloud: Scene | GridCloud, radius: float, generator: np.random.Generator):
        self.cloud = cloud
        self.radius = radius
        self.values = generator.uniform(0, 1e-3, len(cloud.index.keys))

    def visit(self, centre: np.ndarray) -> None:
        """Raise the potentials around a ball's centre by `(1 - d² / R²)²`."""
        blocks = self.cloud.index.blocks(centre, self.radius)
        first = self.cloud.points[self.cloud.index.starts[blocks]]
        squared = ((first - centre) ** 2).sum(1)
        self.values[blocks] += np.maximum(1 - squared / self.radius**2, 0) ** 2


class BatchSampler:
    """The batches of consecutive epochs, as far as one of several processes takes them: `DataLoader` asks it for balls.

    W ranks with batches of b balls draw what one process draws with batches of W · b: of every such batch, rank r takes
    the r-th part.

    Args:
        scenes: scenes to cut from.
        radius: radius of the balls, metres.
        batch_size: balls a batch and rank.
        steps: batches of an epoch.
        seed: seed of the run.
        epochs: the epochs, at least one.
        rank: number of this process.
        world: number of processes.
        first_step: batches to leave out at the start of the first epoch, one that is resumed.

    Attributes:
        size: balls of all ranks together in a batch.
        own: which of them are this rank's.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        *,
        radius: float,
        batch_size: int,
        steps: int,
        seed: int,
        epochs: range,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
    ):
        if not 0 <= rank < world:
            raise UserError(f"rank must be at least 0 and less than world, got rank {rank} of {world}")
        if not 0 <= first_step <= steps:
            raise UserError(f"first_step must be at least 0 and at most steps, got {first_step} of {steps}")
        self.scenes, self.radius = scenes, radius
        self.steps, self.seed, self.epochs, self.first_step = steps, seed, epochs, first_step
        self.size = batch_size * world
        self.own = slice(rank * batch_size, (rank + 1) * batch_size)

    def __len__(self) -> int:
        return len(self.epochs) * self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Ball]]:
        first = self.first_step
        for epoch in self.epochs:
            for batch in self.draw((self.seed, epoch), first):
                yield batch[self.own]
            first = 0

    def draw(self, seed: tuple[int, int], first_step: int) -> Iterator[list[Ball]]:
        """The batches of one epoch, of all ranks together, from a step on. They are a function of the seed."""
        raise NotImplementedError


class BallSampler(BatchSampler):
    """Batches of independent balls that cover the scenes evenly.

    Potentials start anew every epoch, which makes an epoch a function of (seed, epoch) alone.

    Args:
        scenes: scenes to cut from, at least one.
        settings: the rest of what a `BatchSampler` takes.
    """

    def __init__(self, scenes: Sequence[Scene], **settings):
        if not scenes:
            raise UserError("no scenes to sample from, expected at least one")
        super().__init__(scenes, **settings)

    def draw(self, seed: tuple[int, int], first_step: int) -> Iterator[list[Ball]]:
        generator = np.random.default_rng([*seed, 0])
        potentials = [Potentials(scene, self.radius, generator) for scene in self.scenes]
        lowest = np.array([p.values.min() for p in potentials])
        for step in range(self.steps):
            batch = []
            for position in range(self.size):
                chosen = int(lowest.argmin())
                potential = potentials[chosen]
                first = self.scenes[chosen].index.starts[potential.values.argmin()]
                centre = near(self.scenes[chosen].points[first].astype(np.float64), self.radius, generator)
                potential.visit(centre)
                lowest[chosen] = potential.values.min()
                batch.append(Ball(chosen, centre, (*seed, step, position + 1)))  # 0 is the sampler itself
            if step >= first_step:
                yield batch


def cover(
    cloud: Scene | GridCloud,
    radius: float,
    votes: int,
    generator: np.random.Generator,
    max_points: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Balls that together see every point of a cloud at least `votes` times.

    Args:
        cloud: the cloud, n points.
        radius: radius of the balls.
        votes: how often every point is to be seen, at least 1.
        generator: source of randomness.
        max_points: most points a ball, the nearest to its centre.

    Yields:
        The centre `[3]` float64 and the ascending rows (int64) of each ball.
    """
    if votes < 1:
        raise UserError(f"votes must be at least 1, got {votes}")
    starts = cloud.index.starts
    potentials = Potentials(cloud, radius, generator)
    seen = np.zeros(len(cloud.points), np.int32)
    wanting = np.diff(starts)  # points of each block that want a vote
    while np.isfinite(potentials.values[block := potentials.values.argmin()]):
        # The anchor is a point that still wants a vote and gets one: the loop ends.
        anchor = int(starts[block] + seen[starts[block] : starts[block + 1]].argmin())
        centre = near(cloud.points[anchor].astype(np.float64), radius, generator)
        centre, rows = rows_around(cloud, centre, anchor, radius, max_points)
        potentials.visit(centre)
        seen[rows] += 1
        satisfied = rows[seen[rows] == votes]
        blocks, counts = np.unique(np.searchsorted(starts, satisfied, side="right") - 1, return_counts=True)
        wanting[blocks] -= counts
        potentials.values[blocks[wanting[blocks] == 0]] = np.inf
        yield centre, rows
