"""Operators on packed point sets and sparse voxels, on CPU and CUDA, in PyTorch."""

from .deformable import deformable_kpconv, fitting_loss, repulsive_loss
from .interpolate import Interpolation, interpolate, trilinear
from .kernel_maps import KernelMap, kernel_map
from .kernel_points import kernel_points
from .kpconv import kpconv
from .neighbors import Neighbors, nearest, radius_search
from .pooling import max_pool, mean_pool
from .pyramid import Pyramid, PyramidLevel, pyramid
from .sparse import scatter_mean, sparse_conv
from .subsample import GridSubsample, grid_subsample
from .upsample import Upsampling, upsample
from .voxels import Voxels, stride_coords, voxelize

__all__ = [
    "GridSubsample",
    "Interpolation",
    "KernelMap",
    "Neighbors",
    "Pyramid",
    "PyramidLevel",
    "Upsampling",
    "Voxels",
    "deformable_kpconv",
    "fitting_loss",
    "grid_subsample",
    "interpolate",
    "kernel_map",
    "kernel_points",
    "kpconv",
    "max_pool",
    "mean_pool",
    "nearest",
    "pyramid",
    "radius_search",
    "repulsive_loss",
    "scatter_mean",
    "sparse_conv",
    "stride_coords",
    "trilinear",
    "upsample",
    "voxelize",
]
