"""MinkowskiEngine as an engine, for those who have it: its kernel maps, convolutions and pooling on our coordinates."""

import collections
import collections.abc
import functools
import importlib
import itertools
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kpconv_ops._checks import FEATURE_DTYPES, check_choice, check_count, check_tensor
from kpconv_ops._precision import autocast
from kpconv_ops.kernel_maps import check_kernel_size

from ...errors import UserError
from ..base import uncompiled
from .base import SparseEngine, VoxelGrid

REMEDY = (
    "`dsp-sparse doctor --install-minkowski` builds it; the native engine takes the same weights without it "
    "(evaluate and predict: --engine native)"
)
LARGEST_COORDINATE = 2**31 - 2**20  # a kernel may reach 2^20 voxels beyond the outermost one


@functools.cache
def load() -> ModuleType:
    """Import MinkowskiEngine.

    Raises:
        UserError: it is not installed, or does not work; with the reason and what to do.
    """
    try:
        with importable():
            return importlib.import_module("MinkowskiEngine")
    except Exception as error:  # a compiled package fails in many ways: a missing library, a symbol of another torch
        if isinstance(error, ModuleNotFoundError) and error.name == "MinkowskiEngine":
            reason = "is not installed"
        else:
            reason = f"cannot be imported ({' '.join(f'{type(error).__name__}: {error}'.split())})"
        raise UserError(f"engine minkowski: MinkowskiEngine {reason}; {REMEDY}") from error


@contextmanager
def importable() -> Iterator[None]:
    """What importing MinkowskiEngine 0.5.4 takes; all is as it was afterwards.

    It looks for `Sequence` in `collections`, which Python 3.10 removed there, and a CPU build warns that it is one. It
    adds its folder to `sys.path`, and on a machine with many cores sets `OMP_NUM_THREADS`, which its processes inherit.
    """
    path, threads = list(sys.path), os.environ.get("OMP_NUM_THREADS")
    cure = not hasattr(collections, "Sequence")
    if cure:
        collections.Sequence = collections.abc.Sequence
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if cure:
            del collections.Sequence
        sys.path[:] = path
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)


@dataclass(frozen=True, eq=False)
class MinkowskiGrid(VoxelGrid):
    """A grid that is known to MinkowskiEngine, too.

    Args:
        manager: its coordinate manager, one for all grids of a `quantize`. It lives as long as they, their kernel maps
            or a graph that convolved along them.
        key: its name for this grid; None for a grid without voxels, which it cannot take.
        order: `[V]` our row of each of its rows; None if it keeps our order.
        place: `[V]` its row of each of our rows; None likewise.
    """

    manager: Any
    key: Any
    order: Tensor | None
    place: Tensor | None

    def send(self, features: Tensor) -> Tensor:
        """Our rows in its order."""
        return features if self.order is None else features[self.order]

    def fetch(self, features: Tensor) -> Tensor:
        """Its rows in our order."""
        return features if self.place is None else features[self.place]


@dataclass(frozen=True, eq=False)
class MinkowskiMap:
    """A kernel between two grids; the pairs of rows lie in the coordinate manager."""

    source: MinkowskiGrid
    target: MinkowskiGrid
    kernel_size: list[int]
    dilation: list[int]

    def generator(self, stride: int) -> Any:
        """The kernel in MinkowskiEngine's terms. The stride means nothing between grids that are given."""
        return load().KernelGenerator(self.kernel_size, stride, self.dilation, dimension=3)

    @functools.cached_property
    def reached(self) -> tuple[MinkowskiGrid, Tensor | None]:
        """The target voxels with a source voxel under their kernel, as a grid, and their rows; None for all rows."""
        present = torch.zeros(len(self.target.coords), dtype=torch.bool, device=self.target.coords.device)
        for _, rows in find_pairs(self).values():
            present[rows.long()] = True
        present = self.target.fetch(present)
        if present.all():
            return self.target, None
        offsets = F.pad(present.cumsum(0), (1, 0))[self.target.offsets]
        part = VoxelGrid(self.target.coords[present], offsets, self.target.stride)
        return insert(part, self.target.manager), present.nonzero()[:, 0]


