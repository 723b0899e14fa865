"""What KPFCNN is made of: rigid and deformable convolutions, and the blocks around them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpconv_ops import (
    Neighbors,
    Upsampling,
    deformable_kpconv,
    fitting_loss,
    kernel_points,
    kpconv,
    max_pool,
    repulsive_loss,
    upsample,
)

from .kpfcnn_config import KPFCNNConfig
from .norm import BatchNorm


@dataclass(frozen=True, eq=False)
class Stencil:
    """Where a convolution is evaluated: `queries [M, 3]`, `supports [N, 3]` and which of these each query sees."""

    queries: Tensor
    supports: Tensor
    neighbors: Neighbors


def padded_max_pool(features: Tensor, nb: Neighbors) -> Tensor:
    """`max_pool` as KPConv-PyTorch has it: a neighbourhood smaller than the largest one is padded with zeros."""
    counts = nb.splits.diff()
    padded = counts < F.pad(counts, (0, 1)).max()
    pooled = max_pool(features, nb)
    return torch.where(padded[:, None], pooled.clamp(min=0), pooled)


@dataclass(frozen=True, eq=False)
class Deformation:
    """Where a deformable convolution moved its `kernel_points [P, 3]`: by `offsets [M, P, 3]` for its M queries."""

    stencil: Stencil
    kernel_points: Tensor
    offsets: Tensor
    extent: float

    def loss(self, rows: int) -> Tensor:
        """Regularisation (KPConv, Eq. 6): kernel points stay near points and apart from each other.

        The sum over the queries here, divided by `rows`, the queries of the whole batch.
        """
        geometry = self.stencil.queries, self.stencil.supports, self.stencil.neighbors
        kernel_points = self.kernel_points.to(self.stencil.queries.dtype)
        fitting = fitting_loss(*geometry, kernel_points, self.offsets, self.extent)
        mean = 2 * fitting + repulsive_loss(kernel_points, self.offsets, self.extent)
        return mean * (len(self.offsets) / max(rows, 1))


def leaky_relu(x: Tensor) -> Tensor:
    """The network's activation, in place: its inputs are never used again."""
    return F.leaky_relu(x, 0.1, inplace=True)


class KPConv(nn.Module):
    """Rigid kernel point convolution (KPConv, Eq. 1 and 2) with kernel points of its own.

    Args:
        in_channels, out_channels: features per point.
        level: level of the supports; its cell is the unit of the configured radius and extent.
        config: the network's settings.
    """

    def __init__(self, in_channels: int, out_channels: int, level: int, config: KPFCNNConfig):
        super().__init__()
        self.extent = config.extent * config.cell(level)
        self.rule = {"extent": self.extent, "influence": config.influence, "aggregation": config.aggregation}
        self.weights = nn.Parameter(torch.empty(config.num_kernel_points, in_channels, out_channels))
        nn.init.kaiming_uniform_(self.weights, a=5**0.5)
        radius = config.conv_radius * config.cell(level)
        self.register_buffer("kernel_points", kernel_points(config.num_kernel_points, radius))

    def forward(self, x: Tensor, stencil: Stencil, deformations: list[Deformation]) -> Tensor:
        """`[M, out_channels]` at the queries. Kernel points that move are noted in `deformations`: here none do."""
        geometry = stencil.queries, stencil.supports, stencil.neighbors
        return kpconv(x, *geometry, self.kernel_points, self.weights, **self.rule)


class DeformableKPConv(KPConv):
    """Deformable kernel point convolution (KPConv, Eq. 4 and 5).

    A rigid convolution of the same input predicts where the kernel points of each query lie and, if `config.modulated`,
    how much each of them counts, from 0 to 2.
    """

    def __init__(self, in_channels: int, out_channels: int, level: int, config: KPFCNNConfig):
        super().__init__(in_channels, out_channels, level, config)
        predictions = (4 if config.modulated else 3) * config.num_kernel_points
        self.offset_conv = KPConv(in_channels, predictions, level, config)
        self.offset_bias = nn.Parameter(torch.zeros(predictions))

    def forward(self, x: Tensor, stencil: Stencil, deformations: list[Deformation]) -> Tensor:
        predictions = self.offset_conv(x, stencil, deformations) + self.offset_bias
        offsets, modulations = predictions.tensor_split([3 * len(self.kernel_points)], dim=1)
        offsets = self.extent * offsets.unflatten(1, (-1, 3))
        modulations = 2 * modulations.sigmoid() if modulations.shape[1] else None
        deformations.append(Deformation(stencil, self.kernel_points, offsets, self.extent))
        geometry = stencil.queries, stencil.supports, stencil.neighbors
        return deformable_kpconv(x, *geometry, self.kernel_points, self.weights, offsets, modulations, **self.rule)


def convolution(in_channels: int, out_channels: int, level: int, config: KPFCNNConfig) -> KPConv:
    """The convolution that the settings ask for at a level."""
    kind = DeformableKPConv if level in config.deformable_levels else KPConv
    return kind(in_channels, out_channels, level, config)


class Unary(nn.Module):
    """Point-wise linear layer and normalisation."""

    def __init__(self, in_channels: int, out_channels: int, config: KPFCNNConfig):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels, momentum=config.bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class Fusion(nn.Module):
    """Unary layer of a point's `[upsampled coarse features, skip]`, without forming it.

    The coarse features are multiplied before they are copied to the finer points, of which there are about four times
    as many: the same sums in half of the operations.
    """

    def __init__(self, coarse_channels: int, skip_channels: int, out_channels: int, config: KPFCNNConfig):
        super().__init__()
        self.split = [coarse_channels, skip_channels]
        self.linear = nn.Linear(sum(self.split), out_channels, bias=False)
        self.norm = BatchNorm(out_channels, momentum=config.bn_momentum)

    def forward(self, coarse: Tensor, rows: Upsampling, skip: Tensor) -> Tensor:
        for_coarse, for_skip = self.linear.weight.split(self.split, dim=1)
        return self.norm(upsample(F.linear(coarse, for_coarse), rows) + F.linear(skip, for_skip))


class SimpleBlock(nn.Module):
    """Convolution, normalisation, activation."""

    def __init__(self, in_channels: int, out_channels: int, level: int, config: KPFCNNConfig):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, level, config)
        self.norm = BatchNorm(out_channels, momentum=config.bn_momentum)

    def forward(self, x: Tensor, stencil: Stencil, deformations: list[Deformation]) -> Tensor:
        return leaky_relu(self.norm(self.conv(x, stencil, deformations)))


class ResidualBlock(nn.Module):
    """Bottleneck residual block on the points of `level`.

    A strided one puts out the points of the next coarser level, to which it max-pools its shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, level: int, config: KPFCNNConfig, strided: bool = False):
        super().__init__()
        width = out_channels // 4
        self.strided = strided
        self.pool = padded_max_pool if config.padded_pools else max_pool
        self.reduce = Unary(in_channels, width, config) if in_channels != width else None
        self.conv = convolution(width, width, level, config)
        self.norm = BatchNorm(width, momentum=config.bn_momentum)
        self.expand = Unary(width, out_channels, config)
        self.shortcut = Unary(in_channels, out_channels, config) if in_channels != out_channels else None

    def forward(self, x: Tensor, stencil: Stencil, deformations: list[Deformation]) -> Tensor:
        y = leaky_relu(self.reduce(x)) if self.reduce else x
        y = self.expand(leaky_relu(self.norm(self.conv(y, stencil, deformations))))
        x = self.pool(x, stencil.neighbors) if self.strided else x
        return leaky_relu(y + (self.shortcut(x) if self.shortcut else x))
