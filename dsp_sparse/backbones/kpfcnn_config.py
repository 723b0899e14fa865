"""Settings of KPFCNN."""

from dataclasses import dataclass
from typing import Literal, get_args

from kpconv_ops.kpconv import MAX_KERNEL_POINTS

from ..errors import UserError
from .base import check_tap_stage

Influence = Literal["linear", "constant", "gaussian"]
Aggregation = Literal["sum", "closest"]


@dataclass(frozen=True, kw_only=True)
class KPFCNNConfig:
    """Settings of the KPFCNN backbone. The defaults are its S3DIS architecture.

    Args:
        grid_size: cell of the grid that the input points were subsampled with, in metres; doubles with every level.
        first_width: channels of the finest level, a multiple of 4; doubles with every level.
        blocks: residual blocks of each level, finest first; at least two levels and one block a level.
        conv_radius: radius of a convolution, in cells of its level.
        extent: distance at which the influence of a kernel point ends, in cells of the level.
        num_kernel_points: kernel points of a convolution.
        influence: how the influence of a kernel point falls with the distance.
        aggregation: whether a neighbour counts for all kernel points in reach or for the closest one.
        deformable_levels: levels with deformable convolutions, 0 the finest; the block that leads from such a level to
            the next is one of its convolutions. KPConv's deformable S3DIS network: (3, 4).
        modulated: deformable convolutions also weigh their kernel points, point by point.
        deform_radius: how far a deformable level looks for neighbours that kernel points may move to, in its cells.
        padded_pools: max pooling includes a 0 wherever a neighbourhood is smaller than the largest in its batch, like
            that over KPConv-PyTorch's padded neighbourhoods: for its checkpoints. Results then depend on what else is
            in the batch.
        bn_momentum: momentum of the batch normalisations.
        tap_stage: decoder stages before the tap; 0 is the bottleneck.

    Raises:
        UserError: a setting that no network can be built with.
    """

    grid_size: float = 0.04
    first_width: int = 128
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2)
    conv_radius: float = 2.5
    extent: float = 1.2
    num_kernel_points: int = 15
    influence: Influence = "linear"
    aggregation: Aggregation = "sum"
    deformable_levels: tuple[int, ...] = ()
    modulated: bool = False
    deform_radius: float = 5.0
    padded_pools: bool = False
    bn_momentum: float = 0.02
    tap_stage: int = 1

    def __post_init__(self):
        for name in ("grid_size", "conv_radius", "extent", "deform_radius"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if not 1 <= self.num_kernel_points <= MAX_KERNEL_POINTS:
            raise UserError(f"num_kernel_points must be from 1 to {MAX_KERNEL_POINTS}, got {self.num_kernel_points}")
        if not 0 < self.bn_momentum <= 1:
            raise UserError(f"bn_momentum must be in (0, 1], got {self.bn_momentum}")
        for name, choices in (("influence", get_args(Influence)), ("aggregation", get_args(Aggregation))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.first_width < 4 or self.first_width % 4:
            raise UserError(f"first_width must be a positive multiple of 4, got {self.first_width}")
        if len(self.blocks) < 2 or min(self.blocks) < 1:
            raise UserError(f"blocks must hold at least two levels of at least one block, got {self.blocks}")
        levels = self.deformable_levels
        if not isinstance(levels, (list, tuple)) or any(type(level) is not int for level in levels):
            raise UserError(f"deformable_levels must be a list of levels, e.g. [1], got {levels!r}")
        for level in levels:
            if not 0 <= level < len(self.blocks):
                raise UserError(f"deformable_levels must be from 0 to {len(self.blocks) - 1}, got {level}")
        check_tap_stage(self.tap_stage, len(self.blocks) - 1)

    def cell(self, level: int) -> float:
        """Grid cell of a level, in metres."""
        return self.grid_size * 2**level

    @property
    def radii(self) -> list[float]:
        """How far points see the points of each level, in its cells."""
        levels = range(len(self.blocks))
        return [self.deform_radius if level in self.deformable_levels else self.conv_radius for level in levels]