class MinkowskiAdapter(SparseEngine):
    """Sparse convolutions of MinkowskiEngine 0.5.4, in float32 or float64; other types are computed in float32.

    Results differ by rounding from run to run, and `torch.compile` leaves these operators out.

    Raises:
        UserError: MinkowskiEngine is not installed, or does not work.
    """

    package = "MinkowskiEngine"

    def __init__(self):
        load()

    def quantize(self, points: Tensor, offsets: Tensor, voxel_size: float) -> tuple[MinkowskiGrid, Tensor]:
        grid, inverse = super().quantize(points, offsets, voxel_size)
        if len(grid.coords) and grid.coords.abs().amax() > LARGEST_COORDINATE:
            raise UserError(
                f"voxel_size {voxel_size} does not fit the coordinates: engine minkowski counts voxels in 32 bits, up "
                f"to ±{LARGEST_COORDINATE}, got {grid.coords.amin()} to {grid.coords.amax()}; engine native has 64"
            )
        return insert(grid, new_manager(points.device)), inverse

    def downsample(self, grid: MinkowskiGrid, stride: int = 2) -> MinkowskiGrid:
        return insert(super().downsample(grid, stride), grid.manager)

    def kernel_map(
        self, source: MinkowskiGrid, target: MinkowskiGrid, kernel_size: int | tuple[int, int, int], dilation: int = 1
    ) -> MinkowskiMap:
        if source.manager is not target.manager:
            raise ValueError("source and target must come from the same quantize")
        check_count("dilation", dilation * source.stride)
        kernel_map = MinkowskiMap(source, target, check_kernel_size(kernel_size), [dilation] * 3)
        find_pairs(kernel_map)  # now, not in the first convolution: a transposed one alone would find others
        return kernel_map

    @uncompiled
    def conv(self, features: Tensor, kernel: Tensor, kernel_map: MinkowskiMap) -> Tensor:
        function = load().MinkowskiConvolutionFunction
        return convolve(function, features, kernel, kernel_map, kernel_map.source, kernel_map.target)

    @uncompiled
    def conv_transposed(self, features: Tensor, kernel: Tensor, kernel_map: MinkowskiMap) -> Tensor:
        function = load().MinkowskiConvolutionTransposeFunction
        return convolve(function, features, kernel, kernel_map, kernel_map.target, kernel_map.source)

    @uncompiled
    def pool(self, features: Tensor, kernel_map: MinkowskiMap, mode: Literal["max", "mean"]) -> Tensor:
        check_features(features, kernel_map.source)
        check_choice("mode", mode, ("max", "mean"))
        # MinkowskiEngine writes outside of its memory for a target voxel with nothing to pool.
        target, rows = kernel_map.reached
        if kernel_map.source.key is None or target.key is None:
            return F.pad(features[:0], (0, 0, 0, len(kernel_map.target.coords)))
        name = {"max": "LOCAL_MAX_POOLING", "mean": "LOCAL_AVG_POOLING"}[mode]
        with on_device(features):
            pooled = load().MinkowskiLocalPoolingFunction.apply(
                kernel_map.source.send(widened(features)),
                getattr(backend().PoolingMode, name),
                # A stride of the kernel's size would take another way, which fails where windows hold one voxel each.
                kernel_map.generator(stride=max(kernel_map.kernel_size) + 1),
                kernel_map.source.key,
                target.key,
                target.manager,
            )
        pooled = target.fetch(pooled).to(features.dtype)
        if rows is None:
            return pooled
        return pooled.new_zeros(len(kernel_map.target.coords), pooled.shape[1]).index_copy(0, rows, pooled)


