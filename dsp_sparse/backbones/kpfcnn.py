"""KPFCNN: the KPConv segmentation U-Net of Thomas et al. (ICCV 2019), rigid kernels."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpconv_ops import Neighbors, grid_subsample, kernel_points, kpconv, max_pool, nearest, radius_search
from kpconv_ops.kpconv import MAX_KERNEL_POINTS

from ..errors import UserError
from ..ragged import Ragged
from .base import TapBackbone, TapInfo, check_channels, check_coordinates, check_tap_stage
from .norm import BatchNorm

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
    bn_momentum: float = 0.02
    tap_stage: int = 1

    def __post_init__(self):
        for name in ("grid_size", "conv_radius", "extent"):
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
        check_tap_stage(self.tap_stage, len(self.blocks) - 1)


@dataclass(frozen=True, eq=False)
class Stencil:
    """Where a convolution is evaluated: `queries [M, 3]`, `supports [N, 3]` and which of these each query sees."""

    queries: Tensor
    supports: Tensor
    neighbors: Neighbors


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of the pyramid.

    Args:
        points: `[M, 3]` points.
        offsets: `[B + 1]` samples of the points.
        entry: stencil that leads here from the next finer level; at the finest level the same as `inner`.
        inner: stencil of the points among themselves.
    """

    points: Tensor
    offsets: Tensor
    entry: Stencil
    inner: Stencil


@dataclass(frozen=True, eq=False)
class Geometry:
    """The pyramid: levels, finest first, and for the points of every level but the last their nearest coarser row."""

    levels: list[Level]
    nearest_coarser: list[Tensor]


@dataclass(frozen=True, eq=False)
class State:
    """What decoding needs beside the tap: the pyramid and the encoder's features of every level."""

    geometry: Geometry
    skips: list[Tensor]


def leaky_relu(x: Tensor) -> Tensor:
    """The network's activation, in place: its inputs are never used again."""
    return F.leaky_relu(x, 0.1, inplace=True)


class KPConv(nn.Module):
    """Rigid kernel point convolution (KPConv, Eq. 1 and 6) with kernel points of its own.

    Args:
        in_channels, out_channels: features per point.
        cell: grid cell of the supports, in metres; the unit of the configured radius and extent.
        config: the network's settings.
    """

    def __init__(self, in_channels: int, out_channels: int, cell: float, config: KPFCNNConfig):
        super().__init__()
        self.extent = config.extent * cell
        self.influence, self.aggregation = config.influence, config.aggregation
        self.weights = nn.Parameter(torch.empty(config.num_kernel_points, in_channels, out_channels))
        nn.init.kaiming_uniform_(self.weights, a=5**0.5)
        self.register_buffer("kernel_points", kernel_points(config.num_kernel_points, config.conv_radius * cell))

    def forward(self, x: Tensor, stencil: Stencil) -> Tensor:
        return kpconv(
            x,
            stencil.queries,
            stencil.supports,
            stencil.neighbors,
            self.kernel_points,
            self.weights,
            self.extent,
            influence=self.influence,
            aggregation=self.aggregation,
        )


class Unary(nn.Module):
    """Point-wise linear layer and normalisation."""

    def __init__(self, in_channels: int, out_channels: int, config: KPFCNNConfig):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels, momentum=config.bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class SimpleBlock(nn.Module):
    """Convolution, normalisation, activation."""

    def __init__(self, in_channels: int, out_channels: int, cell: float, config: KPFCNNConfig):
        super().__init__()
        self.conv = KPConv(in_channels, out_channels, cell, config)
        self.norm = BatchNorm(out_channels, momentum=config.bn_momentum)

    def forward(self, x: Tensor, stencil: Stencil) -> Tensor:
        return leaky_relu(self.norm(self.conv(x, stencil)))


class ResidualBlock(nn.Module):
    """Bottleneck residual block. A strided one puts out coarser points, to which it max-pools its shortcut."""

    def __init__(self, in_channels: int, out_channels: int, cell: float, config: KPFCNNConfig, strided: bool = False):
        super().__init__()
        width = out_channels // 4
        self.strided = strided
        self.reduce = Unary(in_channels, width, config) if in_channels != width else None
        self.conv = KPConv(width, width, cell, config)
        self.norm = BatchNorm(width, momentum=config.bn_momentum)
        self.expand = Unary(width, out_channels, config)
        self.shortcut = Unary(in_channels, out_channels, config) if in_channels != out_channels else None

    def forward(self, x: Tensor, stencil: Stencil) -> Tensor:
        y = leaky_relu(self.reduce(x)) if self.reduce else x
        y = self.expand(leaky_relu(self.norm(self.conv(y, stencil))))
        x = max_pool(x, stencil.neighbors) if self.strided else x
        return leaky_relu(y + (self.shortcut(x) if self.shortcut else x))


