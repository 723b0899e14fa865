import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import Neighbors, _native, max_pool, radius_search, reference


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 5, 32, 70])
def test_values_and_gradient_equal_the_oracle(device, dtype, channels):
    features, nb = problem(channels=channels, dtype=dtype)
    out, grad = with_gradient(max_pool, *moved(device, features, nb))
    expected, _ = with_gradient(reference.max_pool, features, nb)
    assert torch.equal(out, expected)
    _, wide = with_gradient(reference.max_pool, features.double(), nb)  # no ties: the arg-max is the same
    torch.testing.assert_close(grad, wide.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_gradcheck_and_opcheck(device):
    features, nb = moved(device, *problem([(5, 9)], 3))
    assert torch.autograd.gradcheck(lambda f: max_pool(f, nb), features.requires_grad_())
    args = features, nb.indices, nb.splits, nb.transposed.indices, nb.transposed.splits
    torch.library.opcheck(torch.ops.kpconv_ops.max_pool, args)


def test_compiles_without_graph_breaks():
    features, nb = problem()
    compiled = torch.compile(lambda f, n: max_pool(f, n) * 2, fullgraph=True, backend="aot_eager")
    for result, expected in zip(
        with_gradient(compiled, features, nb), with_gradient(lambda f, n: max_pool(f, n) * 2, features, nb), strict=True
    ):
        assert torch.equal(result, expected)


def test_the_first_neighbour_wins_a_tie(device):
    """Equal values: the whole gradient goes to the neighbour that comes first."""
    nb = Neighbors(torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([0, 3]), 3)
    _, grad = with_gradient(max_pool, *moved(device, torch.ones(3, 2), nb))
    assert torch.equal(grad, torch.tensor([[0.0, 0], [0, 0], [-1, 1]]))


def test_nothing_to_pool_gives_zeros(device):
    """A query without neighbours gets zeros, even where every feature is negative, and passes no gradient on."""
    nb = Neighbors(torch.tensor([1], dtype=torch.int32), torch.tensor([0, 0, 1, 1]), 2)
    out, grad = with_gradient(max_pool, *moved(device, -torch.ones(2, 1), nb))
    assert torch.equal(out, torch.tensor([[0.0], [-1], [0]]))
    assert torch.equal(grad, torch.tensor([[0.0], [0]]))
    for sizes in ([(0, 0)], [(3, 0)], [(0, 3)], [(1, 1)]):
        features, nb = problem(sizes)
        assert torch.equal(max_pool(*moved(device, features, nb)).cpu(), reference.max_pool(features, nb))


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


def test_non_contiguous_features(device):
    features, nb = moved(device, *problem())
    expected = with_gradient(max_pool, features, nb)
    for result, value in zip(
        with_gradient(lambda f, n: max_pool(f.T.contiguous().T, n), features, nb), expected, strict=True
    ):
        assert torch.equal(result, value)


def test_a_second_derivative_is_an_error(device):
    features, nb = moved(device, *problem())
    features.requires_grad_()
    (first,) = torch.autograd.grad(max_pool(features, nb).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^max_pool can be differentiated only once$"):
        torch.autograd.grad(first.sum() + features.sum(), features)


def test_the_same_bits_for_any_number_of_threads(device):
    features, nb = moved(device, *problem([(20, 30)] if _native.on_cuda(torch.empty(0)) else [(400, 600)], 3))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(with_gradient(max_pool, features, nb))
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


def test_bad_arguments_are_named():
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
            max_pool(*bad)
