"""MinkUNet: the sparse voxel U-Net of Choy et al. (CVPR 2019), with MinkowskiEngine's parameter names and layouts."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kpconv_ops import Interpolation, Upsampling

from ..ragged import Ragged
from .base import TapBackbone, TapInfo, check_channels, check_coordinates, uncompiled
from .engines import VoxelGrid, build_engine
from .minkunet_blocks import BasicBlock, Bottleneck, Norm, PointwiseConv, SparseConv, SparseConvTransposed, Stage, relu
from .minkunet_config import STAGES, MinkUNetConfig

STEM_WIDTH = 32
# Number, tensor stride of the input (p) and stride (s) of a stage make the name of its convolution.
DOWN = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
UP = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")


@dataclass(frozen=True, eq=False)
class Geometry:
    """Voxels and kernel maps, finest resolution first.

    Args:
        grids: the five resolutions.
        inverse: `[N]` finest voxel of every input point.
        stem: kernel map of the first convolution.
        inner: kernel maps of the residual blocks, one a resolution.
        down: kernel maps from every resolution to the next coarser one; the decoder takes them backwards.
        onto: what carries logits from voxels to the input points.
    """

    grids: list[VoxelGrid]
    inverse: Tensor
    stem: Any
    inner: list[Any]
    down: list[Any]
    onto: Upsampling | Interpolation


@dataclass(frozen=True, eq=False)
class State:
    """What decoding needs beside the tap: the geometry and the encoder's features of every resolution."""

    geometry: Geometry
    skips: list[Tensor]


class MinkUNet(TapBackbone):
    """Sparse residual U-Net over five resolutions. Points enter as the mean of their voxel and leave with its logits.

    Args:
        in_channels: features per input point.
        num_classes: logits per input point.
        config: architecture.

    Raises:
        UserError: an unknown engine, or one that is not installed.
    """

    def __init__(self, in_channels: int, num_classes: int, config: MinkUNetConfig):
        super().__init__()
        self.config = config
        self.in_channels = in_channels
        self.engine = engine = build_engine(config.engine)
        block = Bottleneck if config.bottleneck else BasicBlock
        planes, counts = config.widths, config.counts

        self.conv0p1s1 = SparseConv(engine, in_channels, STEM_WIDTH, config.stem_kernel)
        self.bn0 = Norm(STEM_WIDTH)
        width, skips = STEM_WIDTH, [STEM_WIDTH]
        for stage, name in enumerate(DOWN):
            self.add_module(name, SparseConv(engine, width, width, kernel_size=2))
            self.add_module(f"bn{stage + 1}", Norm(width))
            width = self._add_blocks(stage, block, width, planes[stage], counts[stage])
            skips.append(width)
        tap_widths = [skips.pop()]
        for stage, name in enumerate(UP, start=STAGES):
            self.add_module(name, SparseConvTransposed(engine, width, planes[stage], kernel_size=2))
            self.add_module(f"bntr{stage}", Norm(planes[stage]))
            width = self._add_blocks(stage, block, planes[stage] + skips.pop(), planes[stage], counts[stage])
            tap_widths.append(width)
        self.final = PointwiseConv(width, num_classes, bias=True)

        stride = 2 ** (STAGES - config.tap_stage)
        self.tap = TapInfo(channels=tap_widths[config.tap_stage], stride=stride, out_channels=num_classes)

    def _add_blocks(self, stage: int, block: type, in_channels: int, planes: int, count: int) -> int:
        """Add the residual blocks of one of the eight stages; returns their width."""
        blocks = Stage(self.engine, block, in_channels, planes, count)
        self.add_module(f"block{stage + 1}", blocks)
        return blocks.width

    @uncompiled
    @torch.no_grad()
    def geometry(self, batch: Ragged) -> Geometry:
        check_coordinates(batch)
        engine, voxel_size = self.engine, self.config.voxel_size
        grid, inverse = engine.quantize(batch.coord, batch.offsets, voxel_size)
        self._check_resolution(batch, grid)
        if self.config.devoxelize == "nearest":
            onto = engine.nearest(inverse, grid)
        else:
            onto = engine.trilinear(batch.coord, batch.offsets, grid, voxel_size)
        grids, down = [grid], []
        for _ in DOWN:
            coarse = engine.downsample(grid)
            down.append(engine.kernel_map(grid, coarse, kernel_size=2))
            grids.append(grid := coarse)
        inner = [engine.kernel_map(grid, grid, kernel_size=3) for grid in grids]
        stem = inner[0]
        if self.config.stem_kernel != 3:
            stem = engine.kernel_map(grids[0], grids[0], self.config.stem_kernel)
        return Geometry(grids, inverse, stem, inner, down, onto)

    def _check_resolution(self, batch: Ragged, grid: VoxelGrid) -> None:
        """Warn of voxels as large as the samples, for example of millimetres taken for metres."""
        samples = sum(length > 0 for length in batch.lengths)
        # A sample around the origin, however small, meets eight voxels.
        if len(grid.coords) <= 8 * samples and len(batch.coord) > 64 * samples:
            warnings.warn(
                f"voxel_size {self.config.voxel_size} puts {len(batch.coord)} points of {samples} samples into "
                f"{len(grid.coords)} voxels; it must be in the unit of the coordinates, and much smaller than a sample",
                stacklevel=2,
            )

    def encode(self, batch: Ragged, geometry: Geometry | None = None) -> tuple[Ragged, State]:
        check_channels(batch, self.in_channels)
        geometry = geometry or self.geometry(batch)
        x = self.engine.average(batch.feat, geometry.inverse, geometry.grids[0])
        x = relu(self.bn0(self.conv0p1s1(x, geometry.stem)))
        skips = [x]
        for stage, name in enumerate(DOWN):
            conv, norm = getattr(self, name), getattr(self, f"bn{stage + 1}")
            x = relu(norm(conv(x, geometry.down[stage])))
            x = getattr(self, f"block{stage + 1}")(x, geometry.inner[stage + 1])
            skips.append(x)
        state = State(geometry, skips)
        x = self._upsample(x, state, range(self.config.tap_stage))
        grid = geometry.grids[STAGES - self.config.tap_stage]
        centres = (grid.coords.to(batch.coord.dtype) + grid.stride / 2) * self.config.voxel_size
        return Ragged(x, centres, grid.offsets), state

    def decode(self, features: Tensor, state: State) -> Tensor:
        x = self._upsample(features, state, range(self.config.tap_stage, STAGES))
        # Classify voxels, then carry logits to the points: fewer rows of fewer channels. A linear layer commutes with
        # weighted means, and both ways onto the points are such, with weights of sum 1 (so the bias does too).
        return self.engine.devoxelize(self.final(x), state.geometry.onto)

    def _upsample(self, x: Tensor, state: State, stages: range) -> Tensor:
        """Run decoder stages one after the other, each twice as fine as the one before."""
        for stage in stages:
            level = STAGES - 1 - stage
            number = STAGES + stage
            conv, norm = getattr(self, UP[stage]), getattr(self, f"bntr{number}")
            x = relu(norm(conv(x, state.geometry.down[level])))
            x = torch.cat([x, state.skips[level]], dim=1)
            x = getattr(self, f"block{number + 1}")(x, state.geometry.inner[level])
        return x
