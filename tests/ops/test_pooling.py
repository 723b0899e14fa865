import pytest
import torch
from cells import voxels
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import Neighbors, _native, kernel_map, max_pool, mean_pool, radius_search, reference


def problem(sizes=((20, 40), (0, 5), (7, 12)), channels=5, dtype=torch.float64, seed=0, radius=0.35):
    random = torch.Generator().manual_seed(seed)
    counts = torch.tensor([(0, 0), *sizes]).cumsum(0)
    queries, supports = (torch.rand(int(n), 3, generator=random) for n in counts[-1])
    nb = radius_search(queries, counts[:, 0].contiguous(), supports, counts[:, 1].contiguous(), radius)
    return torch.randn(len(supports), channels, generator=random, dtype=torch.float64).to(dtype), nb


def moved(device, features, nb):
    return features.to(device), Neighbors(nb.indices.to(device), nb.splits.to(device), nb.num_supports)


def with_gradient(function, features, nb):
    features = features.detach().clone().requires_grad_()
    out = function(features, nb)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    return out.detach().cpu(), torch.autograd.grad(out, features, weighting)[0].cpu()


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
POOLS = [max_pool, mean_pool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 5, 32, 70])
def test_values_and_gradient_equal_the_oracle(device, dtype, channels):
    features, nb = problem(channels=channels, dtype=dtype)
    out, grad = with_gradient(max_pool, *moved(device, features, nb))
    expected, _ = with_gradient(reference.max_pool, features, nb)
    assert torch.equal(out, expected)
    _, wide = with_gradient(reference.max_pool, features.double(), nb)  # no ties: the arg-max is the same
    torch.testing.assert_close(grad, wide.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 5, 32, 70])
def test_means_and_gradient_equal_the_oracle(device, dtype, channels):
    features, nb = problem(channels=channels, dtype=dtype)
    out, grad = with_gradient(mean_pool, *moved(device, features, nb))
    assert out.dtype == grad.dtype == dtype and grad.abs().max() > 0
    wide, wide_grad = with_gradient(reference.mean_pool, features.double(), nb)
    close = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out, wide.to(dtype), **close)
    torch.testing.assert_close(grad, wide_grad.to(dtype), **close)


