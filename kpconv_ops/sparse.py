"""Convolution of sparse voxels, in the geometry of MinkowskiEngine, and averaging into voxels."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from . import _native
from ._checks import FEATURE_DTYPES, check_size, check_tensor
from ._csr import splits_of
from ._once import differentiable_once
from ._precision import accumulator, add_product, autocast
from .voxels import KernelMap

# Gathered rows and products of a chunk of pairs: on the CPU they stay in the cache between the steps.
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
_MIN_CHUNK_ROWS = 256  # a matrix product of fewer rows is slow


def sparse_conv(features: Tensor, weights: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution `out[o] = sum_k features[i] W[k]` over the pairs (i, o) of each tap k.

    `sparse_conv(features, weights, kernel_map.transposed)` is the transposed convolution. Gradients flow to both
    arguments; it can be differentiated once. The result is the same on every run with the same number of threads. Peak
    memory beyond the result is one chunk of pairs. Under autocast features and weights are cast to the autocast type;
    sums over taps are formed in float32.

    Args:
        features: `[Vin, Cin]` float32, float64, float16 or bfloat16.
        weights: `[K, Cin, Cout]`, dtype of the features.

    Returns:
        `[Vout, Cout]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, a kernel map of other voxels or of another number of taps or, on the
            CPU, with rows outside the voxels.
    """
    if not isinstance(kernel_map, KernelMap):
        raise TypeError(f"kernel_map must be a KernelMap, got {type(kernel_map).__name__}")
    check_tensor("features", features, (kernel_map.num_in, None), FEATURE_DTYPES)
    if kernel_map.in_rows.device != features.device:
        raise ValueError(f"kernel_map must be on {features.device}, got {kernel_map.in_rows.device}")
    features, weights = autocast(features, weights)
    shape = (len(kernel_map.splits) - 1, features.shape[1], None)
    check_tensor("weights", weights, shape, (features.dtype,), like=features)
    return torch.ops.kpconv_ops.sparse_conv(
        features, weights, kernel_map.in_rows, kernel_map.out_rows, kernel_map.splits, kernel_map.num_out
    )


def scatter_mean(features: Tensor, inverse: Tensor, num_rows: int) -> Tensor:
    """Mean of the features of each row of a coarser set, zeros for a row that nothing falls into.

    The gradient flows to `features`. The result is the same on every run.

    Args:
        features: `[N, C]` float32, float64, float16 or bfloat16, averaged in float64.
        inverse: `[N]` int64, the row each feature falls into, from 0 to num_rows - 1, as `Voxels.inverse`.
        num_rows: V.

    Returns:
        `[V, C]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, a row outside [0, num_rows).
    """
    check_tensor("features", features, (None, None), FEATURE_DTYPES)
    check_tensor("inverse", inverse, (len(features),), (torch.int64,), like=features)
    check_size("num_rows", num_rows)
    order, splits = torch.ops.kpconv_ops.group_rows(inverse, num_rows)
    return torch.ops.kpconv_ops.segment_mean(features, order, splits, inverse)


# order[splits[v]:splits[v + 1]] are the rows that fall into row v, ascending.
torch.library.define("kpconv_ops::group_rows", "(Tensor inverse, SymInt num_rows) -> (Tensor order, Tensor splits)")


@torch.library.impl("kpconv_ops::group_rows", ("cpu", "cuda"))
def _group_rows(inverse, num_rows):
    if len(inverse) and (inverse.amin() < 0 or inverse.amax() >= num_rows):
        raise ValueError(f"inverse must be in [0, {num_rows}), got {inverse.amin()} to {inverse.amax()}")
    return torch.sort(inverse, stable=True).indices.int(), splits_of(torch.bincount(inverse, minlength=num_rows))


@torch.library.register_fake("kpconv_ops::group_rows")
def _group_rows_fake(inverse, num_rows):
    return inverse.new_empty(inverse.shape, dtype=torch.int32), inverse.new_empty(num_rows + 1)


