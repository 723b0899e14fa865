"""From a stream of points to grid clouds: a cloud too large for memory is cut into tiles that overlap."""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from kpconv_ops import grid_subsample

from ..errors import UserError
from .dataset import RawCloud
from .index import CELLS, BlockIndex

# Most points of a tile's core, and its margin in grid cells.
TILE_POINTS = 8_000_000
OVERLAP = 50
# Tiles that hold so many times the points of their cloud, with their margins, are worth a warning.
HEAVY = 4
# Tiles are cut between columns of cells; these many bins a side are counted at a time, at most.
BINS = 2048
# Columns of cells a side that a cloud which is cut may have, at most.
COLUMNS = 2**40


@dataclass(frozen=True, eq=False)
class Tile:
    """A cloud, or a part of one: the core, which belongs to this tile alone, and a margin around it for context.

    Args:
        cloud: the points; the rows of the core come first.
        num_core: points of the core.
        rows: `[num_core]` int64, their rows in the whole cloud, ascending.
        origin: `[3]` float64, the minimum of the whole cloud.
        number: which tile this is, from 0.
        total: the number of tiles of the cloud.
    """

    cloud: RawCloud
    num_core: int
    rows: np.ndarray
    origin: np.ndarray
    number: int = 0
    total: int = 1

    @classmethod
    def whole(cls, cloud: RawCloud) -> "Tile":
        """A cloud that is its only tile."""
        return cls(cloud, len(cloud.points), np.arange(len(cloud.points)), cloud.points.min(0))


@dataclass(frozen=True, eq=False)
class GridCloud:
    """A tile subsampled on a grid: n grid points of the N points of its core, and of its margin.

    Args:
        origin: `[3]` float64, the minimum of the whole cloud; everything else is relative to it, so that float32 is
            exact enough for clouds in projected coordinates. z is the height above the lowest point.
        points: `[n, 3]` float32, barycentres of the occupied cells, in the order of the blocks.
        features: `[n, F]` float32, means over the cells, in [0, 1].
        labels: `[n]` int16, the most frequent label of the cell, -1 for none and in the margin.
        inverse: `[N]` int32, the grid point of every original point of the core.
        original_labels: `[N]` int16.
        index: the blocks of `points`, 5 x 5 x 5 cells each.
    """

    origin: np.ndarray
    points: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    inverse: np.ndarray
    original_labels: np.ndarray
    index: BlockIndex


def grid_cloud(tile: Tile, grid: float) -> GridCloud:
    """Subsample a tile with cells of `grid` metres that lie as in every other tile of its cloud.

    Raises:
        TooWideError: more cells than can be counted.
    """
    cloud, core = tile.cloud, tile.num_core
    try:
        # Core and margin are two samples on one lattice: no cell holds points of both.
        sub = grid_subsample(
            torch.from_numpy(cloud.points - tile.origin),
            torch.tensor([0, core, len(cloud.points)]),
            grid,
            features=torch.from_numpy(cloud.features),
            labels=torch.from_numpy(cloud.labels),
            origin=torch.zeros(2, 3, dtype=torch.float64),
        )
    except ValueError as error:  # more cells than 64-bit keys can number
        raise _too_wide(np.ptp(cloud.points, axis=0), grid) from error
    points, labels = sub.points.float().numpy(), sub.labels.short().numpy()
    labels[sub.offsets[1] :] = -1
    order, index = BlockIndex.build(points, CELLS * grid)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return GridCloud(
        origin=tile.origin,
        points=points[order],
        features=sub.features.numpy()[order],
        labels=labels[order],
        inverse=rank[sub.inverse[:core].numpy()],
        original_labels=cloud.labels[:core].astype(np.int16),
        index=index,
    )


class TooWideError(UserError):
    """A cloud of more cells than can be counted. Its message does not say which."""


def _too_wide(extent: np.ndarray, grid: float) -> TooWideError:
    return TooWideError(
        f"the cloud is {extent.tolist()} m wide, too wide for a grid of {grid} m; are the units metres?"
    )


