"""Settings of MinkUNet."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import UserError
from .base import check_tap_stage

Variant = Literal["14A", "14B", "14C", "14D", "18A", "18B", "18D", "34A", "34B", "34C", "50", "101"]
Devoxelize = Literal["nearest", "trilinear"]

# Residual blocks of the four encoder and four decoder stages, by the depth in the variant's name.
LAYERS = {
    "14": (1,) * 8,
    "18": (2,) * 8,
    "34": (2, 3, 4, 6, 2, 2, 2, 2),
    "50": (2, 3, 4, 6, 2, 2, 2, 2),
    "101": (2, 3, 4, 23, 2, 2, 2, 2),
}
# Widths of the eight stages. The public implementation names none for 50 and 101 and asks for a subclass that does.
PLANES = {
    "14A": (32, 64, 128, 256, 128, 128, 96, 96),
    "14B": (32, 64, 128, 256, 128, 128, 128, 128),
    "14C": (32, 64, 128, 256, 192, 192, 128, 128),
    "14D": (32, 64, 128, 256, 384, 384, 384, 384),
    "18A": (32, 64, 128, 256, 128, 128, 96, 96),
    "18B": (32, 64, 128, 256, 128, 128, 128, 128),
    "18D": (32, 64, 128, 256, 384, 384, 384, 384),
    "34A": (32, 64, 128, 256, 256, 128, 64, 64),
    "34B": (32, 64, 128, 256, 256, 128, 64, 32),
    "34C": (32, 64, 128, 256, 256, 128, 96, 96),
    "50": (32, 64, 128, 256, 256, 128, 96, 96),
    "101": (32, 64, 128, 256, 256, 128, 96, 96),
}
STAGES = 4  # of the encoder, and of the decoder


@dataclass(frozen=True, kw_only=True)
class MinkUNetConfig:
    """Settings of the MinkUNet backbone.

    Args:
        variant: depth and widths, by MinkowskiEngine's names. 50 and 101 have bottleneck blocks, whose outputs are four
            times as wide.
        voxel_size: edge of a voxel, in metres.
        stem_kernel: size of the first convolution, odd; public checkpoints have 3 or 5.
        planes: channels of the four encoder and four decoder stages, instead of the variant's.
        layers: residual blocks of the same eight stages, instead of the variant's.
        devoxelize: whether a point takes the logits of its voxel or interpolates those of the voxels around it.
        engine: library that does the sparse convolutions: native or minkowski.
        tap_stage: decoder stages before the tap; 0 is the bottleneck.

    Raises:
        UserError: a setting that no network can be built with.
    """

    variant: Variant = "34C"
    voxel_size: float = 0.05
    stem_kernel: int = 5
    planes: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    devoxelize: Devoxelize = "nearest"
    engine: str = "native"
    tap_stage: int = 1

    def __post_init__(self):
        for name, choices in (("variant", get_args(Variant)), ("devoxelize", get_args(Devoxelize))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if not 0 < self.voxel_size < math.inf:
            raise UserError(f"voxel_size must be positive and finite, got {self.voxel_size}")
        if self.stem_kernel < 3 or self.stem_kernel % 2 == 0:
            raise UserError(f"stem_kernel must be odd and at least 3, got {self.stem_kernel}")
        for name in ("planes", "layers"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 * STAGES or min(value) < 1):
                raise UserError(f"{name} must hold {2 * STAGES} positive numbers, got {value}")
        check_tap_stage(self.tap_stage, STAGES)

    @property
    def depth(self) -> str:
        """The number in the variant's name."""
        return self.variant.rstrip("ABCD")

    @property
    def bottleneck(self) -> bool:
        """Whether the residual blocks are bottlenecks."""
        return self.depth in ("50", "101")

    @property
    def widths(self) -> tuple[int, ...]:
        """Planes of the eight stages."""
        return tuple(self.planes or PLANES[self.variant])

    @property
    def counts(self) -> tuple[int, ...]:
        """Residual blocks of the eight stages."""
        return tuple(self.layers or LAYERS[self.depth])
