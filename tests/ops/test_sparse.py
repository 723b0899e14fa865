import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import (
    KernelMap,
    _native,
    kernel_map,
    reference,
    scatter_mean,
    sparse_conv,
    stride_coords,
    voxelize,
)


def cloud(sizes=(40, 0, 1, 25), seed=0, extent=6):
    """Packed points around the origin, on both sides of it."""
    random = torch.Generator().manual_seed(seed)
    points = (torch.rand(sum(sizes), 3, generator=random, dtype=torch.float64) - 0.5) * extent
    return points, torch.tensor([0, *sizes]).cumsum(0)


def voxels(sizes=(40, 0, 1, 25), seed=0, extent=6):
    cells = reference.voxelize(*cloud(sizes, seed, extent), 1.0)
    return cells.coords, cells.offsets


def on(device, *tensors):
    return tuple(tensor.to(device) for tensor in tensors)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradients(function, features, weights, *args):
    features, weights = (t.detach().clone().requires_grad_() for t in (features, weights))
    out = function(features, weights, *args)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    return tuple(t.cpu() for t in (out.detach(), *torch.autograd.grad(out, (features, weights), weighting)))


def assert_equal(result, expected):
    for name in ("coords", "offsets", "inverse") if hasattr(expected, "coords") else ("in_rows", "out_rows", "splits"):
        mine, theirs = getattr(result, name), getattr(expected, name)
        assert mine.dtype == theirs.dtype and torch.equal(mine.cpu(), theirs), name


# ---- voxels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(200,), (40, 0, 1, 25), (0,), (0, 0), (1,), ()])
def test_voxels_equal_the_oracle(device, dtype, sizes):
    points, offsets = cloud(sizes)
    points = points.to(dtype)
    assert_equal(voxelize(*on(device, points, offsets), 0.7), reference.voxelize(points, offsets, 0.7))
    coords = points.mul(5).long()
    for stride in (1, 2, 3, 8):
        result = stride_coords(*on(device, coords, offsets), stride)
        assert_equal(result, reference.stride_coords(coords, offsets, stride))


def test_negative_coordinates_floor(device):
    """The voxel below zero is -1, not 0; a stride of 2 sends -1 to -2."""
    points = torch.tensor([[-0.1, 0.0, 0.1], [-1.0, 0.99, 1.0]])
    offsets = torch.tensor([0, 2])
    cells = voxelize(*on(device, points, offsets), 1.0)
    assert cells.coords.tolist() == [[-1, 0, 0], [-1, 0, 1]]
    assert stride_coords(cells.coords, cells.offsets, 2).coords.tolist() == [[-2, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), magnitude=st.sampled_from([1, 10, 2**19, 2**35, 2**50]))
def test_large_coordinates_keep_their_voxels(seed, magnitude):
    """Voxels far from the origin, and samples far from each other, are told apart as near ones are."""
    coords, offsets = voxels(seed=seed)
    random = torch.Generator().manual_seed(seed)
    shift = torch.randint(-magnitude, magnitude, (len(offsets) - 1, 3), generator=random)
    shift = shift.repeat_interleave(offsets.diff(), 0)
    assert_equal(stride_coords(coords + shift, offsets, 2), reference.stride_coords(coords + shift, offsets, 2))
    here = kernel_map(coords, offsets, coords, offsets, 3)
    assert_equal(kernel_map(coords + shift, offsets, coords + shift, offsets, 3), here)


def test_a_box_too_large_for_64_bit_keys_is_refused():
    coords, offsets = torch.tensor([[0, 0, 0], [2**30, 2**30, 2**30]]), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="coords must lie closer together: 1 samples of up to 1073741825 x"):
        stride_coords(coords, offsets, 1)
    with pytest.raises(ValueError, match="in_coords and out_coords must lie closer together"):
        kernel_map(coords, offsets, coords, offsets, 3)


