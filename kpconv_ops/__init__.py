"""Operators on packed point sets and sparse voxels, on CPU and CUDA, in PyTorch."""

from .neighbors import Neighbors, nearest, radius_search
from .subsample import GridSubsample, grid_subsample

__all__ = ["GridSubsample", "Neighbors", "grid_subsample", "nearest", "radius_search"]