def convolve(
    function: type[torch.autograd.Function],
    features: Tensor,
    kernel: Tensor,
    kernel_map: MinkowskiMap,
    source: MinkowskiGrid,
    target: MinkowskiGrid,
) -> Tensor:
    """Apply a convolution of MinkowskiEngine from one grid to the other."""
    check_features(features, source)
    features, kernel = autocast(features, kernel)
    shape = (math.prod(kernel_map.kernel_size), features.shape[1], None)
    check_tensor("kernel", kernel, shape, (features.dtype,), like=features)
    if source.key is None or target.key is None:
        # No pair, but a result of the right type with a gradient (of zeros) for both arguments.
        return F.pad(features[:0] @ kernel[0], (0, 0, 0, len(target.coords)))
    with on_device(features):
        out = function.apply(
            source.send(widened(features)),
            widened(kernel).contiguous(),
            kernel_map.generator(stride=1),
            backend().ConvolutionMode.DEFAULT,
            source.key,
            target.key,
            source.manager,
        )
    return target.fetch(out).to(features.dtype)


def check_features(features: Tensor, source: MinkowskiGrid) -> None:
    """MinkowskiEngine reads outside of its memory where features are not one row a voxel."""
    check_tensor("features", features, (len(source.coords), None), FEATURE_DTYPES, like=source.coords)


def find_pairs(kernel_map: MinkowskiMap) -> dict[int, Tensor]:
    """The pairs `[2, E]` of its rows (source, target) under every occupied tap; the manager keeps them."""
    source, target = kernel_map.source, kernel_map.target
    if source.key is None or target.key is None:
        return {}
    with on_device(source.coords):
        return source.manager.kernel_map(
            source.key, target.key, stride=1, kernel_size=kernel_map.kernel_size, dilation=kernel_map.dilation
        )


_names = itertools.count()


def insert(grid: VoxelGrid, manager: Any) -> MinkowskiGrid:
    """Make a grid known to a coordinate manager, under a name of its own."""
    fields = (grid.coords, grid.offsets, grid.stride, manager)
    if not len(grid.coords):
        return MinkowskiGrid(*fields, key=None, order=None, place=None)
    samples = torch.arange(len(grid.offsets) - 1, device=grid.offsets.device)
    samples = samples.repeat_interleave(grid.offsets.diff(), output_size=len(grid.coords))
    coordinates = torch.cat([samples[:, None], grid.coords], dim=1).int()
    with on_device(coordinates):
        key, (order, place) = manager.insert_and_map(coordinates, [grid.stride] * 3, str(next(_names)))
    order, place = order.long(), place.long()
    if torch.equal(order, torch.arange(len(order), device=order.device)):
        return MinkowskiGrid(*fields, key, order=None, place=None)
    return MinkowskiGrid(*fields, key, order, place)


def new_manager(device: torch.device) -> Any:
    """A coordinate manager without coordinates.

    Raises:
        UserError: points on a GPU, for a MinkowskiEngine built without.
    """
    me = load()
    if device.type == "cuda" and not me.is_cuda_available():
        raise UserError(
            f"engine minkowski: MinkowskiEngine was built for the CPU only, the points are on {device}; "
            "`dsp-sparse doctor --install-minkowski --cuda` builds it for both"
        )
    kinds = me.CoordinateMapType
    return me.CoordinateManager(
        D=3,
        num_threads=torch.get_num_threads(),  # it sets the number for all of the process
        coordinate_map_type=kinds.CUDA if device.type == "cuda" else kinds.CPU,
    )


def backend() -> ModuleType:
    """MinkowskiEngine's compiled part; the package does not hand on all of its names."""
    return importlib.import_module("MinkowskiEngineBackend._C")


def widened(features: Tensor) -> Tensor:
    """In a type that MinkowskiEngine has."""
    return features if features.dtype == torch.float64 else features.float()


def on_device(tensor: Tensor) -> AbstractContextManager:
    """MinkowskiEngine works on the current GPU, wherever the tensors lie."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
