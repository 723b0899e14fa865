"""Deformable kernel point convolution: each query has kernel points of its own, and these are learned."""

import torch
from torch import Tensor

from . import _native
from ._checks import COORDINATE_DTYPES, FEATURE_DTYPES, check_length, check_tensor
from ._once import differentiable_once
from ._precision import accumulator, autocast
from .kpconv import (
    GEOMETRY,
    INFLUENCES,
    check_geometry,
    check_kernel_points,
    check_query_neighbors,
    check_weights,
    chunks,
    convolve,
    feature_and_weight_gradients,
)
from .neighbors import Neighbors, gradient_gather


def deformable_kpconv(
    features: Tensor,
    queries: Tensor,
    supports: Tensor,
    nb: Neighbors,
    kernel_points: Tensor,
    weights: Tensor,
    offsets: Tensor,
    modulations: Tensor | None = None,
    *,
    extent: float,
    influence: str = "linear",
    aggregation: str = "sum",
) -> Tensor:
    """Deformable kernel point convolution (KPConv, Thomas et al. 2019, Eq. 4 and 5).

    `kpconv` with the kernel points `p_k + offsets_ik` for query i, each influence multiplied by `modulations_ik` where
    they are given. Without offsets and modulations it gives what `kpconv` gives, bit for bit. Neighbours farther than
    `extent` from every kernel point count as in `kpconv`: not at all for the linear influence.

    Peak memory beyond results and gradients is one chunk of aggregates and the `[M, P, 3]` kernel points. Gradients
    flow to `features`, `weights`, `offsets` and `modulations`, not to coordinates; the constant influence gives offsets
    none, and a neighbour exactly on a kernel point pulls it nowhere. It can be differentiated once. The result is the
    same on every run with the same number of threads. Under autocast features and weights are cast to the autocast
    type, offsets and modulations keep the dtype of the queries; sums are formed in float32. Features that are not
    finite spread as in `kpconv`.

    Args:
        features, queries, supports, nb, kernel_points, weights, extent, influence, aggregation: as in `kpconv`.
        offsets: `[M, P, 3]` added to the kernel points, in the unit of the coordinates; any floating dtype, converted
            to the dtype of the queries.
        modulations: `[M, P]`, converted likewise.

    Returns:
        `[M, Cout]`, dtype of the features.

    Raises:
        TypeError, ValueError: as `kpconv`.
    """
    check_geometry(features, queries, supports, nb, kernel_points, extent, influence, aggregation)
    points = _deformed(queries, kernel_points, offsets)
    if modulations is not None:
        check_tensor("modulations", modulations, points.shape[:2], FEATURE_DTYPES, like=queries)
        modulations = modulations.to(queries.dtype)
    features, weights = autocast(features, weights)
    check_weights(weights, features, kernel_points)
    return torch.ops.kpconv_ops.deformable_kpconv(
        features,
        weights,
        modulations,
        queries.detach(),
        supports.detach(),
        points,
        nb.indices,
        nb.splits,
        *gradient_gather(nb, features),
        float(extent),
        influence,
        aggregation,
    )


def fitting_loss(
    queries: Tensor, supports: Tensor, nb: Neighbors, kernel_points: Tensor, offsets: Tensor, extent: float
) -> Tensor:
    """How far deformed kernel points are from the points they could see (KPConv, Thomas et al. 2019, Eq. 7).

    The squared distance of each kernel point to its nearest neighbour, over extent², mean over queries and kernel
    points. Its gradient pulls every kernel point to that neighbour. A query without neighbours adds 0.

    Args:
        queries, supports, nb, kernel_points, offsets, extent: as in `deformable_kpconv`.

    Returns:
        A scalar in the dtype of the queries; 0 without queries.

    Raises:
        TypeError, ValueError: as `deformable_kpconv`; also ValueError for an extent whose square leaves the range of
            the dtype of the queries.
    """
    check_tensor("queries", queries, (None, 3), COORDINATE_DTYPES)
    check_tensor("supports", supports, (None, 3), (queries.dtype,), like=queries)
    check_query_neighbors(nb, queries, supports)
    extent = check_length("extent", extent, queries.dtype)
    points = _deformed(queries, kernel_points, offsets)
    nearest = torch.ops.kpconv_ops.kernel_point_neighbors(
        queries.detach(), supports.detach(), points.detach(), nb.indices, nb.splits
    )
    padded = torch.cat([supports.detach(), supports.new_zeros(1, 3)])  # the last row is where -1, no neighbour, points
    gaps = padded[nearest.long()] - queries.detach()[:, None] - points
    gaps = gaps.masked_fill(nearest[:, :, None] < 0, 0)
    return gaps.square().sum() / (extent**2 * max(nearest.numel(), 1))


