"""MinkUNet: the sparse voxel U-Net of Choy et al. (CVPR 2019)."""

from dataclasses import dataclass
from typing import Literal

Variant = Literal["14A", "14B", "14C", "14D", "18A", "18B", "18D", "34A", "34B", "34C"]


@dataclass(frozen=True, kw_only=True)
class MinkUNetConfig:
    """Settings of the MinkUNet backbone.

    Args:
        variant: depth and widths, by MinkowskiEngine's names.
        voxel_size: edge of a voxel, in metres.
        planes: channels of the four encoder and four decoder stages, instead of the variant's.
        layers: residual blocks of the same eight stages, instead of the variant's.
        engine: library that does the sparse convolutions.
        tap_stage: decoder stages before the tap; 0 is the bottleneck.
    """

    variant: Variant = "34C"
    voxel_size: float = 0.05
    planes: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    engine: str = "native"
    tap_stage: int = 1
