"""The pyramid of a KPConv network: every level's points, neighbourhoods, pools and upsampling, in one call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import check_count, check_length, check_points, check_positive, check_row_count
from ._grid import Extent
from ._search import Supports, radius_grid
from .neighbors import Neighbors, edge_counts
from .subsample import cell_grid, grid_cells
from .upsample import Upsampling


@dataclass(frozen=True, eq=False)
class PyramidLevel:
    """One resolution."""

    points: Tensor  # [M, 3]
    offsets: Tensor  # [B + 1] int64
    neighbors: Neighbors  # of the points among themselves
    pools: Neighbors | None  # of the points among those of the next finer level; None at the finest
    upsamples: Upsampling | None  # the nearest point of the next coarser level; None at the coarsest


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Levels, finest first."""

    levels: list[PyramidLevel]


def pyramid(
    points: Tensor, offsets: Tensor, cell_size: float, num_levels: int, radius: float | list[float] = 2.5
) -> Pyramid:
    """What a KPConv network (Thomas et al. 2019) needs to know of its points, level by level.

    Level l + 1 is level l subsampled by a grid of cells `cell_size * 2^(l + 1)`. Radii are in cells of the level,
    `cell_size * 2^l`; pools search with the radius of the finer level. Equal to `grid_subsample`, `radius_search` and
    `nearest` one after the other, with the grids and sorted points shared among them. No gradient flows to coordinates.

    Args:
        points: `[N, 3]` float32 or float64.
        offsets: `[B + 1]` int64, rising from 0 to N; samples may be empty.
        cell_size: edge length of the grid that the points were subsampled with, in the unit of the points.
        num_levels: levels, that of the points included.
        radius: radius of the neighbourhoods in cells; one for all levels or one for each.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe N rows, a size or radius that is not positive
            or so small that cells cannot be counted in 64 bits, so many levels that the square of a radius leaves the
            dtype's range, coordinates that are not finite.
    """
    check_points("points", points, "offsets", offsets)
    cell_size, num_levels = check_positive("cell_size", cell_size), check_count("num_levels", num_levels)
    differs = isinstance(radius, (list, tuple))
    if differs and len(radius) != num_levels:
        raise ValueError(f"radius must be one number or {num_levels}, one for each level, got {len(radius)}")
    radii = []
    for level in range(num_levels):
        cells = check_positive("radius", radius[level] if differs else radius)
        radii.append(check_length(f"radius of level {level}", cells * (cell_size * 2**level), points.dtype))
    coarse, neighbors, pools, upsamples = torch.ops.kpconv_ops.pyramid(points.detach(), offsets, cell_size, radii)
    all_points, all_offsets = [points.detach(), *coarse[0::2]], [offsets, *coarse[1::2]]
    sizes = [len(each) for each in all_points]
    return Pyramid(
        [
            PyramidLevel(
                all_points[level],
                all_offsets[level],
                Neighbors(*neighbors[2 * level : 2 * level + 2], sizes[level]),
                Neighbors(*pools[2 * level - 2 : 2 * level], sizes[level - 1]) if level else None,
                Upsampling(upsamples[level], sizes[level + 1]) if level < num_levels - 1 else None,
            )
            for level in range(num_levels)
        ]
    )


# coarse: points and offsets of level 1, of level 2, ...; neighbors: indices and splits of level 0, of level 1, ...;
# pools: indices and splits of level 1, of level 2, ...; upsamples: rows of level 0, of level 1, ...
torch.library.define(
    "kpconv_ops::pyramid",
    "(Tensor points, Tensor offsets, float cell_size, float[] radii)"
    " -> (Tensor[] coarse, Tensor[] neighbors, Tensor[] pools, Tensor[] upsamples)",
)


@torch.library.impl("kpconv_ops::pyramid", ("cpu", "cuda"))
def _pyramid(points, offsets, cell_size, radii):
    points, offsets = points.contiguous(), offsets.contiguous()
    check_row_count("points", points)
    coarse, inner, pools, upsamples, finer = [], [], [], [], None
    for level, radius in enumerate(radii):
        extent = Extent.of("points", points, "offsets", offsets)
        supports = Supports(points, offsets, radius_grid(extent, radius, points.device))
        among_themselves = supports.search(points, offsets, supports.rows)
        inner.append((among_themselves, radius, among_themselves.count(radius)))
        if finer is not None:
            # The points lie around their coarser ones, a few to a cell: the search is short.
            upsamples.append(supports.search(*finer, supports.grid.sort(*finer)[1]).nearest()[0])
        if level == len(radii) - 1:
            break
        finer = points, offsets
        order, splits, inverse, offsets = grid_cells(
            points, offsets, cell_grid(extent, cell_size * 2 ** (level + 1), points.device)
        )
        points = torch.ops.kpconv_ops.segment_mean(points, order, splits, inverse)
        coarse += [points, offsets]
        pool = supports.search(points, offsets, None)  # they are in the order of their own cells
        pools.append((pool, radius, pool.count(radius)))
    # The sizes of all results in one wait.
    sizes = edge_counts([splits for _, _, splits in inner + pools])
    found = []
    for (search, radius, splits), size in zip(inner + pools, sizes, strict=True):
        found += [search.fill(radius, splits, *size), splits]
    return coarse, found[: 2 * len(inner)], found[2 * len(inner) :], upsamples


@torch.library.register_fake("kpconv_ops::pyramid")
def _pyramid_fake(points, offsets, cell_size, radii):
    size = torch.library.get_ctx().new_dynamic_size
    coarse = [points.new_empty(size(), 3) for _ in radii[1:]]
    rows = [points.shape[0], *(each.shape[0] for each in coarse)]

    def neighborhoods(queries: list) -> list[Tensor]:
        csr = ((size(), each + 1) for each in queries)
        return [
            tensor
            for edges, bounds in csr
            for tensor in (offsets.new_empty(edges, dtype=torch.int32), offsets.new_empty(bounds))
        ]

    return (
        [tensor for each in coarse for tensor in (each, torch.empty_like(offsets))],
        neighborhoods(rows),
        neighborhoods(rows[1:]),
        [offsets.new_empty(each) for each in rows[:-1]],
    )