torch.library.define(
    "kpconv_ops::sparse_conv",
    "(Tensor features, Tensor weights, Tensor in_rows, Tensor out_rows, Tensor splits, SymInt num_out) -> Tensor",
)
torch.library.define(
    "kpconv_ops::sparse_conv_backward",
    "(Tensor grad, Tensor features, Tensor weights, Tensor in_rows, Tensor out_rows, Tensor splits, "
    "bool need_features, bool need_weights) -> (Tensor grad_features, Tensor grad_weights)",
)


class _Pairs:
    """Walks the pairs of a kernel map tap by tap, in chunks of bounded size; every buffer is allocated once."""

    def __init__(self, like: Tensor, splits: Tensor, *widths: int):
        budget = _CHUNK_BYTES["cuda" if _native.on_cuda(like) else "cpu"]
        bounds = list(pairwise(splits.tolist()))
        longest = max((stop - start for start, stop in bounds), default=0)
        self.size = min(max(budget // (sum(widths) * like.element_size() or 1), _MIN_CHUNK_ROWS), longest)
        self.bounds = bounds
        self.buffers = [like.new_empty(self.size, width) for width in widths]

    def __iter__(self) -> Iterator[tuple[int, slice, list[Tensor]]]:
        for tap, (first, last) in enumerate(self.bounds):
            for start in range(first, last, max(self.size, 1)):
                stop = min(start + self.size, last)
                yield tap, slice(start, stop), [buffer[: stop - start] for buffer in self.buffers]


def _gather(features: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """`out = features[rows]`."""
    _native.call("kp_gather_rows", features, features.dtype, features, *features.shape, rows, len(rows), out)
    return out


def _add_rows(values: Tensor, rows: Tensor, total: Tensor) -> None:
    """`total[rows] += values` for rows that are all different."""
    _native.call("kp_add_rows", values, values.dtype, values, values.shape[1], rows, len(rows), total, len(total))


@torch.library.impl("kpconv_ops::sparse_conv", ("cpu", "cuda"))
def _sparse_conv(features, weights, in_rows, out_rows, splits, num_out):
    features = features.contiguous()
    _, in_channels, out_channels = weights.shape
    total = features.new_zeros(num_out, out_channels, dtype=accumulator(features.dtype))
    for tap, pairs, (gathered, product) in _Pairs(features, splits, in_channels, out_channels):
        torch.mm(_gather(features, in_rows[pairs], gathered), weights[tap], out=product)
        _add_rows(product, out_rows[pairs], total)
    return total.to(features.dtype)


@torch.library.register_fake("kpconv_ops::sparse_conv")
def _sparse_conv_fake(features, weights, in_rows, out_rows, splits, num_out):
    return features.new_empty(num_out, weights.shape[2])


@torch.library.impl("kpconv_ops::sparse_conv_backward", ("cpu", "cuda"))
def _sparse_conv_backward(grad, features, weights, in_rows, out_rows, splits, need_features, need_weights):
    grad, features = grad.contiguous(), features.contiguous()
    _, in_channels, out_channels = weights.shape
    sums = {"dtype": accumulator(features.dtype)}
    grad_features = features.new_zeros(features.shape if need_features else 0, **sums)
    grad_weights = weights.new_zeros(weights.shape if need_weights else 0, **sums)
    for tap, pairs, (grads, inputs) in _Pairs(features, splits, out_channels, in_channels):
        _gather(grad, out_rows[pairs], grads)
        if need_weights:
            add_product(grad_weights[tap], _gather(features, in_rows[pairs], inputs).t(), grads)
        if need_features:
            _add_rows(torch.mm(grads, weights[tap].t(), out=inputs), in_rows[pairs], grad_features)
    return grad_features.to(features.dtype), grad_weights.to(weights.dtype)


@torch.library.register_fake("kpconv_ops::sparse_conv_backward")
def _sparse_conv_backward_fake(grad, features, weights, in_rows, out_rows, splits, need_features, need_weights):
    return (
        features.new_empty(features.shape if need_features else 0),
        weights.new_empty(weights.shape if need_weights else 0),
    )


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx, grad):
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.kpconv_ops.sparse_conv_backward(grad, *ctx.saved_tensors, *needed)
    return *(g if need else None for g, need in zip(grads, needed, strict=True)), None, None, None, None


torch.library.register_autograd("kpconv_ops::sparse_conv", _backward, setup_context=_setup)
differentiable_once("sparse_conv_backward")