def tiles(
    pieces: Iterable[RawCloud],
    *,
    grid: float,
    tile_points: int = TILE_POINTS,
    overlap: float | None = None,
    scratch: str | Path | None = None,
    dealt: Callable[[int], None] = lambda points: None,
) -> Iterator[Tile]:
    """Cut a cloud into tiles of at most `tile_points` points and their margins.

    A cloud that is not larger is one tile. Others are halved across the longer of their horizontal sides, between
    columns of grid cells, until no part holds more (a single column is never cut). Every point is in exactly one core.
    Memory is that of a piece and a tile, core and margin: where cores are small beside their margins, mostly of margin.
    So is the work then, of which a warning gives the figures before the first tile.
    What does not fit lies in unnamed files, which vanish with the process.

    Args:
        pieces: the cloud; at least one point.
        grid: cell size of the grid it will be subsampled on, metres.
        tile_points: most points of a core.
        overlap: width of the margins, metres; None: 50 cells.
        scratch: folder for the unnamed files, with room for some 40 bytes a point, and as much again for every tile
            that the point is in; None: that of the system.
        dealt: of a cloud that is cut, called with so many points whenever they have been dealt out to their tiles,
            between the last piece and the first tile.

    Raises:
        UserError: `tile_points` below 1 or a negative overlap; a `TooWideError` for a cloud of too many cells.
    """
    require_tiling(tile_points, overlap)
    kept, total, pieces = [], 0, iter(pieces)
    for piece in pieces:
        kept.append(piece)
        total += len(piece.points)
        if total > tile_points:
            margin = OVERLAP if overlap is None else int(np.ceil(min(overlap / grid, COLUMNS)))
            del piece  # the list alone holds it
            yield from _cut(chain(_drain(kept), pieces), grid, tile_points, margin, scratch, dealt)
            return
    del piece
    yield Tile.whole(_join(_drain(kept), total))


def require_tiling(tile_points: int, overlap: float | None) -> None:
    """Raise a UserError unless clouds can be cut into such tiles."""
    if tile_points < 1:
        raise UserError(f"tile_points must be at least 1, got {tile_points}")
    if overlap is not None and not 0 <= overlap < np.inf:
        raise UserError(f"overlap must be a number of metres from 0, got {overlap}")


def _drain(kept: list[RawCloud]) -> Iterator[RawCloud]:
    """The elements of a list, which is emptied on the way."""
    kept.reverse()
    while kept:
        yield kept.pop()


def _join(pieces: Iterator[RawCloud], total: int) -> RawCloud:
    """One cloud of `total` points, in memory for it and for the pieces not yet taken."""
    first = next(pieces)
    whole = RawCloud(
        np.empty((total, 3)), np.empty((total, first.features.shape[1]), np.float32), np.empty(total, np.int64)
    )
    end = 0
    for piece in chain([first], pieces):
        begin, end = end, end + len(piece.points)
        whole.points[begin:end], whole.features[begin:end] = piece.points, piece.features
        whole.labels[begin:end] = piece.labels
    return whole


def _cut(
    pieces: Iterable[RawCloud],
    grid: float,
    tile_points: int,
    margin: int,
    scratch: str | Path | None,
    dealt: Callable[[int], None],
) -> Iterator[Tile]:
    with tempfile.TemporaryFile(dir=scratch) as first_file, tempfile.TemporaryFile(dir=scratch) as second_file:
        arrived, by_tile = _Spool(first_file), _Spool(second_file)
        low, high, places = np.full(3, np.inf), np.full(3, -np.inf), []
        for piece in pieces:
            low, high = np.minimum(low, piece.points.min(0)), np.maximum(high, piece.points.max(0))
            places.append(arrived.write(piece.points, piece.features, piece.labels.astype(np.int16)))
        if not ((high - low) / grid < COLUMNS).all():
            raise _too_wide(high - low, grid)

        def columns(points: np.ndarray) -> np.ndarray:
            """The column of each point: the arithmetic of `grid_subsample`, so that a cut is a face of its cells."""
            return ((points[:, :2] - low[:2]) / grid).astype(np.int64)

        everything = _Box(np.zeros(2, np.int64), columns(high[None])[0] + 1)
        boxes = list(_boxes(everything, lambda: (columns(arrived.read(place, 0)) for place in places), tile_points))
        cores, margins = ([[] for _ in boxes] for _ in range(2))
        begin = 0
        for place in places:
            arrays = [arrived.read(place, i) for i in range(3)]
            arrays.append(np.arange(begin, begin + len(arrays[0])))
            begin += len(arrays[0])
            of_piece = columns(arrays[0])
            for number, box in enumerate(boxes):
                core = box.holds(of_piece)
                for mine, to in ((core, cores), (box.holds(of_piece, margin) & ~core, margins)):
                    if mine.any():
                        to[number].append(by_tile.write(*(array[mine] for array in arrays)))
            dealt(len(of_piece))

        held = sum(by_tile.length(part) for tile in (*cores, *margins) for part in tile)
        if held > HEAVY * begin:
            warnings.warn(
                f"the {len(boxes)} tiles of a cloud of {begin:,} points hold {held / begin:.0f} times as many, because "
                f"of their margins of {margin * grid:g} m; larger tiles or a smaller overlap are less work",
                stacklevel=3,
            )

        def tile(number: int) -> Tile:
            parts = cores[number] + margins[number]
            cloud = _join(
                (RawCloud(*(by_tile.read(part, i) for i in range(3))) for part in parts),
                sum(by_tile.length(part) for part in parts),
            )
            rows = np.concatenate([by_tile.read(part, 3) for part in cores[number]])
            return Tile(cloud, len(rows), rows, low, number, len(boxes))

        for number in range(len(boxes)):
            yield tile(number)  # nothing here holds it: there is one in memory at a time