# ---- kernel maps


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_kernel_maps_equal_the_oracle(device, kernel_size, dilation):
    """Convolutions that keep the voxels, and strided ones onto coarser voxels."""
    coords, offsets = voxels()
    coarse = reference.stride_coords(coords, offsets, 2)
    for out in ((coords, offsets), (coarse.coords, coarse.offsets)):
        result = kernel_map(*on(device, coords, offsets, *out), kernel_size, dilation)
        assert_equal(result, reference.kernel_map(coords, offsets, *out, kernel_size, dilation))
        assert result.splits.device.type == "cpu"
        assert (result.num_in, result.num_out) == (len(coords), len(out[0]))
        assert result.transposed.transposed.in_rows is result.in_rows


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0), (1,)])
def test_kernel_maps_of_few_voxels(device, sizes):
    coords, offsets = voxels(sizes)
    result = kernel_map(*on(device, coords, offsets, coords, offsets), 3)
    assert_equal(result, reference.kernel_map(coords, offsets, coords, offsets, 3))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), dilation=st.integers(1, 3))
def test_an_odd_kernel_map_is_symmetric(seed, dilation):
    """If i meets o at tap k, o meets i at the opposite tap; the centre tap is the identity."""
    coords, offsets = voxels(seed=seed)
    result = kernel_map(coords, offsets, coords, offsets, 3, dilation)
    taps = torch.arange(27).repeat_interleave(result.splits.diff())
    pairs = set(zip(taps.tolist(), result.in_rows.tolist(), result.out_rows.tolist(), strict=True))
    assert {(26 - tap, out_row, in_row) for tap, in_row, out_row in pairs} == pairs
    centre = slice(result.splits[13], result.splits[14])
    assert torch.equal(result.in_rows[centre], result.out_rows[centre])
    assert len(result.in_rows[centre]) == len(coords)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_voxels_does_not_matter(seed):
    """Shuffled inputs and outputs meet at the same taps as sorted ones."""
    coords, offsets = voxels((30,), seed)
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randperm(len(coords), generator=random) for _ in range(2))
    result = kernel_map(coords[a], offsets, coords[b], offsets, 3)
    assert_equal(result, reference.kernel_map(coords[a], offsets, coords[b], offsets, 3))


# ---- convolution


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
@pytest.mark.parametrize("channels", [(1, 1), (5, 7), (33, 4)])
def test_values_and_gradients_equal_the_oracle(device, kernel_size, channels):
    coords, offsets = voxels()
    coarse = reference.stride_coords(coords, offsets, 2)
    pairs = kernel_map(*on(device, coords, offsets, coarse.coords, coarse.offsets), kernel_size)
    weights = draw(kernel_size**3, *channels)
    for each in (pairs, pairs.transposed):
        features = draw(each.num_in, channels[0])
        results = with_gradients(sparse_conv, *on(device, features, weights), each)
        each = KernelMap(each.in_rows.cpu(), each.out_rows.cpu(), each.splits, each.num_in, each.num_out)
        for result, expected in zip(
            results, with_gradients(reference.sparse_conv, features, weights, each), strict=True
        ):
            torch.testing.assert_close(result, expected)


