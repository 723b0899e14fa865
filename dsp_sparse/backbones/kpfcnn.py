"""KPFCNN: the KPConv segmentation U-Net of Thomas et al. (ICCV 2019), with rigid or deformable kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kpconv_ops import Pyramid, pyramid

from ..ragged import Ragged
from .base import TapBackbone, TapInfo, check_channels, check_coordinates, uncompiled
from .kpfcnn_blocks import DeformableKPConv, Deformation, Fusion, ResidualBlock, SimpleBlock, Stencil, leaky_relu
from .kpfcnn_config import KPFCNNConfig


@dataclass(frozen=True, eq=False)
class State:
    """What decoding and regularisation need beside the tap.

    Args:
        geometry: points, neighbourhoods and upsamplings of every level.
        skips: the encoder's features of every level.
        deformations: where the deformable convolutions moved their kernel points.
    """

    geometry: Pyramid
    skips: list[Tensor]
    deformations: list[Deformation]


class EncoderLevel(nn.Module):
    """The block that leads to a level, and the residual blocks on it."""

    def __init__(self, entry: nn.Module, blocks: list[ResidualBlock]):
        super().__init__()
        self.entry = entry
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, entry: Stencil, inner: Stencil, deformations: list[Deformation]) -> Tensor:
        x = self.entry(x, entry, deformations)
        for block in self.blocks:
            x = block(x, inner, deformations)
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
            if level == 0:
                before = stem_width
                entry = SimpleBlock(in_channels, before, level, config)
            else:
                before = widths[level - 1]
                entry = ResidualBlock(before, before, level - 1, config, strided=True)
            inner = [ResidualBlock(width if i else before, width, level, config) for i in range(blocks)]
            self.encoder.append(EncoderLevel(entry, inner))

        # Stage s fuses level s + 1, counted from the coarsest, with the skip of the next finer one.
        self.decoder = nn.ModuleList(Fusion(2 * width, width, width, config) for width in reversed(widths[:-1]))
        self.head = nn.Sequential(
            nn.Linear(widths[0], widths[0]), nn.LeakyReLU(0.1, inplace=True), nn.Linear(widths[0], num_classes)
        )

        self.tap_level = coarsest - config.tap_stage
        self.tap = TapInfo(channels=widths[self.tap_level], stride=2**self.tap_level, out_channels=num_classes)

    @uncompiled
    @torch.no_grad()
    def geometry(self, batch: Ragged) -> Pyramid:
        check_coordinates(batch)
        return pyramid(batch.coord, batch.offsets, self.config.grid_size, len(self.encoder), self.config.radii)

    def encode(self, batch: Ragged, geometry: Pyramid | None = None) -> tuple[Ragged, State]:
        check_channels(batch, self.in_channels)
        geometry = geometry or self.geometry(batch)
        x, finer, skips, deformations = batch.feat, None, [], []
        for blocks, level in zip(self.encoder, geometry.levels, strict=True):
            inner = Stencil(level.points, level.points, level.neighbors)
            entry = Stencil(level.points, finer.points, level.pools) if finer else inner
            x = blocks(x, entry, inner, deformations)
            skips.append(x)
            finer = level
        state = State(geometry, skips, deformations)
        x = self._upsample(x, state, range(len(skips) - 2, self.tap_level - 1, -1))
        tap = geometry.levels[self.tap_level]
        return Ragged(x, tap.points, tap.offsets), state

    def decode(self, features: Tensor, state: State) -> Tensor:
        return self.head(self._upsample(features, state, range(self.tap_level - 1, -1, -1)))

    def regularization(self, state: State, rows: Sequence[int] | None = None) -> Tensor | None:
        if not state.deformations:
            return None
        rows = self.regularized_rows(state.geometry) if rows is None else rows
        losses = [deformation.loss(count) for deformation, count in zip(state.deformations, rows, strict=True)]
        return torch.stack(losses).sum()

    def regularized_rows(self, geometry: Pyramid) -> list[int]:
        return [
            len(level.points)  # what leads to a level is evaluated on its points, too
            for blocks, level in zip(self.encoder, geometry.levels, strict=True)
            for module in blocks.modules()
            if isinstance(module, DeformableKPConv)
        ]

    def offset_parameters(self) -> list[nn.Parameter]:
        convolutions = [module for module in self.modules() if isinstance(module, DeformableKPConv)]
        return [p for conv in convolutions for p in (*conv.offset_conv.parameters(), conv.offset_bias)]

    def _upsample(self, x: Tensor, state: State, levels: range) -> Tensor:
        """Carry features one level finer after the other, to the last of `levels`."""
        for level in levels:
            fusion, rows = self.decoder[len(self.decoder) - 1 - level], state.geometry.levels[level].upsamples
            x = leaky_relu(fusion(x, rows, state.skips[level]))
        return x
