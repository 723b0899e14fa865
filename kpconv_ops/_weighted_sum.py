"""Sums over neighbourhoods: what mean pooling and interpolation share."""

import torch
from torch import Tensor

from . import _native


def weighted_sum(features: Tensor, hoods: tuple, taken: tuple, owner: str) -> Tensor:
    """The sum over each neighbourhood of the features times the weights. The gradient flows to `features`.

    Args:
        features: `[N, C]` of the supports.
        hoods: indices, splits and weights, of the type that sums are formed in; weights may be None: all are 1.
        taken: `hoods` transposed, which the gradient is gathered through; three times None if it needs none.
        owner: what an error calls the neighbourhoods.
    """
    return torch.ops.kpconv_ops.weighted_sum(features, *hoods, *taken, owner)


torch.library.define(
    "kpconv_ops::weighted_sum",
    "(Tensor features, Tensor indices, Tensor splits, Tensor? weights, Tensor? taken_indices, Tensor? taken_splits, "
    "Tensor? taken_weights, str owner) -> Tensor",
)


@torch.library.impl("kpconv_ops::weighted_sum", ("cpu", "cuda"))
def _weighted_sum(features, indices, splits, weights, _indices, _splits, _weights, owner):
    features, indices, splits = features.contiguous(), indices.contiguous(), splits.contiguous()
    weights = None if weights is None else weights.contiguous()
    out = features.new_empty(len(splits) - 1, features.shape[1])
    among = features, *features.shape, indices, len(indices), splits, weights
    _native.call("kp_weighted_sum", features, features.dtype, *among, len(out), out, owner=owner)
    return out


@torch.library.register_fake("kpconv_ops::weighted_sum")
def _weighted_sum_fake(features, indices, splits, weights, _indices, _splits, _weights, owner):
    return features.new_empty(splits.shape[0] - 1, features.shape[1])


def _setup(ctx, inputs, output):
    *tensors, ctx.owner = inputs[1:]
    ctx.save_for_backward(*tensors)


# The gradient is the same sum with the roles swapped.
def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    return torch.ops.kpconv_ops.weighted_sum(grad, *tensors[3:], *tensors[:3], ctx.owner), *[None] * 7


torch.library.register_autograd("kpconv_ops::weighted_sum", _backward, setup_context=_setup)
