"""Operators on packed point sets and sparse voxels, on CPU and CUDA, in PyTorch."""
