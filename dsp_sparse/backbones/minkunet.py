"""MinkUNet: the sparse voxel U-Net of Choy et al. (CVPR 2019), with MinkowskiEngine's parameter names and layouts."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..ragged import Ragged
from .base import TapBackbone, TapInfo, check_channels, check_coordinates, check_tap_stage
from .engines import SparseEngine, VoxelGrid, build_engine
from .norm import BatchNorm

Variant = Literal["14A", "14B", "14C", "14D", "18A", "18B", "18D", "34A", "34B", "34C"]

LAYERS = {"14": (1,) * 8, "18": (2,) * 8, "34": (2, 3, 4, 6, 2, 2, 2, 2)}
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
}
STEM_WIDTH = 32
# Number, tensor stride of the input (p) and stride (s) of a stage make the name of its convolution.
DOWN = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
UP = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")


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

    Raises:
        UserError: a setting that no network can be built with.
    """

    variant: Variant = "34C"
    voxel_size: float = 0.05
    planes: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    engine: str = "native"
    tap_stage: int = 1

    def __post_init__(self):
        if self.variant not in PLANES:
            raise UserError(f"variant must be one of {', '.join(PLANES)}; got {self.variant!r}")
        if not self.voxel_size > 0:
            raise UserError(f"voxel_size must be positive, got {self.voxel_size}")
        for name in ("planes", "layers"):
            value = getattr(self, name)
            if value is not None and (len(value) != 8 or min(value) < 1):
                raise UserError(f"{name} must hold 8 positive numbers, got {value}")
        check_tap_stage(self.tap_stage, len(UP))


@dataclass(frozen=True, eq=False)
class Geometry:
    """Voxels and kernel maps, finest resolution first.

    Args:
        grids: the five resolutions.
        inverse: `[N]` finest voxel of every input point.
        stem: kernel map of the first convolution.
        inner: kernel maps of the residual blocks, one a resolution.
        down: kernel maps from every resolution to the next coarser one.
    """

    grids: list[VoxelGrid]
    inverse: Tensor
    stem: Any
    inner: list[Any]
    down: list[Any]


@dataclass(frozen=True, eq=False)
class State:
    """What decoding needs beside the tap: the geometry and the encoder's features of every resolution."""

    geometry: Geometry
    skips: list[Tensor]


def relu(x: Tensor) -> Tensor:
    """ReLU, in place: its inputs are never used again."""
    return F.relu(x, inplace=True)


