import numpy as np
import pytest
import torch
from cells import cloud, draw, on
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import Interpolation, _native, interpolate, reference, stride_coords, trilinear, voxelize

SIZE = 0.9
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def problem(sizes=(40, 0, 1, 25), seed=0, extent=6, stride=1, dtype=torch.float64):
    """Points, and the voxels that most of them lie in: some lie outside, some surrounded by nothing."""
    points, offsets = cloud(sizes, seed, extent)
    cells = reference.voxelize(points, offsets, SIZE)
    cells = reference.stride_coords(cells.coords, cells.offsets, stride)
    moved = points + torch.linspace(-1.2, 1.2, 3 * len(points), dtype=torch.float64).view(-1, 3)
    return moved.to(dtype), offsets, cells.coords, cells.offsets


def moved(device, interpolation):
    parts = on(device, interpolation.indices, interpolation.splits, interpolation.weights)
    return Interpolation(*parts, interpolation.num_supports)


def with_gradient(function, features, interpolation):
    features = features.detach().clone().requires_grad_()
    out = function(features, interpolation)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    return out.detach().cpu(), torch.autograd.grad(out, features, weighting)[0].cpu()


# ---- weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(200,), (40, 0, 1, 25), (0,), (1,), ()])
def test_weights_equal_the_oracle(device, dtype, stride, sizes):
    args = problem(sizes, stride=stride, dtype=dtype)
    result = trilinear(*on(device, *args), SIZE, stride)
    indices, splits, weights = reference.trilinear(*args, SIZE, stride)
    assert torch.equal(result.indices.cpu(), indices) and torch.equal(result.splits.cpu(), splits)
    assert result.weights.dtype == dtype and result.num_supports == len(args[2])
    torch.testing.assert_close(result.weights.cpu(), weights)
    assert len(args[0]) < 2 or len(splits.diff().unique()) > 3  # from none on, some have several


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), stride=st.sampled_from([1, 2, 4]), size=st.sampled_from([0.05, 0.3, 7.0]))
def test_weights_sum_to_one_and_an_occupied_voxel_counts(seed, stride, size):
    """A point takes from the voxel it lies in, wherever it lies in it; no weight is zero or negative."""
    points, offsets = cloud((50, 20), seed, extent=10 * size)
    points[:10] = (points[:10] / size).round() * size  # on the corners of voxels
    cells = voxelize(points.float(), offsets, size)
    coarse = stride_coords(cells.coords, cells.offsets, stride)
    result = trilinear(points.float(), offsets, coarse.coords, coarse.offsets, size, stride)
    rows = torch.arange(len(points)).repeat_interleave(result.splits.diff())
    assert result.weights.min() > 0
    sums = result.weights.new_zeros(len(points)).index_add(0, rows, result.weights)
    torch.testing.assert_close(sums, torch.ones(len(points)))
    own = coarse.inverse[cells.inverse]
    assert rows[result.indices == own[rows]].tolist() == list(range(len(points)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), stride=st.sampled_from([1, 2, 3]))
