"""Where the kernel points of a convolution lie."""

import math
from functools import cache

import torch
from torch import Tensor

from ._checks import FEATURE_DTYPES, check_count, check_positive

MEAN_RADIUS = 0.66  # of the moving points, as a share of the convolution radius
NOISE = 0.01  # standard deviation, as a share of the convolution radius

_PULL = 10.0  # strength of the attraction to the centre against unit charges
_STARTS = 4  # local searches, of which the lowest energy wins
_STEPS = 200


def kernel_points(
    num_points: int,
    radius: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Kernel disposition of KPConv (Thomas et al. 2019, supplementary material): points spread evenly in a ball.

    One point is the centre; the others repel each other and the centre and are drawn to the centre; scaled, they lie at
    0.66 of the radius on average. Every call turns the disposition about z at random and adds normal noise of 0.01 of
    the radius to each coordinate, so that layers differ.

    Args:
        num_points: at least 1; 15 in the paper.
        radius: of the convolution, in the unit of the coordinates.
        generator: source of the rotation and the noise, a CPU generator; default: torch's global one.
        device, dtype: of the result.

    Returns:
        `[num_points, 3]`, the centre first.

    Raises:
        TypeError: a number of points that is not an integer, a radius that is not a number, a dtype that is not
            floating.
        ValueError: num_points below 1, a radius that is not positive or too large or small for the dtype.
    """
    num_points, radius = check_count("num_points", num_points), check_positive("radius", radius)
    if dtype not in FEATURE_DTYPES:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    draw = {"generator": generator, "dtype": torch.float64}
    angle = 2 * math.pi * torch.rand((), **draw).item()
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    points = _disposition(num_points) @ rotation + NOISE * torch.randn(num_points, 3, **draw)
    points = (radius * points).to(dtype)
    if radius < torch.finfo(dtype).tiny or not points.isfinite().all():
        raise ValueError(f"radius must be in the range of {dtype}, got {radius}")
    return points.to(device)


@cache
def _disposition(num_points: int) -> Tensor:
    """`[num_points, 3]` float64 in the unit ball: the lowest of the minima found from fixed random starts."""
    centre = torch.zeros(1, 3, dtype=torch.float64)
    if num_points == 1:
        return centre
    generator = torch.Generator().manual_seed(num_points)
    starts = torch.randn(_STARTS, num_points - 1, 3, generator=generator, dtype=torch.float64)
    minima = [_descend(start / start.norm(dim=1, keepdim=True)) for start in starts]
    moving = min(minima, key=lambda points: round(_energy(points).item(), 6))  # of equal ones the first, on any machine
    return torch.cat([centre, moving * (MEAN_RADIUS / moving.norm(dim=1).mean())])


def _energy(moving: Tensor) -> Tensor:
    """Coulomb repulsion between all points, the centre included, plus a quadratic pull to the centre."""
    to_centre = moving.norm(dim=1)
    return torch.pdist(moving).reciprocal().sum() + to_centre.reciprocal().sum() + _PULL / 2 * to_centre.square().sum()


def _descend(start: Tensor) -> Tensor:
    with torch.enable_grad():  # a network may be built inside no_grad
        moving = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([moving], max_iter=_STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            energy = _energy(moving)
            energy.backward()
            return energy

        optimizer.step(closure)
    return moving.detach()
