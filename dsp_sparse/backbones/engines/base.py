"""What MinkUNet asks of a library of sparse convolutions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from kpconv_ops import (
    Interpolation,
    Upsampling,
    interpolate,
    scatter_mean,
    stride_coords,
    trilinear,
    upsample,
    voxelize,
)

from ...errors import UserError


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
    """Voxels, kernel maps, convolutions and pooling. Kernels have MinkowskiEngine's layout, rows are packed by sample.

    A kernel is `[K, Cin, Cout]`; the tap with offset `(ix, iy, iz)` has index `ix + kx·(iy + ky·iz)`. Offsets are
    counted in voxels of the source grid, times the dilation: centred for odd kernel sizes, from 0 on for even ones.

    Coordinates are the same for every engine: rows packed by sample, and in a sample sorted.

    Every engine refuses the same arguments: its operators raise a TypeError for a wrong type or dtype, and a ValueError
    for a wrong shape or device; features must have the rows of the map's source (of its target for `conv_transposed`),
    a kernel its taps and the features' channels and, outside autocast, their dtype.
    """

    package: str | None = None  # what must be installed, by the name it is imported under

    def quantize(self, points: Tensor, offsets: Tensor, voxel_size: float) -> tuple[VoxelGrid, Tensor]:
        """The voxels `floor(points / voxel_size)` of `[N, 3]` points, and the `[N]` int64 voxel row of every point.

        Raises:
            UserError: voxels so small that the points span too many of them.
        """
        try:
            voxels = voxelize(points, offsets, voxel_size)
        except ValueError as error:
            raise UserError(f"voxel_size {voxel_size} does not fit the coordinates: {error}") from error
        return VoxelGrid(voxels.coords, voxels.offsets, stride=1), voxels.inverse

    def downsample(self, grid: VoxelGrid, stride: int = 2) -> VoxelGrid:
        """The voxels of `stride` times the edge that hold the voxels of `grid`."""
        voxels = stride_coords(grid.coords, grid.offsets, grid.stride * stride)
        return VoxelGrid(voxels.coords, voxels.offsets, grid.stride * stride)

    @abstractmethod
    def kernel_map(
        self, source: VoxelGrid, target: VoxelGrid, kernel_size: int | tuple[int, int, int], dilation: int = 1
    ) -> Any:
        """Which source row meets which target row under which kernel tap; this engine's operators take it.

        Args:
            source: grid of the features that a convolution takes.
            target: grid of its results, from the same `quantize`.
            kernel_size: taps along every axis, or along (x, y, z).
            dilation: step between taps, in voxels of the source grid.

        Raises:
            TypeError: a kernel size or dilation that is not an integer.
            ValueError: a kernel size or dilation below 1, a number of kernel sizes other than three.
        """

    @abstractmethod
    def conv(self, features: Tensor, kernel: Tensor, kernel_map: Any) -> Tensor:
        """Convolve `[V_source, Cin]` features: `out[c] = Σ in[c + offset] · kernel[offset]`, `[V_target, Cout]`."""

    @abstractmethod
    def conv_transposed(self, features: Tensor, kernel: Tensor, kernel_map: Any) -> Tensor:
        """The transposed convolution along the map of a convolution: `[V_target, Cin]` to `[V_source, Cout]`."""

    @abstractmethod
    def pool(self, features: Tensor, kernel_map: Any, mode: Literal["max", "mean"]) -> Tensor:
        """Maximum or mean over the occupied taps, `[V_source, C]` to `[V_target, C]`; zeros where there is none.

        Raises:
            ValueError: another mode.
        """

    def average(self, features: Tensor, inverse: Tensor, grid: VoxelGrid) -> Tensor:
        """Mean of the `[N, C]` point features in every voxel: `[V, C]`."""
        return scatter_mean(features, inverse, len(grid.coords))

    def nearest(self, inverse: Tensor, grid: VoxelGrid) -> Upsampling:
        """For `devoxelize`: every point takes the features of its own voxel."""
        return Upsampling(inverse, len(grid.coords))

    def trilinear(self, points: Tensor, offsets: Tensor, grid: VoxelGrid, voxel_size: float) -> Interpolation:
        """For `devoxelize`: every point blends the occupied among the 8 voxels whose centres surround it.

        The weights are trilinear, scaled to a sum of 1.
        """
        return trilinear(points, offsets, grid.coords, grid.offsets, voxel_size, grid.stride)

    def devoxelize(self, features: Tensor, onto: Upsampling | Interpolation) -> Tensor:
        """`[V, C]` features of voxels, at the points: `[N, C]`."""
        return upsample(features, onto) if isinstance(onto, Upsampling) else interpolate(features, onto)
