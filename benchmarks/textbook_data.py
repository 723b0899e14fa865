"""Loading clouds as one would write it in plain numpy and scipy: what `dsp_sparse.data` is compared with.

The plan is that of the code released with KPConv: text read by `numpy.loadtxt`, clouds and their k-d trees in files of
`pickle`, potentials on a coarse copy of a cloud, a loop over the samples of a batch. What that code has in C++ is
plain Python here: the subsampling is `numpy.unique`, and the pyramid's neighbours are scipy's lists, copied row by row
into padded matrices. The work is that of ours, down to the numbers drawn, and nothing is slow on purpose.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from dsp_sparse.config import AugmentConfig

from . import textbook

Request = tuple[int, np.ndarray, tuple[int, ...], int | None]  # cloud, centre, seed of the augmentation, anchor


class Cloud:
    """A cloud in memory, with a tree of its points and one of the places that balls are centred at.

    Args:
        points: `[n, 3]` float32.
        features: `[n, F]` float32.
        labels: `[n]` int64, -1 where unlabelled.
        radius: of the balls.
    """

    def __init__(self, points: np.ndarray, features: np.ndarray, labels: np.ndarray, radius: float):
        self.points, self.features, self.labels = points, features, labels
        self.tree = cKDTree(points)
        self.places = cKDTree(textbook.numpy_subsample(points, None, None, radius / 10))


def save(clouds: list[Cloud], path: Path) -> None:
    """Write clouds with their trees, which need not be made anew."""
    path.write_bytes(pickle.dumps(clouds, pickle.HIGHEST_PROTOCOL))


def load(path: Path) -> list[Cloud]:
    """Clouds that were saved."""
    return pickle.loads(path.read_bytes())


class Loader:
    """Batches of independent balls; iterates without end.

    Args:
        clouds: the clouds.
        radius: of the balls.
        max_points: most points a ball, the nearest to its centre.
        batch_size: balls a batch.
        augmentation: settings of the augmentation.
        seed: seed.
    """

    def __init__(
        self,
        clouds: list[Cloud],
        radius: float,
        max_points: int,
        batch_size: int,
        augmentation: AugmentConfig,
        seed: int,
    ):
        self.clouds, self.radius, self.max_points, self.batch_size = clouds, radius, max_points, batch_size
        self.augmentation = augmentation
        self.generator = np.random.default_rng(seed)
        self.potentials = [self.generator.uniform(0, 1e-3, cloud.places.n) for cloud in clouds]
        self.step = 0
        self.ordered = False  # whether the points of a ball are in the order of the cloud's, for comparisons

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield self.batch(self.requests())

    def requests(self) -> list[Request]:
        """The balls of the next batch, where potentials are least."""
        self.step += 1
        return [(*self.place(), (self.step, position), None) for position in range(self.batch_size)]

    def place(self) -> tuple[int, np.ndarray]:
        chosen = int(np.argmin([potentials.min() for potentials in self.potentials]))
        places, potentials = self.clouds[chosen].places, self.potentials[chosen]
        centre = self.near(places.data[potentials.argmin()])
        rows = places.query_ball_point(centre, self.radius)
        squared = np.sum((places.data[rows] - centre) ** 2, axis=1)
        potentials[rows] += (1 - squared / self.radius**2) ** 2
        return chosen, centre

    def near(self, point: np.ndarray) -> np.ndarray:
        return point + self.generator.normal(0, self.radius / 10, 3)

    def batch(self, requests: list[Request]) -> dict[str, torch.Tensor]:
        """Cut, augment and pack the balls asked for: `coord`, `feat`, `labels`, `rows` and `lengths`."""
        samples = [self.sample(*request) for request in requests]
        packed = {name: torch.from_numpy(np.concatenate([sample[name] for sample in samples])) for name in samples[0]}
        return {**packed, "lengths": torch.tensor([len(sample["rows"]) for sample in samples])}

    def sample(self, number: int, centre: np.ndarray, seed: tuple[int, ...], anchor: int | None):
        cloud = self.clouds[number]
        rows = self.crop(cloud, centre)
        if anchor is not None and anchor not in rows:
            centre = cloud.points[anchor].astype(np.float64)
            rows = self.crop(cloud, centre)
        points = cloud.points[rows]
        feat = np.hstack([np.ones((len(rows), 1)), cloud.features[rows], points[:, 2:]]).astype(np.float32)
        coord, feat = self.augmented((points - centre).astype(np.float32), feat, np.random.default_rng(seed))
        return {"coord": coord, "feat": feat, "labels": cloud.labels[rows], "rows": rows}

    def crop(self, cloud: Cloud, centre: np.ndarray) -> np.ndarray:
        rows = np.array(cloud.tree.query_ball_point(centre, self.radius), dtype=np.int64)
        if len(rows) > self.max_points:
            away = cloud.points[rows] - centre
            squared = np.einsum("ij,ij->i", away, away)
            rows = rows[np.argpartition(squared, self.max_points)[: self.max_points]]
        return np.sort(rows) if self.ordered else rows

    def augmented(self, coord: np.ndarray, feat: np.ndarray, generator: np.random.Generator):
        config = self.augmentation
        angle = generator.uniform(0, 2 * np.pi)
        scale = generator.uniform(config.scale_min, config.scale_max, 3)
        mirror, drop = generator.random() < 0.5, generator.random() < config.feature_drop
        cos, sin = np.cos(angle), np.sin(angle)
        coord = coord @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]).T * scale
        if mirror:
            coord[:, 0] *= -1
        coord = coord + config.jitter * generator.standard_normal(coord.shape, np.float32)
        feat[:, -1] *= scale[2]
        if drop:
            feat[:, 1:-1] = 0
        return coord.astype(np.float32), feat


class PairLoader(Loader):
    """Batches of pairs that share a labelled class, each from two clouds."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.labelled = [
            {label: np.flatnonzero(cloud.labels == label) for label in np.unique(cloud.labels[cloud.labels >= 0])}
            for cloud in self.clouds
        ]
        found = [label for rows in self.labelled for label in rows]
        self.classes = sorted({label for label in found if found.count(label) > 1})

    def requests(self) -> list[Request]:
        self.step += 1
        requests = []
        for _ in range(self.batch_size // 2):
            label = self.generator.choice(self.classes)
            having = [number for number, rows in enumerate(self.labelled) if label in rows]
            for number in self.generator.choice(having, 2, replace=False):
                anchor = self.generator.choice(self.labelled[number][label])
                centre = self.near(self.clouds[number].points[anchor].astype(np.float64))
                requests.append((number, centre, (self.step, len(requests)), anchor))
        return requests


def pyramid(batch: dict[str, torch.Tensor], cell: float, levels: int, radius: float, workers: int) -> list[list[tuple]]:
    """For each sample its levels as `textbook.pyramid` gives them, but neighbourhoods in rows of a padded matrix."""
    balls = [ball.numpy() for ball in batch["coord"].split(batch["lengths"].tolist())]
    return [_levels(ball, cell, levels, radius, workers) for ball in balls]


def _levels(points: np.ndarray, cell: float, levels: int, radius: float, workers: int) -> list[tuple]:
    clouds = [points]
    for level in range(1, levels):
        clouds.append(textbook.numpy_subsample(clouds[-1], None, None, cell * 2**level))
    trees = [cKDTree(cloud) for cloud in clouds]
    made, pools = [], None
    for level, (cloud, tree) in enumerate(zip(clouds, trees, strict=True)):
        reach = radius * cell * 2**level
        neighbors = padded_neighbors(tree, cloud, reach, workers)
        if level + 1 < levels:
            upsamples = trees[level + 1].query(cloud, workers=workers)[1]
            made.append((cloud, neighbors, pools, upsamples))
            pools = padded_neighbors(tree, clouds[level + 1], reach, workers)
        else:
            made.append((cloud, neighbors, pools, None))
    return made


def padded_neighbors(tree: cKDTree, queries: np.ndarray, radius: float, workers: int) -> np.ndarray:
    """`[M, H]` rows within `radius` of each query; empty places hold the number of points of the tree."""
    hoods = tree.query_ball_point(queries, radius, workers=workers)
    matrix = np.full((len(queries), max(map(len, hoods))), tree.n, dtype=np.int64)
    for row, hood in enumerate(hoods):
        matrix[row, : len(hood)] = hood
    return matrix


def prepare(room: Path, out: Path, cell: float, classes: list[str]) -> None:
    """Read a room of S3DIS, subsample it and write its arrays: what is left of it, and the way back."""
    coordinates, colours, labels = [], [], []
    for path in sorted((room / "Annotations").glob("*.txt")):
        values = np.loadtxt(path, ndmin=2)
        coordinates.append(values[:, :3])
        colours.append((values[:, 3:] / 255).astype(np.float32))
        labels.append(np.full(len(values), classes.index(path.stem.rsplit("_", 1)[0])))
    coordinates, labels = np.concatenate(coordinates), np.concatenate(labels)
    found = textbook.numpy_subsample(coordinates - coordinates.min(axis=0), np.concatenate(colours), labels, cell)
    for name, array in zip(("points", "features", "labels", "inverse"), found, strict=True):
        np.save(out / f"{name}.npy", array)
    np.save(out / "original_labels.npy", labels)
