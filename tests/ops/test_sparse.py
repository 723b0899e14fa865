import sys

import pytest
import torch
from cells import cloud, draw, on, voxels

from kpconv_ops import KernelMap, _native, kernel_map, reference, scatter_mean, sparse_conv, voxelize


def on_cpu(table):
    return KernelMap(table.rows.cpu(), table.num_in)


def with_gradients(function, features, weights, *args):
    features, weights = (t.detach().clone().requires_grad_() for t in (features, weights))
    out = function(features, weights, *args)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    return tuple(t.cpu() for t in (out.detach(), *torch.autograd.grad(out, (features, weights), weighting)))


# ---- convolution


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
@pytest.mark.parametrize("channels", [(1, 1), (5, 7), (33, 4), (64, 64), (96, 20), (16, 48)])
def test_values_and_gradients_equal_the_oracle(device, kernel_size, channels):
    coords, offsets = voxels()
    coarse = reference.stride_coords(coords, offsets, 2)
    pairs = kernel_map(*on(device, coords, offsets, coarse.coords, coarse.offsets), kernel_size)
    weights = draw(kernel_size**3, *channels)
    for each in (pairs, pairs.transposed):
        features = draw(each.num_in, channels[0])
        results = with_gradients(sparse_conv, *on(device, features, weights), each)
        expected = with_gradients(reference.sparse_conv, features, weights, on_cpu(each))
        for result, other in zip(results, expected, strict=True):
            torch.testing.assert_close(result, other)


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
    args = features, weights, pairs.rows, pairs.transposed.rows
    torch.library.opcheck(torch.ops.kpconv_ops.sparse_conv, args)
    args = draw(pairs.num_out, 3).to(device), features.detach(), weights.detach(), *args[2:]
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.kpconv_ops.sparse_conv_backward, (*args, *needs))


def test_each_gradient_alone_equals_both(device):
    """On CUDA weight gradients are formed from gathered features where the features need none."""
    coords, offsets = on(device, *voxels())
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    features, weights = on(device, draw(len(coords), 5), draw(27, 5, 4))
    both = with_gradients(sparse_conv, features, weights, pairs)
    for which, tensor in ((1, features), (2, weights)):
        leaf = tensor.clone().requires_grad_()
        out = sparse_conv(*(leaf if t is tensor else t for t in (features, weights)), pairs)
        weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
        torch.testing.assert_close(torch.autograd.grad(out, leaf, weighting)[0].cpu(), both[which])
    fresh = KernelMap(pairs.rows, pairs.num_in)
    sparse_conv(features, weights.clone().requires_grad_(), fresh).sum().backward()
    assert not fresh._transposed  # needed for the gradient of features only


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


