"""Convolution of sparse voxels, in the geometry of MinkowskiEngine, and averaging into voxels."""

import torch
from torch import Tensor

from . import _native
from ._checks import FEATURE_DTYPES, check_row_count, check_size, check_tensor
from ._keys import sort_keys
from ._once import differentiable_once
from ._precision import accumulator, add_products, autocast
from .kernel_maps import KernelMap
from .kpconv import chunks


def sparse_conv(features: Tensor, weights: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution `out[o] = sum_k features[rows[k, o]] W[k]` over the taps k that read a row.

    `sparse_conv(features, weights, kernel_map.transposed)` is the transposed convolution. Gradients flow to both
    arguments; it can be differentiated once. The result is the same on every run, and on the CPU for every number of
    threads. Peak memory beyond the result is on CUDA one chunk of gathered features, on the CPU next to nothing but for
    half types, which are converted to float32 as a whole. Under autocast features and weights are cast to the autocast
    type; sums are formed in float32. On CUDA a weight that is not finite makes NaN for every output, also where its tap
    reads no row.

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
    if kernel_map.rows.device != features.device:
        raise ValueError(f"kernel_map must be on {features.device}, got {kernel_map.rows.device}")
    features, weights = autocast(features, weights)
    check_tensor("weights", weights, (len(kernel_map.rows), features.shape[1], None), (features.dtype,), like=features)
    gradient_needed = features.requires_grad and torch.is_grad_enabled()
    readers = kernel_map.transposed.rows if gradient_needed else None
    return torch.ops.kpconv_ops.sparse_conv(features, weights, kernel_map.rows, readers)


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
    check_row_count("inverse", inverse)
    if len(inverse):
        low, high = torch.stack(inverse.aminmax()).tolist()
        if low < 0 or high >= num_rows:
            raise ValueError(f"inverse must be in [0, {num_rows}), got {low} to {high}")
    rows, order = sort_keys(inverse.contiguous(), num_rows)
    return order, torch.searchsorted(rows, torch.arange(num_rows + 1, device=rows.device))


@torch.library.register_fake("kpconv_ops::group_rows")
def _group_rows_fake(inverse, num_rows):
    return inverse.new_empty(inverse.shape, dtype=torch.int32), inverse.new_empty(num_rows + 1)


# readers [K, Vin]: the transposed kernel map, needed for the gradient of the features only.
torch.library.define(
    "kpconv_ops::sparse_conv", "(Tensor features, Tensor weights, Tensor rows, Tensor? readers) -> Tensor"
)
torch.library.define(
    "kpconv_ops::sparse_conv_backward",
    "(Tensor grad, Tensor features, Tensor weights, Tensor rows, Tensor? readers, bool need_features, "
    "bool need_weights) -> (Tensor grad_features, Tensor grad_weights)",
)


@torch.library.impl("kpconv_ops::sparse_conv", ("cpu", "cuda"))
def _sparse_conv(features, weights, rows, _readers):
    if not _native.on_cuda(features):
        return _convolve(features, weights, rows)
    out = features.new_empty(rows.shape[1], weights.shape[2])
    matrix = weights.flatten(0, 1)
    for out_rows, gathered in _gathered(features, rows):
        torch.mm(gathered, matrix, out=out[out_rows])
    return out


@torch.library.register_fake("kpconv_ops::sparse_conv")
def _sparse_conv_fake(features, weights, rows, readers):
    return features.new_empty(rows.shape[1], weights.shape[2])


@torch.library.impl("kpconv_ops::sparse_conv_backward", ("cpu", "cuda"))
def _sparse_conv_backward(grad, features, weights, rows, readers, need_features, need_weights):
    if _native.on_cuda(features):
        return _gathered_gradients(grad, features, weights, rows, readers, need_features, need_weights)
    grad_features = _convolve(grad, weights, readers, transposed=True) if need_features else features.new_empty(0)
    grad_weights = _weight_gradient(grad, features, rows, weights) if need_weights else weights.new_empty(0)
    return grad_features, grad_weights


@torch.library.register_fake("kpconv_ops::sparse_conv_backward")
def _sparse_conv_backward_fake(grad, features, weights, rows, readers, need_features, need_weights):
    return (
        features.new_empty(features.shape if need_features else 0),
        weights.new_empty(weights.shape if need_weights else 0),
    )


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.kpconv_ops.sparse_conv_backward(grad, *ctx.saved_tensors, *needed)
    return *(g if need else None for g, need in zip(grads, needed, strict=True)), None, None


torch.library.register_autograd("kpconv_ops::sparse_conv", _backward, setup_context=_setup)
differentiable_once("sparse_conv_backward")


# ---- CPU: kernels that gather, multiply and add up in one go


def _convolve(features, weights, rows, transposed=False):
    """The convolution, or with `transposed` that with the last two axes of the weights swapped."""
    features, wide, rows = _wide(features), _wide(weights), rows.contiguous()
    out = wide.new_empty(rows.shape[1], weights.shape[1 if transposed else 2])
    arguments = *features.shape, wide, transposed, rows, *rows.shape, out, out.shape[1]
    _native.call("kp_sparse_conv", features, features.dtype, features, *arguments)
    return out.to(weights.dtype)


def _weight_gradient(grad, features, rows, weights):
    features, grad, rows = _wide(features), _wide(grad), rows.contiguous()
    total = torch.zeros_like(weights, dtype=features.dtype, memory_format=torch.contiguous_format)
    arguments = *features.shape, grad, rows, *rows.shape, grad.shape[1], total
    _native.call("kp_sparse_conv_weights", features, features.dtype, features, *arguments)
    return total.to(weights.dtype)


def _wide(tensor: Tensor) -> Tensor:
    """In the type that sums are formed in. A tap reads a row, so a row would be converted many times."""
    return tensor.to(accumulator(tensor.dtype)).contiguous()


# ---- CUDA: gathered features times weights, on chunks of rows


def _gathered(features: Tensor, rows: Tensor):
    """Chunk by chunk, output rows and the `[., K * C]` features that their taps read. The chunks share one buffer."""
    features, rows = features.contiguous(), rows.contiguous()
    for out_rows, buffer in chunks(rows.shape[1], len(rows) * features.shape[1], features):
        table = rows, *rows.shape, out_rows.start, len(buffer)
        _native.call("kp_gather_taps", features, features.dtype, features, *features.shape, *table, buffer)
        yield out_rows, buffer


def _gathered_gradients(grad, features, weights, rows, readers, need_features, need_weights):
    taps, in_channels, out_channels = weights.shape
    grad_features, grad_weights = features.new_empty(0), weights.new_empty(0)
    if need_features:
        # An input row gathers the gradients of the output rows that read it. They serve both gradients.
        sums = features.new_zeros(1, in_channels, taps * out_channels, dtype=accumulator(features.dtype))
        grad_features = torch.empty_like(features, memory_format=torch.contiguous_format)
        matrix = weights.transpose(1, 2).flatten(0, 1)
        for in_rows, gathered in _gathered(grad, readers):
            torch.mm(gathered, matrix, out=grad_features[in_rows])
            if need_weights:
                add_products(sums, features[in_rows], gathered)
        grad_weights = sums.view(in_channels, taps, out_channels).transpose(0, 1)
    elif need_weights:
        sums = features.new_zeros(1, taps * in_channels, out_channels, dtype=accumulator(features.dtype))
        for out_rows, gathered in _gathered(features, rows):
            add_products(sums, gathered, grad[out_rows])
        grad_weights = sums.view(weights.shape)
    return grad_features, grad_weights.to(weights.dtype).contiguous() if need_weights else features.new_empty(0)
