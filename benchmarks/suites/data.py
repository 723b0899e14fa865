"""From text to batches: preparing a room, opening clouds, and batches of four balls of 33,000 points each."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import kpconv_ops
from dsp_sparse.config import AugmentConfig, DataConfig
from dsp_sparse.data import SceneStore, prepare, s3dis, train_loader
from dsp_sparse.data.balls import Ball
from dsp_sparse.data.batch import Batch
from dsp_sparse.data.index import CELLS, BlockIndex
from dsp_sparse.data.rooms import generate_rooms
from dsp_sparse.data.store import Scene

from .. import inputs as made
from .. import peers, textbook_data
from ..measure import Call
from ..row import OURS, Contender, Row, Work
from .pyramid import LEVELS, RADIUS, level_summary, levels_differ

PLAIN = "scipy + numpy"
ROOMS = 4
BALLS = 4
REACH = 3.5  # metres: a ball of a room holds more than 33,000 points almost everywhere, the nearest are kept
LABELLED = 0.1
STEPS = 100_000  # more than are ever measured
STREAM = 0  # of the weak labels


def inputs(points: int) -> dict:
    return {"points": points}


def describe(inputs: dict) -> dict:
    return {
        "rooms": ROOMS,
        "cell": made.BALL_CELL,
        "balls": BALLS,
        "points a ball": made.BALL_POINTS,
        "levels": LEVELS,
    }


def rows(inputs: dict, device: str, with_peers: bool) -> list[Row]:
    task = Task(inputs["points"])
    return [
        batch_row("batch of balls", task, pairs=False),
        batch_row("batch of pairs", task, pairs=True),
        pyramid_row("batch of balls + pyramid", task, device),
        prepare_row(task),
        open_row(task),
        build_row(task),
    ]


class Task:
    """Rooms as text and as a store, in a temporary folder that is made when it is needed and goes with this object.

    Args:
        points: raw points a room.
    """

    def __init__(self, points: int):
        self.points = points
        self.augmentation = AugmentConfig()

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory(prefix="benchmarks-data-")

    @cached_property
    def raw(self) -> Path:
        return generate_rooms(Path(self.folder.name) / "raw", ROOMS, self.points, made.SEED, areas=1)

    @cached_property
    def store(self) -> SceneStore:
        return prepare(s3dis.scenes(self.raw), Path(self.folder.name) / "store", made.BALL_CELL, progress=False)

    @cached_property
    def labels(self) -> list[np.ndarray]:
        """A tenth of the labels of each scene."""
        generator = np.random.default_rng([made.SEED, STREAM])
        return [
            np.where(generator.random(scene.num_points) < LABELLED, scene.labels, -1) for scene in self.store.scenes
        ]

    @cached_property
    def clouds(self) -> list[textbook_data.Cloud]:
        """The same for the textbook: arrays in memory, with their trees."""
        return [
            textbook_data.Cloud(np.array(scene.points), np.array(scene.features), labels.astype(np.int64), REACH)
            for scene, labels in zip(self.store.scenes, self.labels, strict=True)
        ]

    def ready(self, call: Call) -> Callable[[], Call]:
        """A setup that has the store made before the call needs it."""

        def setup() -> Call:
            self.store  # noqa: B018
            return call

        return setup

    def ours(self, pairs: bool, scenes: list[Scene] | None = None) -> DataLoader:
        config = DataConfig(
            store=str(self.store.path),
            train_groups=["Area_1"],
            test_groups=[],
            radius=REACH,
            max_points=made.BALL_POINTS,
            batch_size=BALLS,
        )
        arguments = (scenes or self.store.scenes, self.labels, config, self.augmentation)
        return train_loader(*arguments, steps=STEPS, seed=made.SEED, epochs=range(1), pairs=pairs)

    def textbook(self, pairs: bool, clouds: list[textbook_data.Cloud] | None = None) -> textbook_data.Loader:
        kind = textbook_data.PairLoader if pairs else textbook_data.Loader
        return kind(clouds or self.clouds, REACH, made.BALL_POINTS, BALLS, self.augmentation, made.SEED)


# ---- batches


@dataclass
class Following:
    """A call for the next batch. It holds the task, and with it the folder that the batches are read from."""

    task: Task
    batches: Iterator

    def __call__(self):
        return next(self.batches)


class Batches:
    """Both loaders, and one batch of each for the same balls, since each of them puts its own where it likes."""

    def __init__(self, task: Task, pairs: bool):
        self.task, self.pairs = task, pairs

    def ours(self) -> Call:
        return Following(self.task, iter(self.task.ours(self.pairs)))

    def textbook(self) -> Call:
        return Following(self.task, iter(self.task.textbook(self.pairs)))

    @cached_property
    def same(self) -> tuple:
        """The first batch of ours, and of the textbook the balls that ours asked for."""
        loader = self.task.ours(self.pairs)
        asked = next(iter(loader.batch_sampler))
        ours = loader.collate_fn([loader.dataset[ball] for ball in asked])
        requests = [(ball.scene, ball.centre, ball.seed, ball.anchor) for ball in asked]
        textbook = self.task.textbook(self.pairs)
        textbook.ordered = True
        return ours, textbook.batch(requests)

    def work(self) -> Work:
        return work(self.same[0])


def work(batch: Batch) -> Work:
    """Every array of a batch read and written once."""
    return Work(0, 2 * sum(each.nbytes for each in (batch.input.feat, batch.input.coord, batch.labels, batch.rows)))


def arrays(batch: Batch) -> tuple[Tensor, ...]:
    return batch.input.coord, batch.input.feat, batch.labels, batch.rows, batch.input.offsets.diff()


def textbook_arrays(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(batch[name] for name in ("coord", "feat", "labels", "rows", "lengths"))


def batch_row(name: str, task: Task, pairs: bool) -> Row:
    batches = Batches(task, pairs)

    contenders = [
        Contender(OURS, batches.ours, plain=lambda _: arrays(batches.same[0]), on_cpu=True),
        Contender(PLAIN, batches.textbook, plain=lambda _: textbook_arrays(batches.same[1]), on_cpu=True),
    ]
    return Row(name, batches.work, contenders, tolerance=1e-4, whole_process=True, amount=1, unit="batches/s")


def pyramid_row(name: str, task: Task, device: str) -> Row:
    batches = Batches(task, pairs=False)

    def ours(batch) -> kpconv_ops.Pyramid:
        packed = batch.to(device).input
        return kpconv_ops.pyramid(packed.coord, packed.offsets, made.BALL_CELL, LEVELS, RADIUS)

    def textbook(batch) -> list:
        return textbook_data.pyramid(batch, made.BALL_CELL, LEVELS, RADIUS, peers.threads())

    def setup(following: Callable[[], Call], pyramid) -> Callable[[], Call]:
        def made_ready():
            batch = following()
            return lambda: pyramid(batch())

        return made_ready

    contenders = [
        Contender(
            OURS,
            setup(batches.ours, ours),
            plain=lambda _: [level_summary(level) for level in ours(batches.same[0]).levels],
        ),
        Contender(
            PLAIN,
            setup(batches.textbook, textbook),
            plain=lambda _: padded_summary(textbook(batches.same[1])),
            on_cpu=True,
        ),
    ]
    return Row(name, batches.work, contenders, difference=levels_differ, whole_process=True, amount=1, unit="batches/s")


def padded_summary(balls: list[list[tuple]]) -> list[tuple[Tensor, Tensor]]:
    """Of each level its points, and how many neighbours and pooled points they have in all."""

    def filled(matrices: list[np.ndarray | None], supports: list[np.ndarray]) -> int:
        pairs = zip(matrices, supports, strict=True)
        return sum(int((matrix < len(support)).sum()) for matrix, support in pairs if matrix is not None)

    levels = [list(parts) for parts in zip(*balls, strict=True)]
    finer = [None, *levels]
    summaries = []
    for parts, below in zip(levels, finer, strict=False):
        points = [part[0] for part in parts]
        neighbors = filled([part[1] for part in parts], points)
        pooled = filled([part[2] for part in parts], [part[0] for part in below]) if below else 0
        summaries.append((torch.from_numpy(np.concatenate(points)), torch.tensor([neighbors, pooled])))
    return summaries


# ---- before the first batch


def prepare_row(task: Task) -> Row:
    """A room as text to arrays on the disk."""
    number = itertools.count()

    def room():
        dataset = s3dis.scenes(task.raw)
        return dataset, dataset.scenes[0]

    def fresh() -> Path:
        return Path(task.folder.name) / f"prepared-{next(number)}"

    def ours():
        dataset, scene = room()
        alone = type(dataset)(dataset.name, dataset.root, dataset.classes, dataset.features, [scene])

        def call():
            store = prepare(alone, fresh(), made.BALL_CELL, progress=False)
            return store.scenes[0].folder

        return call

    def textbook():
        _, scene = room()

        def call():
            out = fresh()
            out.mkdir()
            textbook_data.prepare(scene.source, out, made.BALL_CELL, s3dis.CLASSES)
            return out

        return call

    def work() -> Work:
        return Work(0, sum(path.stat().st_size for path in room()[1].source.rglob("*.txt")))

    contenders = [
        Contender(OURS, ours, plain=at_original_points, on_cpu=True),
        Contender(PLAIN, textbook, plain=at_original_points, on_cpu=True),
    ]
    return Row("prepare a room", work, contenders, amount=task.points, unit="points/s")


def at_original_points(folder: Path) -> tuple[Tensor, ...]:
    """What the grid has at each original point, whatever the order of the grid points."""
    inverse = np.load(folder / "inverse.npy")
    grid = [np.load(folder / f"{name}.npy")[inverse] for name in ("points", "features", "labels")]
    original = np.load(folder / "original_labels.npy")
    return tuple(torch.from_numpy(array.astype(kind)) for array, kind in zip((*grid, original), "ffll", strict=True))


def open_row(task: Task) -> Row:
    """From files to a ball in the middle of each room: arrays and index are mapped, clouds and trees unpickled."""

    def centres() -> list[np.ndarray]:
        return [scene.points.mean(axis=0, dtype=np.float64) for scene in task.store.scenes]

    def ours():
        asked = [Ball(number, centre, (number,)) for number, centre in enumerate(centres())]

        def call():
            loader = task.ours(pairs=False, scenes=SceneStore.open(task.store.path).scenes)
            return loader.collate_fn([loader.dataset[ball] for ball in asked])

        return call

    def textbook():
        requests = [(number, centre, (number,), None) for number, centre in enumerate(centres())]
        path = Path(task.folder.name) / "clouds.pickle"
        textbook_data.save(task.clouds, path)

        def call():
            loader = task.textbook(pairs=False, clouds=textbook_data.load(path))
            loader.ordered = True
            return loader.batch(requests)

        return call

    contenders = [
        Contender(OURS, ours, plain=arrays, on_cpu=True),
        Contender(PLAIN, textbook, plain=textbook_arrays, on_cpu=True),
    ]
    # Of the files, what the balls are made of could be all that is read.
    return Row("open, a ball of each room", lambda: work(ours()()), contenders, tolerance=1e-4)


def build_row(task: Task) -> Row:
    """The index of a room, with the points in its order, and a tree."""

    def points() -> np.ndarray:
        scene = task.store.scenes[0]
        order = np.random.default_rng(made.SEED).permutation(scene.num_points)
        return np.array(scene.points)[order]

    def ours():
        cloud = points()

        def call():
            order, index = BlockIndex.build(cloud, CELLS * made.BALL_CELL)
            return order, cloud[order], index

        return call

    def textbook():
        cloud = points()
        return lambda: textbook_data.cKDTree(cloud)

    places = np.random.default_rng(made.SEED).uniform(0, 3, (8, 3))

    def found(built) -> tuple[Tensor, ...]:
        order, cloud, index = built
        return tuple(torch.from_numpy(np.sort(order[index.within(cloud, place, 1.0)])) for place in places)

    def found_by_tree(tree) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(sorted(tree.query_ball_point(place, 1.0))) for place in places)

    contenders = [
        Contender(OURS, ours, plain=found, on_cpu=True),
        Contender(PLAIN, textbook, plain=found_by_tree, on_cpu=True),
    ]
    return Row("index of a room", lambda: Work(0, task.store.scenes[0].points.nbytes), contenders, tolerance=0)