def repulsive_loss(kernel_points: Tensor, offsets: Tensor, extent: float, repulse_extent: float = 1.2) -> Tensor:
    """How much the deformed kernel points of a query overlap (KPConv, Thomas et al. 2019, Eq. 8, as released).

    `min(0, |p_k - p_l| / extent - repulse_extent)²` summed over l ≠ k, mean over queries and kernel points k. Its
    gradient pushes p_k away from the p_l, which stand still; between two equal points there is none. It can be
    differentiated once.

    Args:
        kernel_points: `[P, 3]`, any floating dtype, P from 1 to 64.
        offsets: `[M, P, 3]`, any floating dtype.
        extent: as in `deformable_kpconv`.
        repulse_extent: distance in extents beyond which kernel points leave each other alone; 1 in the paper.

    Returns:
        A scalar, float64 for float64 kernel points, otherwise float32; 0 without queries.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, an extent that is not positive or whose square leaves the result's range.
    """
    check_kernel_points(kernel_points)
    check_tensor("offsets", offsets, (None, len(kernel_points), 3), FEATURE_DTYPES, like=kernel_points)
    dtype = accumulator(kernel_points.dtype)
    extent = check_length("extent", extent, dtype)
    repulse_extent = check_length("repulse_extent", repulse_extent, dtype)
    points = kernel_points.detach().to(dtype) + offsets.to(dtype)
    total, _ = torch.ops.kpconv_ops.repulsion(points, extent, repulse_extent)
    return total / max(points.shape[:2].numel(), 1)


def _deformed(queries: Tensor, kernel_points: Tensor, offsets: Tensor) -> Tensor:
    """`[M, P, 3]` kernel points of every query, dtype of the queries."""
    check_kernel_points(kernel_points, queries)
    check_tensor("offsets", offsets, (len(queries), len(kernel_points), 3), FEATURE_DTYPES, like=queries)
    return kernel_points.detach().to(queries.dtype) + offsets.to(queries.dtype)


# kernel_points are those of each query, [M, P, 3].
torch.library.define(
    "kpconv_ops::deformable_kpconv", f"(Tensor features, Tensor weights, Tensor? modulations, {GEOMETRY}) -> Tensor"
)
torch.library.define(
    "kpconv_ops::deformable_kpconv_backward",
    f"(Tensor grad, Tensor features, Tensor weights, Tensor? modulations, {GEOMETRY}, "
    "bool need_features, bool need_weights, bool need_points) "
    "-> (Tensor grad_features, Tensor grad_weights, Tensor grad_modulations, Tensor grad_points)",
)
torch.library.define(
    "kpconv_ops::kernel_point_neighbors",
    "(Tensor queries, Tensor supports, Tensor kernel_points, Tensor indices, Tensor splits) -> Tensor",
)
torch.library.impl("kpconv_ops::deformable_kpconv", ("cpu", "cuda"), convolve)


@torch.library.register_fake("kpconv_ops::deformable_kpconv")
def _deformable_kpconv_fake(features, weights, modulations, queries, *_):
    return features.new_empty(queries.shape[0], weights.shape[2])


@torch.library.impl("kpconv_ops::deformable_kpconv_backward", ("cpu", "cuda"))
def _deformable_kpconv_backward(grad, features, weights, modulations, *geometry_and_needs):
    *geometry, need_features, need_weights, need_points = geometry_and_needs
    arguments = grad, features, weights, modulations, *geometry
    learned = feature_and_weight_gradients(*arguments, need_features, need_weights)
    if not need_points:
        return *learned, geometry[0].new_empty(0), geometry[0].new_empty(0)
    return *learned, *_modulation_and_point_gradients(*arguments)


def _modulation_and_point_gradients(
    grad, features, weights, modulations, queries, supports, kernel_points, indices, splits, _i, _s,
    extent, influence, aggregation
):  # fmt: skip
    queries, supports, features = queries.contiguous(), supports.contiguous(), features.contiguous()
    kernel_points, indices, splits = kernel_points.contiguous(), indices.contiguous(), splits.contiguous()
    grad_points = torch.empty_like(kernel_points)
    grad_modulations = queries.new_empty(0)
    if modulations is not None:
        modulations = modulations.contiguous()
        grad_modulations = torch.empty_like(modulations)
    matrix = weights.flatten(0, 1).t()
    for rows, grad_aggregate in chunks(len(queries), matrix.shape[1], features):
        torch.mm(grad[rows], matrix, out=grad_aggregate)
        _native.call(
            "kp_deform_backward",
            features,
            queries.dtype,
            features.dtype,
            queries[rows],
            len(grad_aggregate),
            supports,
            len(supports),
            kernel_points[rows],
            kernel_points.shape[1],
            None if modulations is None else modulations[rows],
            indices,
            len(indices),
            splits[rows.start :],
            features,
            features.shape[1],
            extent,
            INFLUENCES[influence],
            aggregation == "closest",
            grad_aggregate,
            grad_points[rows],
            None if modulations is None else grad_modulations[rows],
        )
    return grad_modulations, grad_points


