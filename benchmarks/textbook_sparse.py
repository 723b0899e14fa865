"""Sparse convolutions as one would write them in plain torch: what `kpconv_ops` is compared with.

A kernel map is a list of pairs `(in_rows, out_rows)` for each tap, found by binary search among sorted 64-bit keys; a
convolution gathers (`index_select`), multiplies (`mm`) and adds (`index_add_`) tap by tap. All of one sample.
"""

from itertools import product

import torch
from torch import Tensor

from dsp_sparse.backbones.engines import SparseEngine, VoxelGrid

Pairs = list[tuple[Tensor, Tensor]]

BITS = 20  # of a coordinate in a key
CENTRE = 1 << (BITS - 1)


def keys(coords: Tensor) -> Tensor:
    """Numbers that order voxels by (z, y, x)."""
    x, y, z = (coords + CENTRE).unbind(dim=1)
    return ((z << BITS) + y << BITS) + x


def unique(coords: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted voxels, each once, and the row of each given one."""
    found, inverse = torch.unique(keys(coords), return_inverse=True)
    places = [found & ((1 << BITS) - 1), found >> BITS & ((1 << BITS) - 1), found >> 2 * BITS]
    return torch.stack(places, dim=1) - CENTRE, inverse


def stride_coords(coords: Tensor, stride: int) -> Tensor:
    """Voxels of a coarser grid, sorted, each once."""
    return unique(coords.div(stride, rounding_mode="floor") * stride)[0]


def kernel_map(in_coords: Tensor, out_coords: Tensor, kernel_size: int, dilation: int) -> Pairs:
    """The pairs of each tap, x fastest; `in_coords` are sorted."""
    sorted_keys, queries = keys(in_coords), keys(out_coords)
    axis = [(i - kernel_size // 2 * (kernel_size % 2)) * dilation for i in range(kernel_size)]
    pairs = []
    for z, y, x in product(axis, axis, axis):
        wanted = queries + (((z << BITS) + y << BITS) + x)
        rows = torch.searchsorted(sorted_keys, wanted).clamp(max=len(sorted_keys) - 1)
        out_rows = (sorted_keys[rows] == wanted).nonzero()[:, 0]
        pairs.append((rows[out_rows], out_rows))
    return pairs


class SparseConv(torch.autograd.Function):
    """Gather, multiply, add, tap by tap. The gradients gather anew instead of keeping what was gathered."""

    @staticmethod
    def forward(ctx, features, weights, pairs, num_out):
        ctx.save_for_backward(features, weights)
        ctx.pairs = pairs
        out = features.new_zeros(num_out, weights.shape[2])
        for weight, (in_rows, out_rows) in zip(weights, pairs, strict=True):
            out.index_add_(0, out_rows, features.index_select(0, in_rows).mm(weight))
        return out

    @staticmethod
    def backward(ctx, grad):
        features, weights = ctx.saved_tensors
        grad_features, grad_weights = torch.zeros_like(features), torch.empty_like(weights)
        for weight, grad_weight, (in_rows, out_rows) in zip(weights, grad_weights, ctx.pairs, strict=True):
            grads = grad.index_select(0, out_rows)
            torch.mm(features.index_select(0, in_rows).T, grads, out=grad_weight)
            grad_features.index_add_(0, in_rows, grads.mm(weight.T))
        return grad_features, grad_weights, None, None


def sparse_conv(features: Tensor, weights: Tensor, pairs: Pairs, num_out: int) -> Tensor:
    """`[num_out, Cout]` from `[V, Cin]` features and `[K, Cin, Cout]` weights."""
    return SparseConv.apply(features, weights, pairs, num_out)


def transposed(pairs: Pairs) -> Pairs:
    return [(out_rows, in_rows) for in_rows, out_rows in pairs]


def pool(features: Tensor, pairs: Pairs, num_out: int, mode: str) -> Tensor:
    """Maximum or mean over the occupied taps, by a scatter of all pairs."""
    in_rows, out_rows = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    index = out_rows[:, None].expand(-1, features.shape[1])
    out = features.new_zeros(num_out, features.shape[1])
    reduce = {"max": "amax", "mean": "mean"}[mode]
    return out.scatter_reduce(0, index, features[in_rows], reduce, include_self=False)


def trilinear(points: Tensor, coords: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Rows and weights `[N, 8]` of the voxels around each point: 0 for an empty one, the others add up to 1."""
    place = points / voxel_size - 0.5
    low = place.floor()
    share = place - low
    sorted_keys = keys(coords)
    rows, weights = [], []
    for corner in product((0, 1), repeat=3):
        step = points.new_tensor(corner)
        wanted = keys((low + step).long())
        row = torch.searchsorted(sorted_keys, wanted).clamp(max=len(sorted_keys) - 1)
        rows.append(row)
        weights.append((1 - step + (2 * step - 1) * share).prod(dim=1) * (sorted_keys[row] == wanted))
    weights = torch.stack(weights, dim=1)
    return torch.stack(rows, dim=1), weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)


def interpolate(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the features of eight voxels a point."""
    return (features[rows] * weights[..., None]).sum(dim=1)


class TextbookEngine(SparseEngine):
    """An engine of the functions above, for one sample. A kernel map is the pairs, rows in and rows out."""

    def quantize(self, points, offsets, voxel_size):
        coords, inverse = unique((points / voxel_size).floor().long())
        return VoxelGrid(coords, offsets.new_tensor([0, len(coords)]), stride=1), inverse

    def downsample(self, grid, stride=2):
        coords = stride_coords(grid.coords, grid.stride * stride)
        return VoxelGrid(coords, grid.offsets.new_tensor([0, len(coords)]), grid.stride * stride)

    def kernel_map(self, source, target, kernel_size, dilation=1):
        pairs = kernel_map(source.coords, target.coords, kernel_size, dilation * source.stride)
        return pairs, len(source.coords), len(target.coords)

    def conv(self, features, kernel, kernel_map):
        pairs, _, num_out = kernel_map
        return sparse_conv(features, kernel, pairs, num_out)

    def conv_transposed(self, features, kernel, kernel_map):
        pairs, num_in, _ = kernel_map
        return sparse_conv(features, kernel, transposed(pairs), num_in)

    def pool(self, features, kernel_map, mode):
        pairs, _, num_out = kernel_map
        return pool(features, pairs, num_out, mode)

    def average(self, features, inverse, grid):
        total = features.new_zeros(len(grid.coords), features.shape[1]).index_add_(0, inverse, features)
        return total / torch.bincount(inverse, minlength=len(grid.coords))[:, None]

    def nearest(self, inverse, grid):
        return inverse

    def devoxelize(self, features, onto):
        return features[onto]
