"""The index that balls are cut out of a cloud with: its points, sorted into cubic blocks of grid cells."""

from dataclasses import dataclass

import numpy as np

# Edge of a block in grid cells. Smaller blocks waste fewer distances on the surface of a ball, and are more to visit.
CELLS = 5


@dataclass(frozen=True, eq=False)
class BlockIndex:
    """K occupied blocks, and the rows of the cloud that lie in each; the cloud's rows are in the order of the blocks.

    Block (x, y, z) has the key `(x * ny + y) * nz + z`. What a query reads of a cloud is a few ranges of rows, so a
    memory-mapped cloud is read where the ball lies and nowhere else.

    Args:
        low: `[3]` float64, the corner of block (0, 0, 0).
        edge: edge of a block, metres.
        shape: nx, ny, nz.
        keys: `[K]` int64, ascending.
        starts: `[K + 1]` int64; block k holds the rows `starts[k]` to `starts[k + 1]`, at least one. `starts[:-1]` are
            representatives of the blocks: rows spread evenly over the cloud.
    """

    low: np.ndarray
    edge: float
    shape: tuple[int, int, int]
    keys: np.ndarray
    starts: np.ndarray

    @classmethod
    def build(cls, points: np.ndarray, edge: float) -> tuple[np.ndarray, "BlockIndex"]:
        """Sort points into blocks.

        Args:
            points: `[n, 3]`, at least one.
            edge: edge of a block.

        Returns:
            order: `[n]` int64, the row of `points` that each row of the sorted cloud is; rows of a block keep theirs.
            index: the index of `points[order]`.
        """
        points = points.astype(np.float64)
        low = np.floor(points.min(0) / edge) * edge
        blocks = ((points - low) / edge).astype(np.int64)
        shape = tuple((blocks.max(0) + 1).tolist())
        keys = _key(blocks, shape)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        return order, cls(low, edge, shape, keys[first], np.append(first, len(keys)))

    def within(
        self, points: np.ndarray, centre: np.ndarray, radius: float, max_points: int | None = None
    ) -> np.ndarray:
        """The rows within `radius` of `centre`.

        Args:
            points: `[n, 3]`, the cloud that the index belongs to.
            centre: `[3]`, anywhere.
            radius: not negative; distances are computed in float64, and one that equals it counts.
            max_points: of more rows than these only the nearest; of equally near ones the smaller row. None: all.

        Returns:
            `[m]` int64, ascending.
        """
        centre = np.asarray(centre, np.float64)
        blocks, nearest, farthest = self._touched(centre, radius)
        counts = self.starts[blocks + 1] - self.starts[blocks]
        if max_points is not None and counts.sum() > max_points:
            # Blocks that lie within some distance hold enough points: what is farther need not be looked at.
            order = farthest.argsort()
            enough = counts[order].cumsum().searchsorted(max_points)
            kept = nearest <= farthest[order[enough]] + 2 * self._slack
            blocks, counts = blocks[kept], counts[kept]
        rows = _ranges(self.starts[blocks], counts)
        squared = points.take(rows, axis=0) - centre
        squared *= squared
        squared = squared[:, 0] + squared[:, 1] + squared[:, 2]  # three times as fast as `sum(1)`
        inside = squared <= radius**2
        rows = rows[inside]
        if max_points is None or len(rows) <= max_points:
            return rows
        squared = squared[inside]
        farthest = np.partition(squared, max_points - 1)[max_points - 1]
        chosen = squared < farthest
        chosen[np.flatnonzero(squared == farthest)[: max_points - chosen.sum()]] = True
        return rows[chosen]

    def blocks(self, centre: np.ndarray, radius: float) -> np.ndarray:
        """The numbers (0 to K - 1, ascending, int64) of the blocks that a ball touches."""
        return self._touched(np.asarray(centre, np.float64), radius)[0]

    @property
    def _slack(self) -> float:
        # Points were assigned to blocks with rounding: a block is a little larger than it says.
        return 1e-6 * self.edge

    def _touched(self, centre: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The numbers of the blocks that a ball touches, and how far their nearest and farthest points may be."""
        centre, radius = centre - self.low, radius + self._slack
        _, ny, nz = self.shape
        low = np.clip((centre - radius) // self.edge, 0, np.array(self.shape) - 1).astype(np.int64)
        high = np.clip((centre + radius) // self.edge, -1, np.array(self.shape) - 1).astype(np.int64)
        # In a slab of equal x, the keys from the lowest to the highest block of the ball.
        slabs = np.arange(low[0], high[0] + 1) * ny
        first = np.searchsorted(self.keys, (slabs + low[1]) * nz + low[2])
        last = np.searchsorted(self.keys, (slabs + high[1]) * nz + high[2], side="right")
        found = _ranges(first, np.maximum(last - first, 0))
        columns, z = np.divmod(self.keys[found], nz)
        nearest, farthest = np.zeros((2, len(found)))
        for axis, middle in zip((*np.divmod(columns, ny), z), centre - self.edge / 2, strict=True):
            away = np.abs(axis * self.edge - middle)
            farthest += (away + self.edge / 2) ** 2
            nearest += np.maximum(away - self.edge / 2, 0) ** 2
        nearest, farthest = np.sqrt(nearest), np.sqrt(farthest)
        touched = nearest <= radius
        return found[touched], nearest[touched], farthest[touched]


def _key(blocks: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return (blocks[:, 0] * shape[1] + blocks[:, 1]) * shape[2] + blocks[:, 2]


def _ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """So many numbers from each `first[i]` on, one range after the other."""
    ends = lengths.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - lengths), lengths)
