"""What MinkUNet asks of a library of sparse convolutions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """Occupied voxels of one resolution.

    Args:
        coords: `[V, 3]` int64 lower corners, in voxels of the finest resolution; multiples of `stride`.
        offsets: `[B + 1]` int64: sample b owns rows `offsets[b]:offsets[b + 1]`.
        stride: edge of a voxel, in voxels of the finest resolution.
    """

    coords: Tensor
    offsets: Tensor
    stride: int


class SparseEngine(ABC):
    """Quantisation, kernel maps and convolutions. Kernels have MinkowskiEngine's layout, rows are packed by sample.

    A kernel is `[K, Cin, Cout]`; the tap with offset `(ix, iy, iz)` has index `ix + k·(iy + k·iz)`. Offsets are counted
    in voxels of the source grid: centred for odd kernel sizes k, from 0 on for even ones.
    """

    @abstractmethod
    def quantize(self, points: Tensor, offsets: Tensor, voxel_size: float) -> tuple[VoxelGrid, Tensor]:
        """The voxels `floor(points / voxel_size)` of `[N, 3]` points, and the `[N]` int64 voxel row of every point."""

    @abstractmethod
    def downsample(self, grid: VoxelGrid) -> VoxelGrid:
        """The voxels of twice the edge that hold the voxels of `grid`."""

    @abstractmethod
    def kernel_map(self, source: VoxelGrid, target: VoxelGrid, kernel_size: int) -> Any:
        """Which source row meets which target row under which kernel tap; this engine's convolutions take it."""

    @abstractmethod
    def conv(self, features: Tensor, kernel: Tensor, kernel_map: Any) -> Tensor:
        """Convolve `[V_source, Cin]` features: `out[c] = Σ in[c + offset] · kernel[offset]`, `[V_target, Cout]`."""

    @abstractmethod
    def conv_transposed(self, features: Tensor, kernel: Tensor, kernel_map: Any) -> Tensor:
        """The transposed convolution along the map of a convolution: `[V_target, Cin]` to `[V_source, Cout]`."""

    @abstractmethod
    def average(self, features: Tensor, inverse: Tensor, grid: VoxelGrid) -> Tensor:
        """Mean of the `[N, C]` point features in every voxel: `[V, C]`."""
