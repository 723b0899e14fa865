"""All levels of a KPConv network: points, neighbours, pools and upsamples of one ball and of a batch of four."""

import torch
from torch import Tensor

import kpconv_ops

from .. import inputs as made
from .. import peers, textbook
from ..row import OURS, Contender, Row, Work

LEVELS = 5
RADIUS = 2.5  # in cells of the level


def inputs(points: int) -> dict:
    """`points`, a tensor for each ball."""
    return {"points": [ball["points"] for ball in made.balls(made.room(points))]}


def describe(inputs: dict) -> dict:
    return {"points a ball": len(inputs["points"][0]), "cell": made.BALL_CELL, "levels": LEVELS}


def rows(inputs: dict, device: str, with_peers: bool) -> list[Row]:
    balls = [points.to(device) for points in inputs["points"]]
    return [row("pyramid of a ball", balls[:1]), row(f"pyramid of {len(balls)} balls", balls)]


def row(name: str, balls: list[Tensor]) -> Row:
    points = torch.cat(balls)
    offsets = torch.tensor([0, *map(len, balls)], device=points.device).cumsum(0)
    arrays = [peers.array(ball) for ball in balls]

    def ours():
        return kpconv_ops.pyramid(points, offsets, made.BALL_CELL, LEVELS, RADIUS)

    def scipy():
        return textbook.pyramid(arrays, made.BALL_CELL, LEVELS, RADIUS, peers.threads())

    contenders = [
        Contender(OURS, lambda: ours, plain=lambda pyramid: [level_summary(level) for level in pyramid.levels]),
        Contender("scipy + numpy", lambda: scipy, plain=textbook_summary, on_cpu=True),
    ]
    return Row(name, lambda: Work(0, moved_bytes(ours())), contenders, difference=levels_differ)


def moved_bytes(pyramid) -> int:
    """The input and every result, once."""
    total = pyramid.levels[0].points.nbytes
    for level in pyramid.levels:
        hoods = [level.neighbors] + ([level.pools] if level.pools else [])
        total += level.points.nbytes + sum(nb.indices.nbytes + nb.splits.nbytes for nb in hoods)
        total += 0 if level.upsamples is None else level.upsamples.rows.nbytes
    return total


def level_summary(level) -> tuple[Tensor, Tensor]:
    """The points of a level, and how many neighbours and pooled points they have in all."""
    pooled = len(level.pools.indices) if level.pools else 0
    return level.points.cpu(), torch.tensor([len(level.neighbors.indices), pooled])


def textbook_summary(balls: list[list[tuple]]) -> list[tuple[Tensor, Tensor]]:
    summaries = []
    for parts in zip(*balls, strict=True):  # the same level of every ball
        points = torch.cat([torch.from_numpy(part[0]) for part in parts])
        counts = [[len(part[1][0]), len(part[2][0]) if part[2] else 0] for part in parts]
        summaries.append((points, torch.tensor(counts).sum(dim=0)))
    return summaries


def levels_differ(ours: list, other: list) -> float:
    """Largest difference in the number of points or of neighbours of a level, as a share.

    Not of coordinates: rounding may put a point on the border of two cells into either.
    """
    worst = 0.0
    for (a, a_counts), (b, b_counts) in zip(ours, other, strict=True):
        for x, y in ((len(a), len(b)), *zip(a_counts.tolist(), b_counts.tolist(), strict=True)):
            worst = max(worst, abs(x - y) / max(x, 1))
    return worst