def dense(coords, features, low, size):
    """`[1, C, z, y, x]` grid of one sample."""
    grid = features.new_zeros(size, size, size, features.shape[1])
    x, y, z = (coords - low).unbind(1)
    grid = grid.index_put((z, y, x), features)
    return grid.permute(3, 0, 1, 2)[None]


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 1), (2, 2), (3, 2), (2, 1)])
def test_equals_dense_convolution(device, kernel_size, stride):
    """Sparse and dense convolution agree in float64: MinkowskiEngine's tap order, padding and strided coordinates."""
    coords, offsets = voxels((60,), extent=7)
    low, size = -8, 16  # even, so that strided cells start at multiples of the stride
    features, weights = draw(len(coords), 3), draw(kernel_size**3, 3, 4, seed=1)
    out = reference.stride_coords(coords, offsets, stride)
    pairs = kernel_map(*on(device, coords, offsets, out.coords, out.offsets), kernel_size)
    result = sparse_conv(*on(device, features, weights), pairs).cpu()
    kernel = weights.reshape(kernel_size, kernel_size, kernel_size, 3, 4).permute(4, 3, 0, 1, 2)
    before = kernel_size // 2 if kernel_size % 2 else 0
    padded = torch.nn.functional.pad(dense(coords, features, low, size), [before, kernel_size - 1 - before] * 3)
    full = torch.nn.functional.conv3d(padded, kernel, stride=stride)
    x, y, z = ((out.coords - low) // stride).unbind(1)
    torch.testing.assert_close(result, full[0, :, z, y, x].T)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_transposed_equals_dense_transposed_convolution(device, kernel_size):
    """`out[c + offset] += in[c] W`, from stride 2 back onto the finer voxels."""
    coords, offsets = voxels((60,), extent=7)
    low, size = -8, 16
    coarse = reference.stride_coords(coords, offsets, 2)
    features, weights = draw(len(coarse.coords), 3), draw(kernel_size**3, 3, 4, seed=1)
    pairs = kernel_map(*on(device, coords, offsets, coarse.coords, coarse.offsets), kernel_size)
    result = sparse_conv(*on(device, features, weights), pairs.transposed).cpu()
    kernel = weights.reshape(kernel_size, kernel_size, kernel_size, 3, 4).permute(3, 4, 0, 1, 2)
    full = torch.nn.functional.conv_transpose3d(
        dense(coarse.coords // 2, features, low // 2, size // 2), kernel, stride=2
    )
    before = kernel_size // 2 if kernel_size % 2 else 0  # the first tap lies so many voxels before the cell
    x, y, z = (coords - low + before).unbind(1)
    torch.testing.assert_close(result, full[0, :, z, y, x].T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_sum_in_float32(device, dtype):
    coords, offsets = voxels()
    pairs = kernel_map(*on(device, coords, offsets, coords, offsets), 3)
    features, weights = draw(len(coords), 8, dtype=dtype), draw(27, 8, 6, dtype=dtype)
    results = with_gradients(sparse_conv, *on(device, features, weights), pairs)
    exact = with_gradients(sparse_conv, *on(device, features.double(), weights.double()), pairs)
    for result, expected in zip(results, exact, strict=True):
        assert result.dtype == dtype
        assert (result.double() - expected).abs().max() < 3 * torch.finfo(dtype).eps * expected.abs().max()


def test_gradcheck_and_opcheck(device):
    coords, offsets = on(device, *voxels((12,), extent=3))
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    features, weights = (t.requires_grad_() for t in on(device, draw(len(coords), 2), draw(27, 2, 3)))
    assert torch.autograd.gradcheck(lambda f, w: sparse_conv(f, w, pairs), (features, weights))
    rows = pairs.in_rows, pairs.out_rows, pairs.splits
    torch.library.opcheck(torch.ops.kpconv_ops.sparse_conv, (features, weights, *rows, pairs.num_out))
    torch.library.opcheck(torch.ops.kpconv_ops.kernel_map, (coords, offsets, coords, offsets, 3, 1))
    torch.library.opcheck(torch.ops.kpconv_ops.unique_voxels, (coords, offsets, "coords"))


def test_compiles_without_graph_breaks():
    points, offsets = cloud()
    features, weights = draw(len(points), 3), draw(27, 3, 4)

    def network(features, weights):
        cells = voxelize(points, offsets, 0.5)
        pairs = kernel_map(cells.coords, cells.offsets, cells.coords, cells.offsets, 3)
        return sparse_conv(scatter_mean(features, cells.inverse, len(cells.coords)), weights, pairs)[cells.inverse]

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for result, expected in zip(
        with_gradients(compiled, features, weights), with_gradients(network, features, weights), strict=True
    ):
        torch.testing.assert_close(result, expected)


def test_autocast(device):
    coords, offsets = on(device, *voxels())
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    features, weights = (t.float().requires_grad_() for t in on(device, draw(len(coords), 3), draw(27, 3, 4)))
    with torch.autocast(device.type, torch.bfloat16):
        out = sparse_conv(features, weights, pairs)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and features.grad.dtype == weights.grad.dtype == torch.float32


def test_a_batch_equals_its_samples_one_by_one(device):
    """Samples that occupy the same voxels never meet."""
    coords, offsets = voxels((30,))
    both, both_offsets = coords.repeat(2, 1), torch.tensor([0, len(coords), 2 * len(coords)])
    features, weights = draw(2 * len(coords), 3), draw(27, 3, 4)
    whole = sparse_conv(
        *on(device, features, weights), kernel_map(*on(device, both, both_offsets, both, both_offsets), 3)
    )
    alone = kernel_map(*on(device, coords, offsets, coords, offsets), 3)
    parts = [sparse_conv(*on(device, part, weights), alone) for part in features.split(len(coords))]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_a_second_derivative_is_an_error(device):
    """It would count as zero, also where a loss is linear in the result."""
    coords, offsets = on(device, *voxels((20,)))
    pairs = kernel_map(coords, offsets, coords, offsets, 1)
    features, weights = (each.requires_grad_() for each in on(device, draw(len(coords), 3), draw(1, 3, 4)))
    (first,) = torch.autograd.grad(sparse_conv(features, weights, pairs).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^sparse_conv can be differentiated only once$"):
        torch.autograd.grad(first.square().sum() + weights.sum(), weights)


def test_the_same_bits_on_every_run_and_bounded_chunks(device, monkeypatch):
    """Runs of as many threads agree; chunks of any size join to the result, and none is larger than asked for."""
    coords, offsets = on(device, *voxels((100,) if _native.on_cuda(torch.empty(0)) else (900,), extent=9))
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    args = *on(device, draw(len(coords), 3, dtype=torch.float32), draw(27, 3, 4, dtype=torch.float32)), pairs
    threads, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for _ in range(2):
            results.append(with_gradients(sparse_conv, *args))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    module = sys.modules["kpconv_ops.sparse"]
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(module, "_MIN_CHUNK_ROWS", 5)
    sizes = [len(buffer) for _, _, (buffer,) in module._Pairs(args[0], pairs.splits, 3)]
    assert max(sizes) == 5 and sum(sizes) == len(pairs.in_rows)
    for result, expected in zip(with_gradients(sparse_conv, *args), results[0], strict=True):
        torch.testing.assert_close(result, expected)


def test_nan_reaches_only_its_neighbours(device):
    coords, offsets = on(device, *voxels())
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    features = draw(len(coords), 2).to(device)
    features[4] = torch.nan
    out = sparse_conv(features, draw(27, 2, 3).to(device), pairs)
    seen = torch.zeros(len(coords), dtype=torch.bool, device=device)
    seen[pairs.out_rows[pairs.in_rows == 4].long()] = True
    assert torch.equal(out.isnan().any(1), seen) and torch.equal(out.isnan().all(1), seen)


# ---- averaging


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scatter_mean_equals_the_oracle(device, dtype):
    """Rows that nothing falls into are zeros, wherever they are."""
    inverse = torch.tensor([5, 1, 1, 3, 5, 5, 1])
    features = draw(7, 4, dtype=dtype)
    result = scatter_mean(*on(device, features, inverse), 8).cpu()
    torch.testing.assert_close(result, reference.scatter_mean(features, inverse, 8))
    assert result[[0, 2, 4, 6, 7]].abs().max() == 0
    assert scatter_mean(*on(device, features[:0], inverse[:0]), 3).tolist() == [[0.0] * 4] * 3


def test_scatter_mean_gradcheck(device):
    inverse, features = on(device, torch.tensor([2, 0, 0, 2, 2]), draw(5, 3))
    assert torch.autograd.gradcheck(lambda f: scatter_mean(f, inverse, 4), features.requires_grad_())


# ---- bad input


def test_bad_arguments_are_named():
    points, offsets = cloud()
    coords, voxel_offsets = voxels()
    same = coords, voxel_offsets, coords, voxel_offsets
    pairs = kernel_map(*same, 3)
    features, weights = draw(len(coords), 2), draw(27, 2, 3)
    other_rows = KernelMap(pairs.in_rows + 999, pairs.out_rows, pairs.splits, pairs.num_in, pairs.num_out)
    nan = points.clone()
    nan[3, 1] = torch.nan
    for function, args, error, message in (
        (voxelize, (points[:, :2], offsets, 1.0), ValueError, r"points must have shape \(\*, 3\)"),
        (voxelize, (points.long(), offsets, 1.0), TypeError, "points must be float32 or float64, got int64"),
        (voxelize, (points, offsets.int(), 1.0), TypeError, "offsets must be int64, got int32"),
        (voxelize, (points, offsets + 1, 1.0), ValueError, "offsets must rise from 0 to 66"),
        (voxelize, (points, offsets, 0.0), ValueError, "voxel_size must be positive and finite, got 0.0"),
        (voxelize, (nan, offsets, 1.0), ValueError, "points must be finite"),
        (stride_coords, (points, offsets, 2), TypeError, "coords must be int64, got float64"),
        (stride_coords, (coords, voxel_offsets, 0), ValueError, "stride must be at least 1 .*, got 0"),
        (stride_coords, (coords, voxel_offsets, 2.0), TypeError, "stride must be an integer, got float"),
        (kernel_map, (*same, 0), ValueError, "kernel_size must be at least 1 .*, got 0"),
        (kernel_map, (*same, 3, 2**40), ValueError, r"dilation must be .* less than 2\^31, got 1099511627776"),
        (kernel_map, (*same, 3, -1), ValueError, "dilation must be at least 1 .*, got -1"),
        (kernel_map, (*same[:2], coords, offsets[:2], 3), ValueError, r"out_offsets must have shape \(5\), got \(2,\)"),
        (kernel_map, (*same[:3], voxel_offsets + 1, 3), ValueError, "out_offsets must rise from 0"),
        (sparse_conv, (features, weights, None), TypeError, "kernel_map must be a KernelMap, got NoneType"),
        (sparse_conv, (features[1:], weights, pairs), ValueError, r"features must have shape \(\d+, \*\)"),
        (sparse_conv, (features, weights[1:], pairs), ValueError, r"weights must have shape \(27, 2, \*\)"),
        (sparse_conv, (features, weights.float(), pairs), TypeError, "weights must be float64, got float32"),
        (sparse_conv, (features, weights, other_rows), ValueError, r"rows of kernel_map must be in \[0, \d+\)"),
        (sparse_conv, (features.to("meta"), weights.to("meta"), pairs), ValueError, "kernel_map must be on meta"),
        (scatter_mean, (features, torch.zeros(len(coords)).long(), 3.0), TypeError, "num_rows must be an int, got flo"),
        (scatter_mean, (features, pairs.splits, 3), ValueError, r"inverse must have shape \(\d+\)"),
        (scatter_mean, (features[:2], torch.tensor([0, 3]), 3), ValueError, r"inverse must be in \[0, 3\), got 0 to 3"),
    ):
        with pytest.raises(error, match=message):
            function(*args)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"in_rows": torch.tensor([0, 1])}, TypeError, "in_rows must be int32, got int64"),
        ({"out_rows": torch.tensor([0, 1])}, TypeError, "out_rows must be int32, got int64"),
        ({"out_rows": torch.tensor([0]).int()}, ValueError, r"out_rows must have shape \(2\), got \(1,\)"),
        ({"out_rows": torch.zeros(2, device="meta").int()}, ValueError, "out_rows must be on cpu, got meta"),
        ({"splits": torch.tensor([0, 2]).int()}, TypeError, "splits must be int64, got int32"),
        ({"num_in": 2.0}, TypeError, "num_in must be an int, got float"),
        ({"num_out": -1}, ValueError, "num_out must be at least 0, got -1"),
    ],
)
def test_kernel_maps_name_bad_arguments(change, error, message):
    rows = torch.tensor([0, 1], dtype=torch.int32)
    good = {"in_rows": rows, "out_rows": rows, "splits": torch.tensor([0, 2]), "num_in": 2, "num_out": 2}
    KernelMap(**good)
    with pytest.raises(error, match=f"^{message}$"):
        KernelMap(**(good | change))


def test_numbers_of_numpy():
    coords, offsets = voxels()
    for function, number in ((stride_coords, 2), (lambda *a: kernel_map(*a[:2], *a), 3)):
        assert_equal(function(coords, offsets, np.int64(number)), function(coords, offsets, number))
