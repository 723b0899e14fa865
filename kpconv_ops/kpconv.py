"""Rigid kernel point convolution: a native kernel aggregates features, matrix products do the rest."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import _native
from ._checks import COORDINATE_DTYPES, FEATURE_DTYPES, check_choice, check_positive, check_tensor
from ._once import differentiable_once
from ._precision import accumulator, add_products, autocast
from .neighbors import Neighbors, check_neighbors, gradient_gather

INFLUENCES = {"linear": 0, "constant": 1, "gaussian": 2}
AGGREGATIONS = ("sum", "closest")
MAX_KERNEL_POINTS = 64  # max_kernel_points in csrc/core/influence.h
OF_ALL, OF_QUERIES, OF_SUPPORTS = 0, 1, 2  # points_of in csrc/api.h: whose kernel points they are

# The aggregate of a chunk: on the CPU it stays in the last cache until the matrix product reads it. Smaller chunks
# would wait for all threads more often, which costs much when other programs use the cores.
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
_MIN_CHUNK_ROWS = 256  # a matrix product of fewer rows is slow
_PARTS = 8  # that weight gradients are summed in on the CPU, see add_products


def kpconv(
    features: Tensor,
    queries: Tensor,
    supports: Tensor,
    nb: Neighbors,
    kernel_points: Tensor,
    weights: Tensor,
    extent: float,
    influence: str = "linear",
    aggregation: str = "sum",
) -> Tensor:
    """Rigid kernel point convolution (KPConv, Thomas et al. 2019, Eq. 1-3).

    `out_i = sum_k (sum_j h(|x_j - x_i - p_k|) f_j) W_k` over the neighbours j of query i and the kernel points k, with
    the influence h at distance d: linear `max(0, 1 - d / extent)`, constant `1`, gaussian `exp(-d^2 / (2 s^2 + 1e-9))`
    with `s = 0.3 extent`. With aggregation "closest" only the nearest kernel point of each neighbour counts, the first
    one in a tie. A query without neighbours gets zeros.

    Peak memory beyond the result is one chunk of aggregates, whatever N is. Gradients flow to `features` and
    `weights`, not to coordinates; it can be differentiated once. The result is the same on every run with the same
    number of threads. Under autocast features and weights are cast to the autocast type; sums are formed in float32.
    On CUDA a feature that is not finite makes NaN for every query that sees it, even beyond the reach of all kernel
    points; on the CPU only within it.

    Args:
        features: `[N, Cin]` of the supports; float32, float64, float16 or bfloat16.
        queries: `[M, 3]` float32 or float64, any unit, the same for all lengths.
        supports: `[N, 3]`, dtype of the queries.
        nb: the supports that each query sees, from `radius_search`.
        kernel_points: `[P, 3]` relative to the query, P from 1 to 64; converted to the dtype of the queries.
        weights: `[P, Cin, Cout]`, dtype of the features.
        extent: the distance at which the linear influence reaches zero.

    Returns:
        `[M, Cout]`, dtype of the features.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, neighbours of other point sets or, on the CPU, outside them, an extent that
            is not positive, an unknown influence or aggregation.
    """
    check_geometry(features, queries, supports, nb, kernel_points, extent, influence, aggregation)
    features, weights = autocast(features, weights)
    check_weights(weights, features, kernel_points)
    return torch.ops.kpconv_ops.kpconv(
        features,
        weights,
        queries.detach(),
        supports.detach(),
        kernel_points.detach().to(queries.dtype),
        nb.indices,
        nb.splits,
        *gradient_gather(nb, features),
        float(extent),
        influence,
        aggregation,
    )


def check_geometry(features, queries, supports, nb, kernel_points, extent, influence, aggregation) -> None:
    """What `kpconv` asks of its arguments but the weights."""
    check_tensor("queries", queries, (None, 3), COORDINATE_DTYPES)
    check_tensor("supports", supports, (None, 3), (queries.dtype,), like=queries)
    check_tensor("features", features, (len(supports), None), FEATURE_DTYPES, like=queries)
    check_kernel_points(kernel_points, queries)
    check_query_neighbors(nb, queries, supports)
    check_positive("extent", extent)
    check_choice("influence", influence, tuple(INFLUENCES))
    check_choice("aggregation", aggregation, AGGREGATIONS)


def check_kernel_points(kernel_points: Tensor, like: Tensor | None = None) -> None:
    """As many kernel points `[P, 3]` as the native kernels take; with `like`, on its device."""
    check_tensor("kernel_points", kernel_points, (None, 3), FEATURE_DTYPES, like)
    if not 1 <= len(kernel_points) <= MAX_KERNEL_POINTS:
        raise ValueError(f"kernel_points must have 1 to {MAX_KERNEL_POINTS} rows, got {len(kernel_points)}")


def check_query_neighbors(nb: Neighbors, queries: Tensor, supports: Tensor) -> None:
    """Neighbourhoods of these queries among these supports."""
    check_neighbors(nb, len(supports), like=queries)
    check_tensor("nb.splits", nb.splits, (len(queries) + 1,), (torch.int64,))


def check_weights(weights: Tensor, features: Tensor, kernel_points: Tensor) -> None:
    """Weights `[P, Cin, Cout]` for these features and kernel points."""
    shape = (len(kernel_points), features.shape[1], None)
    check_tensor("weights", weights, shape, (features.dtype,), like=features)


# seen_by: for every support the queries that see it; needed for the gradient of the features only.
GEOMETRY = (
    "Tensor queries, Tensor supports, Tensor kernel_points, Tensor indices, Tensor splits, "
    "Tensor? seen_by_indices, Tensor? seen_by_splits, float extent, str influence, str aggregation"
)
torch.library.define("kpconv_ops::kpconv", f"(Tensor features, Tensor weights, {GEOMETRY}) -> Tensor")
torch.library.define(
    "kpconv_ops::kpconv_backward",
    f"(Tensor grad, Tensor features, Tensor weights, {GEOMETRY}, bool need_features, bool need_weights) "
    "-> (Tensor grad_features, Tensor grad_weights)",
)


def chunks(num_rows: int, width: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows, and for each an uninitialised `[rows, width]`: the chunks share one buffer."""
    budget = _CHUNK_BYTES["cuda" if _native.on_cuda(like) else "cpu"]
    fitting = budget // max(width * like.element_size(), 1) // _PARTS * _PARTS
    chunk = min(max(fitting, _MIN_CHUNK_ROWS), num_rows)
    buffer = like.new_empty(chunk, width)
    for start in range(0, num_rows, max(chunk, 1)):
        stop = min(start + chunk, num_rows)
        yield slice(start, stop), buffer[: stop - start]