@torch.library.register_fake("kpconv_ops::deformable_kpconv_backward")
def _deformable_kpconv_backward_fake(grad, features, weights, modulations, *geometry_and_needs):
    points = geometry_and_needs[2]
    need_features, need_weights, need_points = geometry_and_needs[-3:]
    return (
        features.new_empty(features.shape if need_features else 0),
        weights.new_empty(weights.shape if need_weights else 0),
        points.new_empty(modulations.shape if need_points and modulations is not None else 0),
        points.new_empty(points.shape if need_points else 0),
    )


@torch.library.impl("kpconv_ops::kernel_point_neighbors", ("cpu", "cuda"))
def _kernel_point_neighbors(queries, supports, kernel_points, indices, splits):
    queries, supports, kernel_points = queries.contiguous(), supports.contiguous(), kernel_points.contiguous()
    indices, splits = indices.contiguous(), splits.contiguous()
    nearest = indices.new_empty(kernel_points.shape[:2])
    _native.call(
        "kp_kernel_point_neighbors",
        queries,
        queries.dtype,
        queries,
        len(queries),
        supports,
        len(supports),
        kernel_points,
        kernel_points.shape[1],
        indices,
        len(indices),
        splits,
        nearest,
    )
    return nearest


@torch.library.register_fake("kpconv_ops::kernel_point_neighbors")
def _kernel_point_neighbors_fake(queries, supports, kernel_points, indices, splits):
    return indices.new_empty(kernel_points.shape[:2])


def _setup(ctx, inputs, output):
    *tensors, ctx.extent, ctx.influence, ctx.aggregation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    features, weights, modulations, _, _, points, *_ = ctx.needs_input_grad
    grads = torch.ops.kpconv_ops.deformable_kpconv_backward(
        grad, *ctx.saved_tensors, ctx.extent, ctx.influence, ctx.aggregation, features, weights, modulations or points
    )
    needed = features, weights, modulations, points
    grads = [g if need else None for g, need in zip(grads, needed, strict=True)]
    return *grads[:3], None, None, grads[3], *[None] * 7


torch.library.register_autograd("kpconv_ops::deformable_kpconv", _backward, setup_context=_setup)
differentiable_once("deformable_kpconv_backward")


# The gradient costs little beside the value, and keeping it costs less than what autograd would keep.
torch.library.define(
    "kpconv_ops::repulsion", "(Tensor kernel_points, float extent, float repulse_extent) -> (Tensor total, Tensor grad)"
)


@torch.library.impl("kpconv_ops::repulsion", ("cpu", "cuda"))
def _repulsion(points, extent, repulse_extent):
    total, grad = points.new_zeros(()), torch.empty_like(points, memory_format=torch.contiguous_format)
    count = points.shape[1]
    for rows, buffer in chunks(len(points), count**2, points):
        gaps = [axis[:, :, None] - axis[:, None] for axis in points[rows].unbind(2)]  # from the other to this one
        distances = buffer.view(len(buffer), count, count).zero_()
        for gap in gaps:
            distances.addcmul_(gap, gap)
        distances.sqrt_().diagonal(dim1=1, dim2=2).fill_(torch.inf)
        overlaps = (distances / extent).sub_(repulse_extent).clamp_(max=0)
        total += overlaps.square().sum()
        slopes = overlaps.div_(distances).masked_fill_(distances == 0, 0)
        grad[rows] = torch.stack([gap.mul_(slopes).sum(2) for gap in gaps], dim=2).mul_(2 / extent)
    return total, grad


@torch.library.register_fake("kpconv_ops::repulsion")
def _repulsion_fake(points, extent, repulse_extent):
    return points.new_empty(()), points.new_empty(points.shape)


def _repulsion_setup(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], inputs[0])


def _repulsion_backward(ctx, grad, _):
    return torch.ops.kpconv_ops.repulsion_backward(grad, *ctx.saved_tensors), None, None


torch.library.register_autograd("kpconv_ops::repulsion", _repulsion_backward, setup_context=_repulsion_setup)


# An operator that takes the kernel points, which its result depends on, so that autograd knows.
torch.library.define("kpconv_ops::repulsion_backward", "(Tensor grad, Tensor slopes, Tensor kernel_points) -> Tensor")


@torch.library.impl("kpconv_ops::repulsion_backward", ("cpu", "cuda"))
@torch.library.register_fake("kpconv_ops::repulsion_backward")
def _repulsion_gradient(grad, slopes, kernel_points):
    return grad * slopes


differentiable_once("repulsion_backward")