def test_a_linear_field_is_exact(seed, stride):
    """Where all eight voxels are occupied, a field linear in the coordinates is reproduced, also below zero."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.arange(-3, 3) * stride
    coords = torch.cartesian_prod(axis, axis, axis)
    size, slope = 0.3, torch.randn(3, 2, generator=random, dtype=torch.float64)
    centres = (coords.double() + stride / 2) * size
    points = (torch.rand(50, 3, generator=random, dtype=torch.float64) - 0.5) * 4.9 * stride * size
    result = trilinear(points, torch.tensor([0, 50]), coords, torch.tensor([0, len(coords)]), size, stride)
    assert result.splits.diff().unique().tolist() == [8]
    torch.testing.assert_close(interpolate(centres @ slope + 1, result), points @ slope + 1)


def test_a_centre_takes_its_voxel_alone(device):
    """The other seven have no weight there, and are left out: a NaN in one does not reach the point."""
    coords = torch.cartesian_prod(*[torch.arange(3)] * 3)
    args = torch.tensor([[1.5, 1.5, 1.5]]), torch.tensor([0, 1]), coords, torch.tensor([0, 27])
    result = trilinear(*on(device, *args), 1.0)
    assert result.indices.tolist() == [13] and result.weights.tolist() == [1.0]


def test_the_order_of_voxels_does_not_matter(device):
    points, offsets, coords, voxel_offsets = problem((60,))
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))
    plain = trilinear(*on(device, points, offsets, coords, voxel_offsets), SIZE)
    shuffled = trilinear(*on(device, points, offsets, coords[order], voxel_offsets), SIZE)
    assert torch.equal(order.to(device)[shuffled.indices.long()], plain.indices.long())
    assert torch.equal(shuffled.weights, plain.weights)


def test_far_points_take_nothing(device):
    """Also points so far that their voxels' numbers would wrap round, and a sample without voxels."""
    coords, offsets = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0, 1, 1])
    points = torch.tensor([[0.5, 0.5, 0.5], [1e15, 0.5, 0.5], [-1e15, 0, 0], [3.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    result = trilinear(*on(device, points, torch.tensor([0, 4, 5]), coords, offsets), 1.0)
    assert result.splits.tolist() == [0, 1, 1, 1, 1, 1]
    features = torch.ones(1, 2).to(device)
    assert interpolate(features, result).tolist() == [[1.0, 1.0]] + [[0.0, 0.0]] * 4


# ---- values and gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 5, 32, 70])
def test_values_and_gradient_equal_the_oracle(device, dtype, channels):
    args = problem()
    interpolation = trilinear(*args, SIZE)
    features = draw(len(args[2]), channels, dtype=dtype)
    out, grad = with_gradient(interpolate, features.to(device), moved(device, interpolation))
    wide, wide_grad = with_gradient(reference.interpolate, features.double(), interpolation)
    assert out.dtype == grad.dtype == dtype and grad.abs().max() > 0
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out, wide.to(dtype), **close)
    torch.testing.assert_close(grad, wide_grad.to(dtype), **close)


@pytest.mark.parametrize("sizes", [(0,), (1,), ()])
def test_few_points(device, sizes):
    args = problem(sizes)
    interpolation = trilinear(*on(device, *args), SIZE)
    features = draw(len(args[2]), 3).to(device)
    out, grad = with_gradient(interpolate, features, interpolation)
    assert out.shape == (len(args[0]), 3) and grad.shape == features.shape


def test_gradcheck_and_opcheck(device):
    args = on(device, *problem((15,), extent=3))
    interpolation = trilinear(*args, SIZE)
    features = draw(len(args[2]), 2).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: interpolate(f, interpolation), features)
    assert torch.autograd.gradgradcheck(lambda f: interpolate(f, interpolation), features)
    torch.library.opcheck(torch.ops.kpconv_ops.trilinear, (*args, SIZE, 1))
    parts = interpolation.indices, interpolation.splits, interpolation.weights
    taken = interpolation.transposed
    everything = features, *parts, taken.indices, taken.splits, taken.weights, "interpolation"
    torch.library.opcheck(torch.ops.kpconv_ops.weighted_sum, everything)


def test_is_transposed_once(device):
    """Every pair appears once in the transposed, ascending, with its weight."""
    args = on(device, *problem())
    interpolation = trilinear(*args, SIZE)
    taken = interpolation.transposed
    assert interpolation.transposed is taken
    pairs = []
    for each in (interpolation, taken):
        rows = torch.arange(len(each.splits) - 1, device=device).repeat_interleave(each.splits.diff())
        pairs.append(list(zip(rows.tolist(), each.indices.tolist(), each.weights.tolist(), strict=True)))
    assert len(pairs[0]) > 50 and pairs[1] == sorted((b, a, weight) for a, b, weight in pairs[0])


@pytest.mark.parametrize("splits", [[0, 1, 2], [2, 3, 4], [1, 2, 2, 3]])
def test_entries_of_no_point_do_not_count(splits):
    """Entries before the first and after the last point are in no value and in no gradient."""
    indices, weights = torch.tensor([0, 1, 2, 0], dtype=torch.int32), torch.tensor([2.0, 3, 5, 7])
    interpolation = Interpolation(indices, torch.tensor(splits), weights, 3)
    results = with_gradient(interpolate, draw(3, 2), interpolation)
    used = slice(splits[0], splits[-1])
    alone = Interpolation(indices[used], torch.tensor(splits) - splits[0], weights[used], 3)
    for result, expected in zip(results, with_gradient(reference.interpolate, draw(3, 2), alone), strict=True):
        torch.testing.assert_close(result, expected)


def test_a_support_taken_twice_keeps_both_weights(device):
    """Also where a point names it twice: in the transposed, the weights come in the order of the entries."""
    indices, weights = torch.tensor([1, 0, 1, 1], dtype=torch.int32), torch.tensor([2.0, 3, 5, 7])
    interpolation = Interpolation(*on(device, indices, torch.tensor([0, 3, 4]), weights), 2)
    assert interpolation.transposed.indices.tolist() == [0, 0, 0, 1]
    assert interpolation.transposed.weights.tolist() == [3.0, 2, 5, 7]


def test_compiles_without_graph_breaks():
    points, offsets, coords, voxel_offsets = problem()
    features = draw(len(coords), 3)

    def network(features, points):
        return interpolate(features, trilinear(points, offsets, coords, voxel_offsets, SIZE)) * 2

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for result, expected in zip(
        with_gradient(compiled, features, points), with_gradient(network, features, points), strict=True
    ):
        assert torch.equal(result, expected)


def test_autocast_leaves_it_alone(device):
    """It is no matrix product: features keep their type, as in `upsample`."""
    args = on(device, *problem())
    features = draw(len(args[2]), 3, dtype=torch.float32).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        out = interpolate(features, trilinear(*args, SIZE))
    assert out.dtype == torch.float32 and torch.equal(out, interpolate(features, trilinear(*args, SIZE)))


def test_non_contiguous_inputs(device):
    points, offsets, coords, voxel_offsets = on(device, *problem())
    plain = trilinear(points, offsets, coords, voxel_offsets, SIZE)
    strided = (each.repeat_interleave(2, 0)[::2] for each in (points, offsets, coords, voxel_offsets))
    result = trilinear(*strided, SIZE)
    assert torch.equal(result.indices, plain.indices) and torch.equal(result.weights, plain.weights)
    features = draw(len(coords), 3).to(device)
    expected = with_gradient(interpolate, features, plain)
    for one, other in zip(
        with_gradient(lambda f, i: interpolate(f.T.contiguous().T, i), features, plain), expected, strict=True
    ):
        assert torch.equal(one, other)


def test_nan_reaches_only_the_points_around(device):
    args = on(device, *problem())
    interpolation = trilinear(*args, SIZE)
    features = draw(len(args[2]), 2).to(device)
    row = int(interpolation.indices[0])
    features[row] = torch.nan
    seen = torch.zeros(len(args[0]), dtype=torch.bool, device=device)
    first, last = interpolation.transposed.splits[row : row + 2]
    seen[interpolation.transposed.indices[first:last].long()] = True
    out = interpolate(features, interpolation)
    assert torch.equal(out.isnan().any(1), seen) and torch.equal(out.isnan().all(1), seen)


def test_the_same_bits_for_any_number_of_threads(device):
    args = on(device, *problem((100,) if _native.on_cuda(torch.empty(0)) else (3000,), extent=9))
    features = draw(len(args[2]), 7, dtype=torch.float32).to(device)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(with_gradient(interpolate, features, trilinear(*args, SIZE)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- bad input


def test_bad_arguments_are_named():
    points, offsets, coords, voxel_offsets = problem()
    args = points, offsets, coords, voxel_offsets
    good = trilinear(*args, SIZE)
    features = draw(len(coords), 2)
    nan = points.clone()
    nan[3, 1] = torch.nan
    for function, bad, error, message in (
        (trilinear, (points.long(), *args[1:], SIZE), TypeError, "points must be float32 or float64, got int64"),
        (trilinear, (nan, *args[1:], SIZE), ValueError, "points must be finite"),
        (trilinear, (points, offsets + 1, *args[2:], SIZE), ValueError, "point_offsets must rise from 0 to 66"),
        (trilinear, (*args[:3], voxel_offsets + 1, SIZE), ValueError, r"offsets must rise from 0 to \d+"),
        (trilinear, (*args[:3], voxel_offsets[:2], SIZE), ValueError, r"offsets must have shape \(5\), got \(2,\)"),
        (trilinear, (*args[:2], coords.int(), voxel_offsets, SIZE), TypeError, "coords must be int64, got int32"),
        (trilinear, (*args, 0.0), ValueError, "voxel_size must be positive and finite, got 0.0"),
        (trilinear, (*args, SIZE, 0), ValueError, "stride must be at least 1 .*, got 0"),
        (trilinear, (*args, SIZE, 2), ValueError, "coords must be multiples of stride, 2$"),
        (trilinear, (*args[:2], coords * 0, voxel_offsets, SIZE), ValueError, "coords must be unique within a sample"),
        (interpolate, (features[0], good), ValueError, r"features must have shape \(\*, \*\), got \(2,\)"),
        (interpolate, (features, None), TypeError, "interpolation must be an Interpolation, got NoneType"),
        (interpolate, (features[1:], good), ValueError, r"interpolation must be of \d+ features, got one of \d+"),
        (interpolate, (features.to("meta"), good), ValueError, "interpolation must be on meta, got cpu"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            function(*bad)


@pytest.mark.parametrize(
    ("indices", "splits", "message"),
    [
        ([0, 3, 0, 1], [0, 2, 4], r"interpolation.indices must be in \[0, 3\)"),
        ([0, -1, 0, 1], [0, 2, 4], r"interpolation.indices must be in \[0, 3\)"),
        ([0, 1, 2, 0], [-1, 2, 4], r"interpolation.splits must rise within \[0, 4\]"),
        ([0, 1, 2, 0], [0, 3, 1, 4], r"interpolation.splits must rise within \[0, 4\]"),
        ([0, 1, 2, 0], [0, 1, 9], r"interpolation.splits must rise within \[0, 4\]"),
    ],
)
@pytest.mark.parametrize("use", [interpolate, lambda _, interpolation: interpolation.transposed])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_wrong_entries_are_an_error_on_the_cpu(indices, splits, message, use, needs_gradient):
    interpolation = Interpolation(torch.tensor(indices, dtype=torch.int32), torch.tensor(splits), torch.ones(4), 3)
    with pytest.raises(ValueError, match=f"^{message}$"):
        use(draw(3, 2).requires_grad_(needs_gradient), interpolation)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indices": torch.tensor([0, 1])}, TypeError, "indices must be int32, got int64"),
        ({"splits": torch.tensor([0, 2]).int()}, TypeError, "splits must be int64, got int32"),
        ({"splits": torch.tensor([]).long()}, ValueError, "splits must have at least one entry, got none"),
        ({"weights": torch.ones(3)}, ValueError, r"weights must have shape \(2\), got \(3,\)"),
        ({"weights": torch.ones(2).half()}, TypeError, "weights must be float32 or float64, got float16"),
        ({"num_supports": -1}, ValueError, "num_supports must be at least 0, got -1"),
    ],
)
def test_interpolations_name_bad_arguments(change, error, message):
    good = {
        "indices": torch.tensor([0, 1], dtype=torch.int32),
        "splits": torch.tensor([0, 2]),
        "weights": torch.ones(2),
        "num_supports": 2,
    }
    Interpolation(**good)
    with pytest.raises(error, match=f"^{message}$"):
        Interpolation(**(good | change))


def test_numbers_of_numpy():
    args = problem()
    result, expected = trilinear(*args, np.float32(0.5), np.int64(1)), trilinear(*args, 0.5, 1)
    assert torch.equal(result.weights, expected.weights)