def _aggregates(
    features, modulations, queries, supports, kernel_points, points_of, indices, splits, extent, influence, aggregation
) -> Iterator[tuple[slice, Tensor]]:
    """Chunk by chunk, query rows and their `[rows, P * C]` aggregate: a weighted sum of features for each kernel point.

    The chunks share one buffer. Kernel points are `[P, 3]` or, as modulations, `[., P, 3]` of the queries or supports.
    """
    features, queries, supports = features.contiguous(), queries.contiguous(), supports.contiguous()
    kernel_points, indices, splits = kernel_points.contiguous(), indices.contiguous(), splits.contiguous()
    modulations = None if modulations is None else modulations.contiguous()
    num_points, channels = kernel_points.shape[-2], features.shape[1]
    for rows, buffer in chunks(len(queries), num_points * channels, features):
        own = rows if points_of == OF_QUERIES else slice(None)
        _native.call(
            "kp_aggregate",
            features,
            queries.dtype,
            features.dtype,
            queries[rows],
            len(buffer),
            supports,
            len(supports),
            kernel_points[own],
            num_points,
            points_of,
            None if modulations is None else modulations[own],
            indices,
            len(indices),
            splits[rows.start :],
            features,
            channels,
            extent,
            INFLUENCES[influence],
            aggregation == "closest",
            buffer,
        )
        yield rows, buffer


def convolve(features, weights, modulations, queries, supports, kernel_points, indices, splits, _i, _s, *rule):
    """The convolution, with kernel points `[P, 3]` for all queries or `[M, P, 3]`, one set a query."""
    points_of = OF_QUERIES if kernel_points.dim() == 3 else OF_ALL
    out = features.new_empty(len(queries), weights.shape[2])
    matrix = weights.flatten(0, 1)
    geometry = queries, supports, kernel_points, points_of, indices, splits
    for rows, aggregate in _aggregates(features, modulations, *geometry, *rule):
        torch.mm(aggregate, matrix, out=out[rows])
    return out