@dataclass(frozen=True, eq=False)
class _Box:
    """A rectangle of columns of grid cells.

    Args:
        first: `[2]` int64, its lowest column.
        last: `[2]` int64, beyond its highest column.
    """

    first: np.ndarray
    last: np.ndarray

    def holds(self, columns: np.ndarray, margin: int = 0) -> np.ndarray:
        """`[N]` bool, which of the columns `[N, 2]` are inside or at most `margin` away."""
        return ((columns >= self.first - margin) & (columns < self.last + margin)).all(1)


def _boxes(box: _Box, pieces: Callable[[], Iterable[np.ndarray]], most: int) -> Iterator[_Box]:
    """Boxes that hold at most `most` points each, or are a single column; together every point of `box`.

    Args:
        box: what to cut.
        pieces: gives the columns of all points, `[N, 2]` int64 at a time.
        most: most points of a box.
    """
    width = int((box.last - box.first).max() - 1) // BINS + 1
    shape = (box.last - box.first - 1) // width + 1
    counts = np.zeros(shape, np.int64)
    for columns in pieces():
        bins = (columns[box.holds(columns)] - box.first) // width
        counts += np.bincount(np.ravel_multi_index(tuple(bins.T), shape), minlength=counts.size).reshape(shape)
    for first, last, points in _halve(counts, most):
        part = _Box(box.first + first * width, np.minimum(box.first + last * width, box.last))
        if points > most and width > 1:  # one bin: counted again, with finer ones
            yield from _boxes(part, pieces, most)
        else:
            yield part


def _halve(
    counts: np.ndarray, most: int, corner: np.ndarray | tuple[int, int] = (0, 0)
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Boxes of bins that hold at most `most` points each or are one bin, and all occupied bins together.

    Of each the first bin, the one beyond the last, and the points.
    """
    occupied = [np.flatnonzero(counts.any(axis)) for axis in (1, 0)]
    first, last = (np.array([o[i] for o in occupied]) for i in (0, -1))
    counts = counts[first[0] : last[0] + 1, first[1] : last[1] + 1]
    corner = first + corner
    axis = int(counts.shape[1] > counts.shape[0])
    sums = counts.sum(1 - axis).cumsum()
    if sums[-1] <= most or counts.shape[axis] == 1:
        yield corner, corner + counts.shape, int(sums[-1])
        return
    # The face that comes nearest to halving the points; both sides hold some.
    cut = int(np.abs(2 * sums[:-1] - sums[-1]).argmin()) + 1
    sides = np.split(counts, [cut], axis)
    shift = np.array([cut, 0] if axis == 0 else [0, cut])
    yield from _halve(sides[0], most, corner)
    yield from _halve(sides[1], most, corner + shift)


class _Spool:
    """Arrays in an unnamed file."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def write(self, *arrays: np.ndarray) -> list[tuple[int, np.dtype, tuple[int, ...]]]:
        """Append arrays; returns what `read` takes."""
        place = []
        for array in arrays:
            place.append((self.file.tell(), array.dtype, array.shape))
            self.file.write(np.ascontiguousarray(array).data)
        return place

    def length(self, place: list[tuple[int, np.dtype, tuple[int, ...]]]) -> int:
        """Rows of the arrays of one `write`."""
        return place[0][2][0]

    def read(self, place: list[tuple[int, np.dtype, tuple[int, ...]]], which: int) -> np.ndarray:
        """One of the arrays of one `write`."""
        position, dtype, shape = place[which]
        array = np.empty(shape, dtype)
        self.file.flush()
        self.file.seek(position)
        self.file.readinto(array.reshape(-1).view(np.uint8))
        return array
