"""The layers of MinkUNet, with MinkowskiEngine's parameter names and layouts."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .engines import SparseEngine
from .norm import BatchNorm


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
    """Convolution of kernel size 1: a matrix product. `kernel` is `[Cin, Cout]`, `bias` `[1, Cout]`."""

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


class ResidualBlock(nn.Module, ABC):
    """A branch of convolutions beside a shortcut. The result has `planes * expansion` channels.

    `downsample` is MinkowskiEngine's name of a shortcut that changes the width.
    """

    expansion: int
    downsample: nn.Module | None

    @abstractmethod
    def branch(self, x: Tensor, kernel_map: Any) -> Tensor: ...

    def forward(self, x: Tensor, kernel_map: Any) -> Tensor:
        return relu(self.branch(x, kernel_map) + (self.downsample(x) if self.downsample else x))


def shortcut(in_channels: int, out_channels: int) -> nn.Module | None:
    """What a shortcut needs to change the width; None if there is nothing to change."""
    if in_channels == out_channels:
        return None
    return nn.Sequential(PointwiseConv(in_channels, out_channels), Norm(out_channels))


class BasicBlock(ResidualBlock):
    """Two 3³ convolutions."""

    expansion = 1

    def __init__(self, engine: SparseEngine, in_channels: int, planes: int):
        super().__init__()
        self.conv1 = SparseConv(engine, in_channels, planes, kernel_size=3)
        self.norm1 = Norm(planes)
        self.conv2 = SparseConv(engine, planes, planes, kernel_size=3)
        self.norm2 = Norm(planes)
        self.downsample = shortcut(in_channels, planes)

    def branch(self, x: Tensor, kernel_map: Any) -> Tensor:
        x = relu(self.norm1(self.conv1(x, kernel_map)))
        return self.norm2(self.conv2(x, kernel_map))


class Bottleneck(ResidualBlock):
    """A 3³ convolution of few channels, between two pointwise ones."""

    expansion = 4

    def __init__(self, engine: SparseEngine, in_channels: int, planes: int):
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = PointwiseConv(in_channels, planes)
        self.norm1 = Norm(planes)
        self.conv2 = SparseConv(engine, planes, planes, kernel_size=3)
        self.norm2 = Norm(planes)
        self.conv3 = PointwiseConv(planes, out_channels)
        self.norm3 = Norm(out_channels)
        self.downsample = shortcut(in_channels, out_channels)

    def branch(self, x: Tensor, kernel_map: Any) -> Tensor:
        x = relu(self.norm1(self.conv1(x)))
        x = relu(self.norm2(self.conv2(x, kernel_map)))
        return self.norm3(self.conv3(x))


class Stage(nn.ModuleList):
    """The residual blocks of one stage, all on one kernel map. Its result has `width` channels."""

    def __init__(self, engine: SparseEngine, block: type[ResidualBlock], in_channels: int, planes: int, count: int):
        width = planes * block.expansion
        super().__init__(block(engine, width if i else in_channels, planes) for i in range(count))
        self.width = width

    def forward(self, x: Tensor, kernel_map: Any) -> Tensor:
        for block in self:
            x = block(x, kernel_map)
        return x