class SparseConv(nn.Module):
    """Sparse convolution; `kernel` is `[kernel_size³, Cin, Cout]`."""

    def __init__(self, engine: SparseEngine, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.engine = engine
        self.kernel = nn.Parameter(torch.empty(kernel_size**3, in_channels, out_channels))
        nn.init.normal_(self.kernel, std=(2 / (kernel_size**3 * out_channels)) ** 0.5)

    def forward(self, x: Tensor, kernel_map: Any) -> Tensor:
        return self.engine.conv(x, self.kernel, kernel_map)


class SparseConvTransposed(SparseConv):
    """Transposed sparse convolution, along the map of the convolution it undoes."""

    def forward(self, x: Tensor, kernel_map: Any) -> Tensor:
        return self.engine.conv_transposed(x, self.kernel, kernel_map)


class PointwiseConv(nn.Module):
    """Convolution of kernel size 1; `kernel` is `[Cin, Cout]`, `bias` `[1, Cout]`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(in_channels, out_channels))
        nn.init.normal_(self.kernel, std=(2 / out_channels) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(1, out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel.T, None if self.bias is None else self.bias[0])


class Norm(nn.Module):
    """Batch normalisation under MinkowskiEngine's name for it, `bn`."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)


class BasicBlock(nn.Module):
    """Two 3³ convolutions beside a shortcut."""

    def __init__(self, engine: SparseEngine, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = SparseConv(engine, in_channels, out_channels, kernel_size=3)
        self.norm1 = Norm(out_channels)
        self.conv2 = SparseConv(engine, out_channels, out_channels, kernel_size=3)
        self.norm2 = Norm(out_channels)
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(PointwiseConv(in_channels, out_channels), Norm(out_channels))

    def forward(self, x: Tensor, kernel_map: Any) -> Tensor:
        y = relu(self.norm1(self.conv1(x, kernel_map)))
        y = self.norm2(self.conv2(y, kernel_map))
        return relu(y + (self.downsample(x) if self.downsample else x))


class Blocks(nn.ModuleList):
    """The residual blocks of one stage."""

    def __init__(self, engine: SparseEngine, in_channels: int, out_channels: int, count: int):
        super().__init__(BasicBlock(engine, out_channels if i else in_channels, out_channels) for i in range(count))

    def forward(self, x: Tensor, kernel_map: Any) -> Tensor:
        for block in self:
            x = block(x, kernel_map)
        return x


class MinkUNet(TapBackbone):
    """Sparse residual U-Net over five resolutions. Points enter as the mean of their voxel and leave with its logits.

    Args:
        in_channels: features per input point.
        num_classes: logits per input point.
        config: architecture.

    Raises:
        UserError: an unknown engine.
    """

    def __init__(self, in_channels: int, num_classes: int, config: MinkUNetConfig):
        super().__init__()
        self.config = config
        self.in_channels = in_channels
        self.engine = engine = build_engine(config.engine)
        planes = config.planes or PLANES[config.variant]
        layers = config.layers or LAYERS[config.variant[:2]]

        self.conv0p1s1 = SparseConv(engine, in_channels, STEM_WIDTH, kernel_size=5)
        self.bn0 = Norm(STEM_WIDTH)
        width, skips = STEM_WIDTH, [STEM_WIDTH, *planes[:3]]
        for stage, name in enumerate(DOWN):
            self.add_module(name, SparseConv(engine, width, width, kernel_size=2))
            self.add_module(f"bn{stage + 1}", Norm(width))
            self.add_module(f"block{stage + 1}", Blocks(engine, width, planes[stage], layers[stage]))
            width = planes[stage]
        for stage, name in enumerate(UP, start=len(DOWN)):
            self.add_module(name, SparseConvTransposed(engine, width, planes[stage], kernel_size=2))
            self.add_module(f"bntr{stage}", Norm(planes[stage]))
            width = planes[stage]
            self.add_module(f"block{stage + 1}", Blocks(engine, width + skips.pop(), width, layers[stage]))
        self.final = PointwiseConv(width, num_classes, bias=True)

        stride = 2 ** (len(UP) - config.tap_stage)
        self.tap = TapInfo(channels=planes[len(DOWN) - 1 + config.tap_stage], stride=stride, out_channels=num_classes)

    @torch.compiler.disable
    @torch.no_grad()
    def geometry(self, batch: Ragged) -> Geometry:
        check_coordinates(batch)
        grid, inverse = self.engine.quantize(batch.coord, batch.offsets, self.config.voxel_size)
        stem = self.engine.kernel_map(grid, grid, kernel_size=5)
        grids, down = [grid], []
        for _ in DOWN:
            coarse = self.engine.downsample(grid)
            down.append(self.engine.kernel_map(grid, coarse, kernel_size=2))
            grids.append(grid := coarse)
        inner = [self.engine.kernel_map(grid, grid, kernel_size=3) for grid in grids]
        return Geometry(grids, inverse, stem, inner, down)

    def encode(self, batch: Ragged, geometry: Geometry | None = None) -> tuple[Ragged, State]:
        check_channels(batch, self.in_channels)
        geometry = geometry or self.geometry(batch)
        x = self.engine.average(batch.feat, geometry.inverse, geometry.grids[0])
        x = relu(self.bn0(self.conv0p1s1(x, geometry.stem)))
        skips = [x]
        for stage, name in enumerate(DOWN):
            conv, norm, blocks = (
                getattr(self, name),
                getattr(self, f"bn{stage + 1}"),
                getattr(self, f"block{stage + 1}"),
            )
            x = relu(norm(conv(x, geometry.down[stage])))
            x = blocks(x, geometry.inner[stage + 1])
            skips.append(x)
        state = State(geometry, skips)
        x = self._upsample(x, state, range(self.config.tap_stage))
        grid = geometry.grids[len(UP) - self.config.tap_stage]
        centres = (grid.coords.to(batch.coord.dtype) + grid.stride / 2) * self.config.voxel_size
        return Ragged(x, centres, grid.offsets), state

    def decode(self, features: Tensor, state: State) -> Tensor:
        x = self._upsample(features, state, range(self.config.tap_stage, len(UP)))
        return self.final(x)[state.geometry.inverse]

    def _upsample(self, x: Tensor, state: State, stages: range) -> Tensor:
        """Run decoder stages one after the other, each twice as fine as the one before."""
        for stage in stages:
            level = len(UP) - 1 - stage
            number = len(DOWN) + stage
            conv, norm, blocks = (
                getattr(self, UP[stage]),
                getattr(self, f"bntr{number}"),
                getattr(self, f"block{number + 1}"),
            )
            x = relu(norm(conv(x, state.geometry.down[level])))
            x = blocks(torch.cat([x, state.skips[level]], dim=1), state.geometry.inner[level])
        return x
