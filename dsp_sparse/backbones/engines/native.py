"""The default engine: this project's own operators."""

from torch import Tensor

from kpconv_ops import KernelMap, kernel_map, scatter_mean, sparse_conv, stride_coords, voxelize

from .base import SparseEngine, VoxelGrid


class NativeEngine(SparseEngine):
    """Sparse convolutions of `kpconv_ops`."""

    def quantize(self, points: Tensor, offsets: Tensor, voxel_size: float) -> tuple[VoxelGrid, Tensor]:
        voxels = voxelize(points, offsets, voxel_size)
        return VoxelGrid(voxels.coords, voxels.offsets, stride=1), voxels.inverse

    def downsample(self, grid: VoxelGrid) -> VoxelGrid:
        stride = 2 * grid.stride
        voxels = stride_coords(grid.coords, grid.offsets, stride)
        return VoxelGrid(voxels.coords, voxels.offsets, stride)

    def kernel_map(self, source: VoxelGrid, target: VoxelGrid, kernel_size: int) -> KernelMap:
        return kernel_map(
            source.coords, source.offsets, target.coords, target.offsets, kernel_size, dilation=source.stride
        )

    def conv(self, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        return sparse_conv(features, kernel, kernel_map)

    def conv_transposed(self, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        return sparse_conv(features, kernel, kernel_map.transposed)

    def average(self, features: Tensor, inverse: Tensor, grid: VoxelGrid) -> Tensor:
        return scatter_mean(features, inverse, len(grid.coords))
