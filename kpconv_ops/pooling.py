"""Maximum and mean over neighbourhoods."""

import torch
from torch import Tensor

from . import _native
from ._checks import FEATURE_DTYPES, check_tensor
from ._once import differentiable_once
from ._precision import accumulator
from ._weighted_sum import weighted_sum
from .neighbors import Neighbors, check_neighbors, gradient_gather


def max_pool(features: Tensor, nb: Neighbors) -> Tensor:
    """Maximum of the features over each neighbourhood, channel by channel.

    A query without neighbours gets zeros; a NaN in a neighbourhood gives NaN. The gradient goes to the neighbour that
    the maximum comes from, the first one of `nb` in a tie. It can be differentiated once. The result is the same on
    every run and for any number of threads.

    Args:
        features: `[N, C]` of the supports; float32, float64, float16 or bfloat16.
        nb: the supports that each of M queries sees, each at most once, from `radius_search` or `KernelMap.neighbors`.

    Returns:
        `[M, C]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, neighbours of other point sets or, on the CPU, outside them.
    """
    check_tensor("features", features, (None, None), FEATURE_DTYPES)
    check_neighbors(nb, len(features), like=features)
    return torch.ops.kpconv_ops.max_pool(features, nb.indices, nb.splits, *gradient_gather(nb, features))[0]


def mean_pool(features: Tensor, nb: Neighbors) -> Tensor:
    """Mean of the features over each neighbourhood.

    A query without neighbours gets zeros. The gradient flows to `features`. Sums are formed in float32 (float64 for
    float64 features). The result is the same on every run and for any number of threads.

    Args:
        features: `[N, C]` of the supports; float32, float64, float16 or bfloat16.
        nb: the supports that each of M queries sees, from `radius_search` or `KernelMap.neighbors`.

    Returns:
        `[M, C]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, neighbours of other point sets or, on the CPU, outside them.
    """
    check_tensor("features", features, (None, None), FEATURE_DTYPES)
    check_neighbors(nb, len(features), like=features)
    seen_by = gradient_gather(nb, features)
    wide = features.to(accumulator(features.dtype))  # a sum of half precision numbers may be too large for them
    sums = weighted_sum(wide, (nb.indices, nb.splits, None), (*seen_by, None), "nb")
    return (sums / nb.splits.diff().clamp(min=1)[:, None]).to(features.dtype)


# winners [M, C] int32: the support that each maximum comes from, -1 without neighbours. seen_by: for every support the
# queries that see it; needed for the gradient only.
torch.library.define(
    "kpconv_ops::max_pool",
    "(Tensor features, Tensor indices, Tensor splits, Tensor? seen_by_indices, Tensor? seen_by_splits) "
    "-> (Tensor values, Tensor winners)",
)
torch.library.define(
    "kpconv_ops::max_pool_backward",
    "(Tensor grad, Tensor winners, Tensor seen_by_indices, Tensor seen_by_splits) -> Tensor",
)


@torch.library.impl("kpconv_ops::max_pool", ("cpu", "cuda"))
def _max_pool(features, indices, splits, _indices, _splits):
    features, indices, splits = features.contiguous(), indices.contiguous(), splits.contiguous()
    (num_supports, channels), num_queries = features.shape, len(splits) - 1
    values = features.new_empty(num_queries, channels)
    winners = indices.new_empty(num_queries, channels)
    _native.call(
        "kp_max_pool",
        features,
        features.dtype,
        features,
        num_supports,
        channels,
        indices,
        len(indices),
        splits,
        num_queries,
        values,
        winners,
    )
    return values, winners


@torch.library.register_fake("kpconv_ops::max_pool")
def _max_pool_fake(features, indices, splits, _indices, _splits):
    shape = (splits.shape[0] - 1, features.shape[1])
    return features.new_empty(shape), indices.new_empty(shape)


@torch.library.impl("kpconv_ops::max_pool_backward", ("cpu", "cuda"))
def _max_pool_backward(grad, winners, indices, splits):
    grad, num_supports = grad.contiguous(), len(splits) - 1
    out = grad.new_empty(num_supports, grad.shape[1])
    _native.call(
        "kp_max_pool_backward",
        grad,
        grad.dtype,
        grad,
        winners,
        *grad.shape,
        indices,
        len(indices),
        splits,
        num_supports,
        out,
    )
    return out


@torch.library.register_fake("kpconv_ops::max_pool_backward")
def _max_pool_backward_fake(grad, winners, indices, splits):
    return grad.new_empty(splits.shape[0] - 1, grad.shape[1])


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output[1], *inputs[3:])


def _backward(ctx, grad, _):
    return torch.ops.kpconv_ops.max_pool_backward(grad, *ctx.saved_tensors), None, None, None, None


torch.library.register_autograd("kpconv_ops::max_pool", _backward, setup_context=_setup)
differentiable_once("max_pool_backward")