def test_the_same_bits_on_every_run(device):
    """Runs of as many threads agree, on the CPU also runs of any number: several blocks of outputs, and of pairs."""
    on_cuda = _native.on_cuda(torch.empty(0))
    coords, offsets = on(device, *voxels((100,) if on_cuda else (1800,), extent=13))
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    args = *on(device, draw(len(coords), 21, dtype=torch.float32), draw(27, 21, 130, dtype=torch.float32)), pairs
    threads, results = torch.get_num_threads(), []
    try:
        for number in (2, 2) if on_cuda else (1, 2, 2, 3):
            torch.set_num_threads(number)
            results.append(with_gradients(sparse_conv, *args))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    for result, expected in zip(
        results[0], with_gradients(reference.sparse_conv, *args[:2], on_cpu(pairs)), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_bounded_chunks_on_cuda(device, monkeypatch):
    """Chunks of any size join to the result, and none is larger than asked for."""
    if not _native.on_cuda(torch.empty(0, device=device)):
        pytest.skip("the CPU gathers no chunks")
    coords, offsets = on(device, *voxels((100,)))
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    args = *on(device, draw(len(coords), 3), draw(27, 3, 4)), pairs
    whole = with_gradients(sparse_conv, *args)
    monkeypatch.setattr(sys.modules["kpconv_ops.kpconv"], "_CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(sys.modules["kpconv_ops.kpconv"], "_MIN_CHUNK_ROWS", 5)
    sizes = [len(buffer) for _, buffer in sys.modules["kpconv_ops.sparse"]._gathered(args[0], pairs.rows)]
    assert max(sizes) == 5 and sum(sizes) == pairs.num_out
    for result, expected in zip(with_gradients(sparse_conv, *args), whole, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("sizes", [(), (0, 0), (1,)])
@pytest.mark.parametrize("channels", [(0, 3), (3, 0), (3, 4)])
def test_few_voxels_and_channels(device, sizes, channels):
    """No voxel, a single one that all taps but the centre miss, no channels: zeros where nothing is read."""
    coords, offsets = voxels(sizes)
    pairs = kernel_map(*on(device, coords, offsets, coords, offsets), 3)
    args = draw(len(coords), channels[0]), draw(27, *channels)
    expected = with_gradients(reference.sparse_conv, *args, on_cpu(pairs))
    for result, other in zip(with_gradients(sparse_conv, *on(device, *args), pairs), expected, strict=True):
        torch.testing.assert_close(result, other)


def test_any_table(device):
    """Rows in any order, a tap that reads nothing, rows that several outputs read at a tap."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, 50, (5, 1300), generator=random, dtype=torch.int32)
    rows[2] = -1
    features, weights = draw(50, 7), draw(5, 7, 18)
    table = KernelMap(*on(device, rows), 50)
    result = sparse_conv(*on(device, features, weights), table).cpu()
    torch.testing.assert_close(result, reference.sparse_conv(features, weights, KernelMap(rows, 50)))
    weights = weights.to(device).requires_grad_()
    (gradient,) = torch.autograd.grad(sparse_conv(features.to(device), weights, table).sum(), weights)
    expected = torch.stack([features[tap[tap >= 0].long()].sum(0) for tap in rows])
    torch.testing.assert_close(gradient.cpu(), expected[:, :, None].expand(-1, -1, 18))


def test_tensors_that_are_not_contiguous(device):
    coords, offsets = voxels()
    pairs = kernel_map(*on(device, coords, offsets, coords, offsets), 3)
    args = on(device, draw(len(coords), 5), draw(27, 5, 6))
    strided = KernelMap(pairs.rows.t().contiguous().t(), pairs.num_in)
    views = args[0].t().contiguous().t(), args[1].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not any(t.is_contiguous() for t in (strided.rows, *views))
    expected = with_gradients(sparse_conv, *args, pairs)
    for result, other in zip(with_gradients(sparse_conv, *views, strided), expected, strict=True):
        torch.testing.assert_close(result, other)


@pytest.mark.parametrize("channels", [(2, 3), (5, 18)])
def test_nan_reaches_only_its_neighbours(device, channels):
    """A NaN of a feature spreads to the outputs that read it, one of a gradient to the inputs that its output reads."""
    coords, offsets = on(device, *voxels())
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    features, weights = on(device, draw(len(coords), channels[0]), draw(27, *channels))
    features[4, 1] = torch.nan
    features.requires_grad_()
    out = sparse_conv(features, weights, pairs)
    for tensor, seen in ((out, (pairs.rows == 4).any(0)), (None, (pairs.transposed.rows == 7).any(0))):
        if tensor is None:
            grad = torch.zeros_like(out)
            grad[7, 1] = torch.nan
            (tensor,) = torch.autograd.grad(out, features, grad)
        assert torch.equal(tensor.isnan().any(1), seen) and torch.equal(tensor.isnan().all(1), seen)


def test_rows_outside_the_voxels_are_an_error_on_the_cpu():
    """Wherever they are, also where only a gradient reads them."""
    rows = torch.full((2, 700), -1, dtype=torch.int32)
    features, weights = draw(9, 3), draw(2, 3, 4).requires_grad_()
    readers = torch.full((2, 9), -1, dtype=torch.int32)
    for row in (-2, 9, 2**31 - 1, -(2**31)):
        bad = rows.clone()
        bad[1, 600] = row
        with pytest.raises(ValueError, match=r"^rows of kernel_map must be in \[-1, 9\)$"):
            sparse_conv(features, weights, KernelMap(bad, 9))
        with pytest.raises(ValueError, match=r"^rows of kernel_map must be in \[-1, 9\)$"):
            torch.ops.kpconv_ops.sparse_conv_backward(draw(700, 4), features, weights, bad, readers, False, True)


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
    coords, offsets = voxels()
    pairs = kernel_map(coords, offsets, coords, offsets, 3)
    features, weights = draw(len(coords), 2), draw(27, 2, 3)
    many = features[:1, :1].expand(2**31, 1), torch.zeros(1).long().expand(2**31)  # they take no memory
    beyond, below = KernelMap(pairs.rows + 999, pairs.num_in), KernelMap(pairs.rows - 1, pairs.num_in)
    for function, args, error, message in (
        (sparse_conv, (features, weights, None), TypeError, "kernel_map must be a KernelMap, got NoneType"),
        (sparse_conv, (features[1:], weights, pairs), ValueError, r"features must have shape \(\d+, \*\)"),
        (sparse_conv, (features, weights[1:], pairs), ValueError, r"weights must have shape \(27, 2, \*\)"),
        (sparse_conv, (features, weights.float(), pairs), TypeError, "weights must be float64, got float32"),
        (sparse_conv, (features, weights, beyond), ValueError, r"rows of kernel_map must be in \[-1, \d+\)"),
        (sparse_conv, (features, weights, below), ValueError, r"rows of kernel_map must be in \[-1, \d+\)"),
        (sparse_conv, (features.to("meta"), weights.to("meta"), pairs), ValueError, "kernel_map must be on meta"),
        (scatter_mean, (features, torch.zeros(len(coords)).long(), 3.0), TypeError, "num_rows must be an int, got flo"),
        (scatter_mean, (features, pairs.rows[0, 1:].long(), 3), ValueError, r"inverse must have shape \(\d+\)"),
        (scatter_mean, (features[:2], torch.tensor([0, 3]), 3), ValueError, r"inverse must be in \[0, 3\), got 0 to 3"),
        (scatter_mean, (features[:2], torch.tensor([0, -1]), 3), ValueError, r"inverse must be in .*, got -1 to 0"),
        (scatter_mean, (*many, 1), ValueError, r"inverse must have fewer than 2\^31 rows"),
    ):
        with pytest.raises(error, match=message):
            function(*args)
