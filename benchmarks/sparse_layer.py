"""What the sparse suite convolves: voxels of one resolution after the other, and the layers of a U-Net on them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import kpconv_ops

from . import inputs as made
from . import textbook_sparse as textbook
from .row import Work


@dataclass(frozen=True, eq=False)
class Level:
    """The voxels of a resolution, sorted."""

    coords: Tensor
    offsets: Tensor
    stride: int

    @classmethod
    def of(cls, coords: Tensor, stride: int = 1) -> "Level":
        voxels = kpconv_ops.stride_coords(coords, coords.new_tensor([0, len(coords)]), stride)
        return cls(voxels.coords, voxels.offsets, stride)

    @cached_property
    def coarse(self) -> "Level":
        return Level.of(self.coords, 2 * self.stride)

    def map(self, target: "Level", kernel_size: int) -> kpconv_ops.KernelMap:
        return kpconv_ops.kernel_map(
            self.coords, self.offsets, target.coords, target.offsets, kernel_size, dilation=self.stride
        )

    def pairs(self, target: "Level", kernel_size: int) -> int:
        return int((self.map(target, kernel_size).rows >= 0).sum())


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution of a U-Net: on the voxels of a resolution, from them to half of it, or back."""

    fine: Level
    kernel_size: int
    in_channels: int
    out_channels: int
    transposed: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def strided(self) -> bool:
        return self.kernel_size % 2 == 0

    @property
    def coarse(self) -> Level:
        return self.fine.coarse if self.strided else self.fine

    @cached_property
    def map(self) -> kpconv_ops.KernelMap:
        found = self.fine.map(self.coarse, self.kernel_size)
        return found.transposed if self.transposed else found

    @cached_property
    def pairs(self) -> textbook.Pairs:
        step = self.fine.stride
        found = textbook.kernel_map(self.fine.coords, self.coarse.coords, self.kernel_size, step)
        return textbook.transposed(found) if self.transposed else found

    @cached_property
    def features(self) -> Tensor:
        rows = self.coarse if self.transposed else self.fine
        return made.normal(len(rows.coords), self.in_channels, stream=1).to(self.fine.coords.device, self.dtype)

    @cached_property
    def weights(self) -> Tensor:
        taps = self.kernel_size**3
        noise = made.normal(taps, self.in_channels, self.out_channels, stream=2)
        return ((taps * self.in_channels) ** -0.5 * noise).to(self.features)

    @property
    def num_out(self) -> int:
        return len((self.fine if self.transposed else self.coarse).coords)

    def work(self, passes: int) -> Work:
        """Each pass multiplies the rows of all pairs by a matrix, and moves features, result, weights and the map."""
        pairs = int((self.map.rows >= 0).sum())
        flops = 2 * pairs * self.in_channels * self.out_channels
        result = self.num_out * self.out_channels * self.features.element_size()
        moved = self.features.nbytes + result + self.weights.nbytes + 4 * pairs
        return Work(passes * flops, passes * moved, str(self.dtype).removeprefix("torch."))