def feature_and_weight_gradients(
    grad,
    features,
    weights,
    modulations,
    queries,
    supports,
    kernel_points,
    indices,
    splits,
    seen_by_indices,
    seen_by_splits,
    extent,
    influence,
    aggregation,
    need_features,
    need_weights,
):
    """The gradients of `convolve`, empty tensors where they are not needed."""
    rule, deformable = (extent, influence, aggregation), kernel_points.dim() == 3
    num_points, in_channels, out_channels = weights.shape
    if not (need_features or need_weights):
        return features.new_empty(0), features.new_empty(0)
    if not need_features:
        sums = _weight_sums(features, num_points * in_channels, out_channels)
        geometry = queries, supports, kernel_points, OF_QUERIES if deformable else OF_ALL, indices, splits
        for rows, aggregate in _aggregates(features, modulations, *geometry, *rule):
            add_products(sums, aggregate, grad[rows])
        return features.new_empty(0), sums.sum(0).view_as(weights).to(weights.dtype)
    # The same aggregate with the roles swapped: a support gathers the gradients of the queries that see it. Looking
    # from the support to the query turns the kernel points round. It serves both gradients.
    grad_features = torch.empty_like(features, memory_format=torch.contiguous_format)
    sums = _weight_sums(features, in_channels, num_points * out_channels)
    matrix = weights.transpose(1, 2).flatten(0, 1)
    geometry = supports, queries, -kernel_points, OF_SUPPORTS if deformable else OF_ALL, seen_by_indices, seen_by_splits
    for rows, aggregate in _aggregates(grad, modulations, *geometry, *rule):
        torch.mm(aggregate, matrix, out=grad_features[rows])
        if need_weights:
            add_products(sums, features[rows], aggregate)
    grad_weights = sums.sum(0).view(in_channels, num_points, out_channels).transpose(0, 1)
    return grad_features, grad_weights.to(weights.dtype).contiguous() if need_weights else features.new_empty(0)


def _weight_sums(features: Tensor, height: int, width: int) -> Tensor:
    """Zeros `[parts, height, width]` for `add_products`: on the CPU as many parts as a chunk has room for."""
    dtype = accumulator(features.dtype)
    fitting = 1 if _native.on_cuda(features) else _CHUNK_BYTES["cpu"] // max(height * width * dtype.itemsize, 1)
    return features.new_zeros(min(max(fitting, 1), _PARTS), height, width, dtype=dtype)


@torch.library.impl("kpconv_ops::kpconv", ("cpu", "cuda"))
def _kpconv(features, weights, *geometry):
    return convolve(features, weights, None, *geometry)


@torch.library.register_fake("kpconv_ops::kpconv")
def _kpconv_fake(features, weights, queries, *_):
    return features.new_empty(queries.shape[0], weights.shape[2])


@torch.library.impl("kpconv_ops::kpconv_backward", ("cpu", "cuda"))
def _kpconv_backward(grad, features, weights, *geometry_and_needs):
    return feature_and_weight_gradients(grad, features, weights, None, *geometry_and_needs)


@torch.library.register_fake("kpconv_ops::kpconv_backward")
def _kpconv_backward_fake(grad, features, weights, *geometry_and_needs):
    need_features, need_weights = geometry_and_needs[-2:]
    return (
        features.new_empty(features.shape if need_features else 0),
        weights.new_empty(weights.shape if need_weights else 0),
    )


def _setup(ctx, inputs, output):
    *tensors, ctx.extent, ctx.influence, ctx.aggregation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.kpconv_ops.kpconv_backward(
        grad, *ctx.saved_tensors, ctx.extent, ctx.influence, ctx.aggregation, *needed
    )
    return *(g if need else None for g, need in zip(grads, needed, strict=True)), *[None] * 10


torch.library.register_autograd("kpconv_ops::kpconv", _backward, setup_context=_setup)
differentiable_once("kpconv_backward")