class EncoderLevel(nn.Module):
    """The block that leads to a level, and the residual blocks on it."""

    def __init__(self, entry: nn.Module, blocks: list[ResidualBlock]):
        super().__init__()
        self.entry = entry
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        x = self.entry(x, level.entry)
        for block in self.blocks:
            x = block(x, level.inner)
        return x


class KPFCNN(TapBackbone):
    """KPConv's segmentation network: a residual encoder over a pyramid of grids, nearest upsampling with skips, a head.

    The input points are the finest level as they are: subsample them with `config.grid_size` beforehand.

    Args:
        in_channels: features per input point.
        num_classes: logits per input point.
        config: architecture.
    """

    def __init__(self, in_channels: int, num_classes: int, config: KPFCNNConfig):
        super().__init__()
        self.config = config
        self.in_channels = in_channels
        coarsest = len(config.blocks) - 1
        widths = [config.first_width * 2**level for level in range(coarsest + 1)]

        self.encoder = nn.ModuleList()
        stem_width = config.first_width // 2
        for level, (width, blocks) in enumerate(zip(widths, config.blocks, strict=True)):
            cell = config.grid_size * 2**level
            if level == 0:
                before = stem_width
                entry = SimpleBlock(in_channels, before, cell, config)
            else:
                before = widths[level - 1]
                entry = ResidualBlock(before, before, cell / 2, config, strided=True)
            inner = [ResidualBlock(width if i else before, width, cell, config) for i in range(blocks)]
            self.encoder.append(EncoderLevel(entry, inner))

        # Stage s fuses level s + 1, counted from the coarsest, with the skip of the next finer one.
        self.decoder = nn.ModuleList(Unary(3 * width, width, config) for width in reversed(widths[:-1]))
        self.head = nn.Sequential(
            nn.Linear(widths[0], widths[0]), nn.LeakyReLU(0.1, inplace=True), nn.Linear(widths[0], num_classes)
        )

        self.tap_level = coarsest - config.tap_stage
        self.tap = TapInfo(channels=widths[self.tap_level], stride=2**self.tap_level, out_channels=num_classes)

    @torch.compiler.disable
    @torch.no_grad()
    def geometry(self, batch: Ragged) -> Geometry:
        check_coordinates(batch)
        points, offsets, entry = batch.coord, batch.offsets, None
        levels, nearest_coarser = [], []
        for level in range(len(self.encoder)):
            cell = self.config.grid_size * 2**level
            radius = self.config.conv_radius * cell
            inner = Stencil(points, points, radius_search(points, offsets, points, offsets, radius))
            levels.append(Level(points, offsets, entry or inner, inner))
            if level == len(self.encoder) - 1:
                break
            coarse = grid_subsample(points, offsets, 2 * cell)
            pool = radius_search(coarse.points, coarse.offsets, points, offsets, radius)
            entry = Stencil(coarse.points, points, pool)
            nearest_coarser.append(nearest(points, offsets, coarse.points, coarse.offsets)[0])
            points, offsets = coarse.points, coarse.offsets
        return Geometry(levels, nearest_coarser)

    def encode(self, batch: Ragged, geometry: Geometry | None = None) -> tuple[Ragged, State]:
        check_channels(batch, self.in_channels)
        geometry = geometry or self.geometry(batch)
        x, skips = batch.feat, []
        for blocks, level in zip(self.encoder, geometry.levels, strict=True):
            x = blocks(x, level)
            skips.append(x)
        state = State(geometry, skips)
        x = self._upsample(x, state, range(len(skips) - 2, self.tap_level - 1, -1))
        tap = geometry.levels[self.tap_level]
        return Ragged(x, tap.points, tap.offsets), state

    def decode(self, features: Tensor, state: State) -> Tensor:
        return self.head(self._upsample(features, state, range(self.tap_level - 1, -1, -1)))

    def _upsample(self, x: Tensor, state: State, levels: range) -> Tensor:
        """Carry features one level finer after the other, to the last of `levels`."""
        for level in levels:
            fused = torch.cat([x[state.geometry.nearest_coarser[level]], state.skips[level]], dim=1)
            x = leaky_relu(self.decoder[len(self.decoder) - 1 - level](fused))
        return x
