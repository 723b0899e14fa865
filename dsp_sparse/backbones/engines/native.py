"""The default engine: this project's own operators."""

from typing import Literal

from torch import Tensor

from kpconv_ops import KernelMap, kernel_map, max_pool, mean_pool, sparse_conv
from kpconv_ops._checks import check_choice

from .base import SparseEngine, VoxelGrid


class NativeEngine(SparseEngine):
    """Sparse convolutions of `kpconv_ops`."""

    def kernel_map(
        self, source: VoxelGrid, target: VoxelGrid, kernel_size: int | tuple[int, int, int], dilation: int = 1
    ) -> KernelMap:
        return kernel_map(
            source.coords, source.offsets, target.coords, target.offsets, kernel_size, dilation * source.stride
        )

    def conv(self, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        return sparse_conv(features, kernel, kernel_map)

    def conv_transposed(self, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        return sparse_conv(features, kernel, kernel_map.transposed)

    def pool(self, features: Tensor, kernel_map: KernelMap, mode: Literal["max", "mean"]) -> Tensor:
        check_choice("mode", mode, ("max", "mean"))
        pool = max_pool if mode == "max" else mean_pool
        return pool(features, kernel_map.neighbors)
