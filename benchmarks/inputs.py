"""What is measured: a procedural room, made from a fixed seed."""

import numpy as np
import torch
from torch import Tensor

from dsp_sparse.data.rooms import make_room
from kpconv_ops import grid_subsample

SEED = 0
SMALL = 2000  # raw points where only the kind of work matters
ROOM = 4  # a large office; its number decides its kind and furniture

# Seen from these places in the room, as shares of its size, the nearest points make up the balls of the networks.
CENTRES = ((0.3, 0.3, 0.5), (0.7, 0.3, 0.5), (0.3, 0.7, 0.5), (0.7, 0.7, 0.5))
BALL_POINTS = 33_000  # what the published networks see of a room at a time
BALL_CELL = 0.04


def room(num_points: int, number: int = ROOM) -> dict[str, Tensor]:
    """`points` `[N, 3]` in metres from the room's corner, `colours` `[N, 3]` in 0 to 1, `labels` `[N]` int64."""
    cloud, objects, names = make_room(area=0, number=number, points=num_points, seed=SEED)
    coordinates = cloud[:, :3] - cloud[:, :3].min(axis=0)
    present = np.unique(objects)
    _, labels = np.unique([names[thing].rsplit("_", 1)[0] for thing in present], return_inverse=True)
    return {
        "points": torch.from_numpy(coordinates).float(),
        "colours": torch.from_numpy(cloud[:, 3:] / 255).float(),
        "labels": torch.from_numpy(labels[np.searchsorted(present, objects)]),
    }


def balls(cloud: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Four balls of 33,000 points (fewer from a small room) of the room on a grid of 4 cm."""
    whole = torch.tensor([0, len(cloud["points"])])
    grid = grid_subsample(cloud["points"], whole, BALL_CELL, cloud["colours"], cloud["labels"])
    cut = []
    for centre in CENTRES:
        distance = (grid.points - torch.tensor(centre) * grid.points.amax(dim=0)).norm(dim=1)
        rows = distance.argsort(stable=True)[:BALL_POINTS].sort().values
        cut.append({"points": grid.points[rows], "colours": grid.features[rows], "labels": grid.labels[rows]})
    return cut


def normal(*shape: int, stream: int) -> Tensor:
    """Normal noise, another one for each stream."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + stream))
