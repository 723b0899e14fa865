"""KPFCNN: the KPConv segmentation U-Net of Thomas et al. (ICCV 2019), rigid kernels."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class KPFCNNConfig:
    """Settings of the KPFCNN backbone. The defaults are its S3DIS architecture.

    Args:
        grid_size: cell of the grid that the input points were subsampled with, in metres; doubles with every level.
        first_width: channels of the finest level; doubles with every level.
        blocks: residual blocks of each level, finest first; at least two levels.
        conv_radius: radius of a convolution, in cells of its level.
        extent: distance at which the influence of a kernel point ends, in cells of the level.
        num_kernel_points: kernel points of a convolution.
        influence: how the influence of a kernel point falls with the distance.
        aggregation: whether a neighbour counts for all kernel points in reach or for the closest one.
        bn_momentum: momentum of the batch normalisations.
        tap_stage: decoder stages before the tap; 0 is the bottleneck.
    """

    grid_size: float = 0.04
    first_width: int = 128
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2)
    conv_radius: float = 2.5
    extent: float = 1.2
    num_kernel_points: int = 15
    influence: Literal["linear", "constant", "gaussian"] = "linear"
    aggregation: Literal["sum", "closest"] = "sum"
    bn_momentum: float = 0.02
    tap_stage: int = 1
