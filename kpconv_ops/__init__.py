"""Operators on packed point sets and sparse voxels, on CPU and CUDA, in PyTorch."""

from .deformable import deformable_kpconv, fitting_loss, repulsive_loss
from .kernel_points import kernel_points
from .kpconv import kpconv
from .neighbors import Neighbors, nearest, radius_search
from .pooling import max_pool
from .sparse import scatter_mean, sparse_conv
from .subsample import GridSubsample, grid_subsample
from .voxels import KernelMap, Voxels, kernel_map, stride_coords, voxelize

__all__ = [
    "GridSubsample",
    "KernelMap",
    "Neighbors",
    "Voxels",
    "deformable_kpconv",
    "fitting_loss",
    "grid_subsample",
    "kernel_map",
    "kernel_points",
    "kpconv",
    "max_pool",
    "nearest",
    "radius_search",
    "repulsive_loss",
    "scatter_mean",
    "sparse_conv",
    "stride_coords",
    "voxelize",
]