def test_means_of_half_precision_do_not_overflow(device):
    """The sum of the features is beyond the largest float16, their mean is not."""
    nb = Neighbors(torch.arange(8, dtype=torch.int32), torch.tensor([0, 8]), 8)
    features, nb = moved(device, torch.full((8, 2), 60000.0, dtype=torch.float16), nb)
    assert mean_pool(features, nb).tolist() == [[60000.0, 60000.0]]


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (3, 1), (3, 2)])
def test_pools_of_voxels_equal_dense_pooling(device, kernel_size, stride):
    """As in MinkowskiEngine, an average counts the occupied voxels only."""
    coords, offsets = voxels((60,), extent=7)
    out = reference.stride_coords(coords, offsets, stride)
    nb = kernel_map(*(each.to(device) for each in (coords, offsets, out.coords, out.offsets)), kernel_size).neighbors
    features = torch.randn(len(coords), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, size, before = -8, 16, kernel_size // 2 if kernel_size % 2 else 0  # low: a multiple of the stride

    def dense(values, empty):
        x, y, z = (coords - low).unbind(1)
        grid = values.new_full((size, size, size, values.shape[1]), empty).index_put((z, y, x), values)
        padding = [before, kernel_size - 1 - before] * 3
        return torch.nn.functional.pad(grid.permute(3, 0, 1, 2)[None], padding, value=empty)

    x, y, z = ((out.coords - low) // stride).unbind(1)
    largest = torch.nn.functional.max_pool3d(dense(features, -torch.inf), kernel_size, stride)[0, :, z, y, x].T
    assert torch.equal(max_pool(features.to(device), nb).cpu(), largest)
    sums, counts = (
        torch.nn.functional.avg_pool3d(dense(values, 0.0), kernel_size, stride, divisor_override=1)[0, :, z, y, x].T
        for values in (features, torch.ones(len(coords), 1, dtype=torch.float64))
    )
    assert counts.min() < counts.max() < kernel_size**3
    torch.testing.assert_close(mean_pool(features.to(device), nb).cpu(), sums / counts)


def test_gradcheck_and_opcheck(device):
    features, nb = moved(device, *problem([(5, 9)], 3))
    assert torch.autograd.gradcheck(lambda f: max_pool(f, nb), features.requires_grad_())
    assert torch.autograd.gradcheck(lambda f: mean_pool(f, nb), features)
    assert torch.autograd.gradgradcheck(lambda f: mean_pool(f, nb), features)
    args = features, nb.indices, nb.splits, nb.transposed.indices, nb.transposed.splits
    torch.library.opcheck(torch.ops.kpconv_ops.max_pool, args)
    args = features, nb.indices, nb.splits, None, nb.transposed.indices, nb.transposed.splits, None, "nb"
    torch.library.opcheck(torch.ops.kpconv_ops.weighted_sum, args)


@pytest.mark.parametrize("pool", POOLS)
def test_compiles_without_graph_breaks(pool):
    features, nb = problem()
    compiled = torch.compile(lambda f, n: pool(f, n) * 2, fullgraph=True, backend="aot_eager")
    for result, expected in zip(
        with_gradient(compiled, features, nb), with_gradient(lambda f, n: pool(f, n) * 2, features, nb), strict=True
    ):
        assert torch.equal(result, expected)


def test_the_first_neighbour_wins_a_tie(device):
    """Equal values: the whole gradient goes to the neighbour that comes first."""
    nb = Neighbors(torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([0, 3]), 3)
    _, grad = with_gradient(max_pool, *moved(device, torch.ones(3, 2), nb))
    assert torch.equal(grad, torch.tensor([[0.0, 0], [0, 0], [-1, 1]]))


@pytest.mark.parametrize("pool", POOLS)
def test_nothing_to_pool_gives_zeros(device, pool):
    """A query without neighbours gets zeros, even where every feature is negative, and passes no gradient on."""
    nb = Neighbors(torch.tensor([1], dtype=torch.int32), torch.tensor([0, 0, 1, 1]), 2)
    out, grad = with_gradient(pool, *moved(device, -torch.ones(2, 1), nb))
    assert torch.equal(out, torch.tensor([[0.0], [-1], [0]]))
    assert torch.equal(grad, torch.tensor([[0.0], [0]]))
    for sizes in ([(0, 0)], [(3, 0)], [(0, 3)], [(1, 1)]):
        features, nb = problem(sizes)
        expected = getattr(reference, pool.__name__)(features, nb)
        torch.testing.assert_close(pool(*moved(device, features, nb)).cpu(), expected)


def test_autocast_leaves_pools_alone(device):
    """They are no matrix products: features keep their type."""
    features, nb = moved(device, *problem(dtype=torch.float32))
    for pool in POOLS:
        with torch.autocast(device.type, torch.bfloat16):
            out = pool(features, nb)
        assert out.dtype == torch.float32 and torch.equal(out, pool(features, nb))


def test_a_nan_reaches_the_means_it_is_part_of(device):
    features, nb = moved(device, *problem())
    features[3] = torch.nan
    rows = torch.arange(len(nb.splits) - 1, device=device).repeat_interleave(nb.splits.diff())
    seen = torch.zeros(len(nb.splits) - 1, dtype=torch.bool, device=device)
    seen[rows[nb.indices == 3]] = True
    out = mean_pool(features, nb)
    assert seen.any() and torch.equal(out.isnan().any(1), seen) and torch.equal(out.isnan().all(1), seen)


def test_nan_and_infinities(device):
    """NaN beats every value, wherever it comes; minus infinity is a value like any other."""
    column = torch.tensor([1.0, torch.nan, 3, -torch.inf, torch.inf, torch.nan])[:, None]
    nb = Neighbors(
        torch.tensor([0, 1, 2, 1, 0, 2, 4, 1, 5, 3, 3, 0], dtype=torch.int32), torch.tensor([0, 3, 6, 9, 10, 12]), 6
    )
    features, nb = moved(device, column, nb)
    expected = torch.tensor([torch.nan, torch.nan, torch.nan, -torch.inf, 1])
    assert torch.allclose(max_pool(features, nb)[:, 0].cpu(), expected, equal_nan=True)
    winners = torch.ops.kpconv_ops.max_pool(features, nb.indices, nb.splits, None, None)[1]
    assert winners[:, 0].tolist() == [1, 1, 1, 3, 0]


@pytest.mark.parametrize("pool", POOLS)
def test_non_contiguous_features(device, pool):
    features, nb = moved(device, *problem())
    expected = with_gradient(pool, features, nb)
    for result, value in zip(
        with_gradient(lambda f, n: pool(f.T.contiguous().T, n), features, nb), expected, strict=True
    ):
        assert torch.equal(result, value)


def test_a_second_derivative_is_an_error(device):
    features, nb = moved(device, *problem())
    features.requires_grad_()
    (first,) = torch.autograd.grad(max_pool(features, nb).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^max_pool can be differentiated only once$"):
        torch.autograd.grad(first.sum() + features.sum(), features)


@pytest.mark.parametrize("pool", POOLS)
def test_the_same_bits_for_any_number_of_threads(device, pool):
    features, nb = moved(device, *problem([(20, 30)] if _native.on_cuda(torch.empty(0)) else [(400, 600)], 3))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(with_gradient(pool, features, nb))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_permutation_equivariance(seed):
    """The maximum does not depend on the order of the neighbours, and a rising function commutes with it."""
    features, nb = problem([(7, 12)], 3, seed=seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    renamed = Neighbors(torch.argsort(order)[nb.indices.long()].int(), nb.splits, 12)
    out = max_pool(features, nb)
    assert torch.equal(out, max_pool(features[order], renamed))
    occupied = nb.splits.diff() > 0
    assert torch.equal(max_pool(features.exp(), nb)[occupied], out.exp()[occupied])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_means_are_linear_and_keep_constants(seed):
    features, nb = problem([(7, 12)], 3, seed=seed)
    other = features.flip(0)
    both = mean_pool(features, nb) + 2 * mean_pool(other, nb)
    torch.testing.assert_close(mean_pool(features + 2 * other, nb), both)
    occupied = (nb.splits.diff() > 0).double()[:, None].expand(-1, 3)
    assert torch.equal(mean_pool(torch.ones_like(features), nb), occupied)


@pytest.mark.parametrize("pool", POOLS)
def test_bad_arguments_are_named(pool):
    features, nb = problem()
    for bad, error, message in (
        ((features[0], nb), ValueError, r"features must have shape \(\*, \*\), got \(5,\)"),
        ((features.long(), nb), TypeError, "features must be float32 or .*, got int64"),
        ((features, None), TypeError, "nb must be Neighbors, got NoneType"),
        ((features[:9], nb), ValueError, "nb must be neighbours among 9 supports, got neighbours among 57"),
        ((features.to("meta"), nb), ValueError, "nb must be on meta, got cpu"),
        ((features, Neighbors(nb.indices + 57, nb.splits, 57)), ValueError, r"nb.indices must be in \[0, 57\)"),
        ((features, Neighbors(nb.indices, nb.splits - 1, 57)), ValueError, r"nb.splits must rise within \[0, \d+\]"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            pool(*bad)
