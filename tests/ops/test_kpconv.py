import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import Neighbors, _native, kpconv, radius_search, reference

RULES = [(i, a) for i in ("linear", "constant", "gaussian") for a in ("sum", "closest")]
RADIUS = 0.4


def problem(sizes=((30, 60), (0, 5), (12, 20)), channels=(5, 7), num_points=15, dtype=torch.float64, seed=0):
    """`kpconv`'s arguments up to the weights; sizes: (queries, supports) of each sample."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    counts = torch.tensor([(0, 0), *sizes]).cumsum(0)
    queries, supports = (torch.rand(int(n), 3, generator=random, dtype=torch.float64) for n in counts[-1])
    nb = radius_search(queries, counts[:, 0].contiguous(), supports, counts[:, 1].contiguous(), RADIUS)
    kernel = draw(num_points, 3).double() * RADIUS / 3
    weights = draw(num_points, *channels) / (num_points * channels[0]) ** 0.5
    return draw(len(supports), channels[0]), queries, supports, nb, kernel, weights


def moved(device, features, queries, supports, nb, kernel, weights):
    nb = Neighbors(nb.indices.to(device), nb.splits.to(device), nb.num_supports)
    return *(t.to(device) for t in (features, queries, supports)), nb, kernel.to(device), weights.to(device)


def with_gradients(function, features, queries, supports, nb, kernel, weights, *rule):
    """Output and the gradients of a fixed weighting of it."""
    features, weights = (t.detach().clone().requires_grad_() for t in (features, weights))
    out = function(features, queries, supports, nb, kernel, weights, *rule)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    return out.detach(), *torch.autograd.grad(out, (features, weights), weighting)


def assert_oracle(device, args, *rule, **tolerance):
    results = with_gradients(kpconv, *moved(device, *args), *rule)
    for result, expected in zip(results, with_gradients(reference.kpconv, *args, *rule), strict=True):
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result.cpu(), expected, **tolerance)


@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_values_and_gradients_equal_the_oracle(device, influence, aggregation):
    assert_oracle(device, problem(), 0.2, influence, aggregation)


@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_float32(device, influence, aggregation):
    features, queries, supports, nb, kernel, weights = problem(dtype=torch.float32)
    args = features, queries.float(), supports.float(), nb, kernel.float(), weights
    assert_oracle(device, args, 0.2, influence, aggregation, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_points", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("channels", [(1, 3), (70, 2)])
def test_any_number_of_kernel_points_and_channels(device, num_points, channels):
    for aggregation in ("sum", "closest"):
        assert_oracle(device, problem([(6, 20)], channels, num_points), 0.3, "linear", aggregation)


@pytest.mark.parametrize("neighbors", [31, 32, 33, 64, 65, 150])
@pytest.mark.parametrize("coordinates", [torch.float32, torch.float64])
def test_any_number_of_neighbours(device, neighbors, coordinates):
    """Kernels take neighbours by the block: none is lost or counted twice where one ends."""
    features, _, _, _, kernel, weights = problem([(2, neighbors)], (3, 2))
    random = torch.Generator().manual_seed(1)
    queries, supports = (torch.rand(n, 3, generator=random).to(coordinates) * 0.1 for n in (2, neighbors))
    everyone = torch.arange(neighbors, dtype=torch.int32).repeat(2)
    nb = Neighbors(everyone, torch.tensor([0, neighbors, 2 * neighbors]), neighbors)
    for influence, aggregation in RULES:
        assert_oracle(
            device, (features, queries, supports, nb, kernel.to(coordinates), weights), 0.5, influence, aggregation,
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("channels", [5, 16, 17, 48, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_number_of_channels(device, channels, dtype):
    """Channels are summed by the tile: all of them, whatever is left over."""
    features, queries, supports, nb, kernel, weights = problem([(5, 12)], (channels, 2), 3, dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    out = kpconv(*moved(device, features, queries, supports, nb, kernel, weights), 0.3)
    exact = reference.kpconv(features.double(), queries, supports, nb, kernel, weights.double(), 0.3)
    torch.testing.assert_close(out.cpu().double(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(device, dtype):
    """Only the aggregate and the result are rounded: the error is some units in the last place, for any neighbours."""
    args = problem([(40, 200)], (16, 8), dtype=dtype)
    out, grad_features, grad_weights = with_gradients(kpconv, *moved(device, *args), 0.2)
    assert {out.dtype, grad_features.dtype, grad_weights.dtype} == {dtype}
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in args]
    expected = with_gradients(reference.kpconv, *wide, 0.2)
    for result, exact in zip((out, grad_features, grad_weights), expected, strict=True):
        error = (result.cpu().double() - exact).abs().max() / exact.abs().max()
        assert error < 3 * torch.finfo(dtype).eps


def test_float64_coordinates_with_float32_features(device):
    """Projected coordinates of millions of metres lose nothing when they are float64."""
    features, queries, supports, nb, kernel, weights = problem(dtype=torch.float32)
    far = torch.tensor([2**22, -(2**21), 0.0], dtype=torch.float64)
    queries, supports = ((t * 2**20).round() / 2**20 for t in (queries, supports))  # exact after the shift
    near = kpconv(*moved(device, features, queries, supports, nb, kernel, weights), 0.2)
    assert torch.equal(near, kpconv(*moved(device, features, queries + far, supports + far, nb, kernel, weights), 0.2))


@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_gradcheck(device, influence, aggregation):
    features, queries, supports, nb, kernel, weights = moved(device, *problem([(4, 9), (2, 3)], (2, 3), 5))
    inputs = features.requires_grad_(), weights.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, w: kpconv(f, queries, supports, nb, kernel, w, 0.3, influence, aggregation), inputs
    )


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_only_the_gradients_asked_for(device, needs):
    features, queries, supports, nb, kernel, weights = moved(device, *problem())
    both = with_gradients(kpconv, features, queries, supports, nb, kernel, weights, 0.2)
    inputs = features.requires_grad_(needs[0]), weights.requires_grad_(needs[1])
    out = kpconv(inputs[0], queries, supports, nb, kernel, inputs[1], 0.2)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out))
    for tensor, needed, grad in zip(inputs, needs, both[1:], strict=True):
        assert (tensor.grad is not None) == needed
        if needed:
            torch.testing.assert_close(tensor.grad, grad)


def test_opcheck(device):
    features, queries, supports, nb, kernel, weights = moved(device, *problem([(6, 12)], (3, 4), 5))
    inputs = features.requires_grad_(), weights.requires_grad_(), queries, supports, kernel, nb.indices, nb.splits
    seen_by = nb.transposed.indices, nb.transposed.splits
    torch.library.opcheck(torch.ops.kpconv_ops.kpconv, (*inputs, *seen_by, 0.3, "linear", "sum"))


def test_compiles_without_graph_breaks():
    features, queries, supports, nb, kernel, weights = problem()

    def step(features, queries, supports, nb, kernel, weights):
        return kpconv(features, queries, supports, nb, kernel, weights, 0.2).relu() * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    args = features, queries, supports, nb, kernel, weights
    for result, expected in zip(with_gradients(compiled, *args), with_gradients(step, *args), strict=True):
        torch.testing.assert_close(result, expected)


def test_autocast(device):
    features, queries, supports, nb, kernel, weights = moved(device, *problem(dtype=torch.float32))
    inputs = features.requires_grad_(), weights.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        out = kpconv(inputs[0], queries, supports, nb, kernel, inputs[1], 0.2)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert features.grad.dtype == weights.grad.dtype == torch.float32
    torch.testing.assert_close(
        out.float(), kpconv(features, queries, supports, nb, kernel, weights, 0.2), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("sizes", [[], [(0, 0)], [(5, 0)], [(0, 5)], [(1, 1)]])
def test_empty_and_single(device, sizes):
    """A query without neighbours gets zeros, and no set of points is too small."""
    args = problem(sizes or [(0, 0)])
    assert_oracle(device, args, 0.2)
    if sizes == [(5, 0)]:
        assert torch.equal(kpconv(*moved(device, *args), 0.2).cpu(), torch.zeros(5, 7, dtype=torch.float64))


def test_non_contiguous_arguments(device):
    features, queries, supports, nb, kernel, weights = moved(device, *problem())
    expected = with_gradients(kpconv, features, queries, supports, nb, kernel, weights, 0.2)

    def strided(tensor):
        return tensor.T.contiguous().T if tensor.dim() == 2 else tensor.transpose(1, 2).contiguous().transpose(1, 2)

    for result, value in zip(
        with_gradients(
            lambda f, q, s, n, k, w, e: kpconv(strided(f), strided(q), strided(s), n, strided(k), strided(w), e),
            *(features, queries, supports, nb, kernel, weights, 0.2),
        ),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(result, value)


def test_expanded_gradient(device):
    features, queries, supports, nb, kernel, weights = moved(device, *problem())
    out = kpconv(features.requires_grad_(), queries, supports, nb, kernel, weights, 0.2)
    (summed,) = torch.autograd.grad(out.sum(), features, retain_graph=True)
    (dense,) = torch.autograd.grad(out, features, torch.ones_like(out))
    assert torch.equal(summed, dense)


@pytest.mark.parametrize("influence", ["linear", "gaussian"])
def test_closest_takes_the_first_kernel_point_in_a_tie(device, influence):
    """Equally near kernel points: the first one acts alone, in the values and in the gradient of the features."""
    queries = torch.zeros(1, 3, dtype=torch.float64)
    supports = torch.tensor([[0.0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    kernel = torch.tensor([[9.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    nb = Neighbors(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2]), 2)
    weights = torch.tensor([1.0, 2, 3, 5], dtype=torch.float64).view(4, 1, 1)
    args = torch.ones(2, 1, dtype=torch.float64), queries, supports, nb, kernel, weights
    out, grad_features, _ = with_gradients(kpconv, *moved(device, *args), 4.0, influence, "closest")
    one = reference.kpconv(*args[:4], kernel[1:2], weights[1:2], 4.0, influence)
    torch.testing.assert_close(out.cpu(), one)
    torch.testing.assert_close(grad_features[:, 0].cpu(), -torch.ones(2, dtype=torch.float64) * one[0, 0] / 2)


def test_duplicate_points_act_twice(device):
    features, queries, supports, _, kernel, weights = problem([(10, 30)])
    twice, offsets = supports.repeat(2, 1), torch.tensor([0, 60])
    queries_of = torch.tensor([0, len(queries)])
    nb = radius_search(queries, queries_of, twice, offsets, RADIUS)
    once = radius_search(queries, queries_of, supports, torch.tensor([0, 30]), RADIUS)
    doubled = kpconv(*moved(device, features.repeat(2, 1), queries, twice, nb, kernel, weights), 0.2)
    torch.testing.assert_close(
        doubled, 2 * kpconv(*moved(device, features, queries, supports, once, kernel, weights), 0.2)
    )


def test_nan_reaches_only_those_who_see_it(device):
    features, queries, supports, nb, kernel, weights = problem()
    features[3] = torch.nan
    out = kpconv(*moved(device, features, queries, supports, nb, kernel, weights), 0.2, "constant").cpu()
    seen = torch.zeros(len(queries), dtype=torch.bool)
    seen[nb.transposed.indices[nb.transposed.splits[3] : nb.transposed.splits[4]].long()] = True
    assert seen.any() and torch.equal(out.isnan().all(1), seen) and torch.equal(out.isnan().any(1), seen)


def test_a_batch_equals_its_samples_one_by_one(device):
    sizes = [(30, 60), (0, 5), (12, 20)]
    features, queries, supports, nb, kernel, weights = moved(device, *problem(sizes))
    whole = kpconv(features, queries, supports, nb, kernel, weights, 0.2)
    query, support = 0, 0
    for num_queries, num_supports in sizes:
        q, s = queries[query : query + num_queries], supports[support : support + num_supports]
        alone = radius_search(q, torch.tensor([0, len(q)]).to(device), s, torch.tensor([0, len(s)]).to(device), RADIUS)
        part = kpconv(features[support : support + num_supports], q, s, alone, kernel, weights, 0.2)
        torch.testing.assert_close(part, whole[query : query + num_queries])
        query, support = query + num_queries, support + num_supports


def test_the_same_bits_on_every_run(device):
    """With the same number of threads; that of the aggregates does not matter."""
    # The emulator is slow and has one thread. Elsewhere several chunks.
    emulated = _native.on_cuda(torch.empty(0)) and device.type == "cpu"
    sizes, channels = ([(8, 15)], (8, 8)) if emulated else ([(2500, 3000)], (64, 64))
    args = moved(device, *problem(sizes, channels, dtype=torch.float32))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append((with_gradients(kpconv, *args, 0.2), aggregates(*args[:5])))
    finally:
        torch.set_num_threads(threads)
    (_, once), (whole, twice), (again, _) = results
    assert all(map(torch.equal, whole, again)) and torch.equal(once, twice)


def aggregates(features, queries, supports, nb, kernel):
    chunks = sys.modules["kpconv_ops.kpconv"]._aggregates(
        features, None, queries, supports, kernel.to(queries.dtype), 0, nb.indices, nb.splits, 0.2, "linear", "sum"
    )
    return torch.cat([aggregate.clone() for _, aggregate in chunks])


def test_a_second_derivative_is_an_error(device):
    """It would count as zero, also where a loss is linear in the result."""
    features, *geometry, weights = moved(device, *problem([(8, 15)]))
    features.requires_grad_(), weights.requires_grad_()
    (first,) = torch.autograd.grad(kpconv(features, *geometry, weights, 0.2).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^kpconv can be differentiated only once$"):
        torch.autograd.grad(first.square().sum() + features.sum() + weights.sum(), weights)


def test_peak_memory_is_one_chunk(device, monkeypatch):
    """The aggregate is never larger than a chunk, and the chunks join seamlessly."""
    module = sys.modules["kpconv_ops.kpconv"]
    args = moved(device, *problem([(50, 60)]))
    expected = with_gradients(kpconv, *args, 0.2)
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(module, "_MIN_CHUNK_ROWS", 7)
    features, queries, supports, nb, kernel, _ = args
    chunks = module._aggregates(
        features, None, queries, supports, kernel, 0, nb.indices, nb.splits, 0.2, "linear", "sum"
    )
    assert [len(aggregate) for _, aggregate in chunks] == [7] * 7 + [1]
    for result, whole in zip(with_gradients(kpconv, *args, 0.2), expected, strict=True):
        torch.testing.assert_close(result, whole)


@settings(max_examples=25, deadline=None)
@given(shift=st.tuples(*[st.integers(-1000, 1000)] * 3), seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_translation_invariance(shift, seed, rule):
    """Moving all points together changes nothing."""
    features, queries, supports, nb, kernel, weights = problem([(5, 12)], (2, 3), 6, seed=seed)
    queries, supports = ((t * 2**20).round() / 2**20 for t in (queries, supports))  # exact after the shift
    shift = torch.tensor(shift, dtype=torch.float64)
    here = kpconv(features, queries, supports, nb, kernel, weights, 0.3, *rule)
    assert torch.equal(here, kpconv(features, queries + shift, supports + shift, nb, kernel, weights, 0.3, *rule))


@settings(max_examples=25, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_linearity_in_the_features(a, b, seed, rule):
    """The convolution of a combination is the combination of the convolutions."""
    f, *geometry, weights = problem([(5, 12)], (2, 3), 6, seed=seed)
    g = f.flip(0)

    def convolve(features):
        return kpconv(features, *geometry, weights, 0.3, *rule)

    torch.testing.assert_close(convolve(a * f + b * g), a * convolve(f) + b * convolve(g))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_permutation_equivariance(seed, rule):
    """Reordering the supports changes nothing, reordering the queries reorders the result."""
    features, queries, supports, nb, kernel, weights = problem([(7, 12)], (2, 3), 6, seed=seed)
    random = torch.Generator().manual_seed(seed)
    q, s = torch.randperm(7, generator=random), torch.randperm(12, generator=random)
    reordered = radius_search(queries[q], torch.tensor([0, 7]), supports[s], torch.tensor([0, 12]), RADIUS)
    out = kpconv(features, queries, supports, nb, kernel, weights, 0.3, *rule)
    torch.testing.assert_close(
        kpconv(features[s], queries[q], supports[s], reordered, kernel, weights, 0.3, *rule), out[q]
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": torch.zeros(84, 5)}, ValueError, r"features must have shape \(85, \*\), got \(84, 5\)"),
        ({"features": torch.zeros(85, 5, dtype=torch.int64)}, TypeError, "features must be float32 or .*, got int64"),
        ({"features": [1.0]}, TypeError, "features must be a tensor, got list"),
        ({"queries": torch.zeros(42, 2)}, ValueError, r"queries must have shape \(\*, 3\), got \(42, 2\)"),
        ({"queries": torch.zeros(42, 3)}, TypeError, "supports must be float32, got float64"),
        ({"queries": torch.zeros(41, 3).double()}, ValueError, r"nb.splits must have shape \(42\), got \(43,\)"),
        ({"supports": torch.zeros(85, 3).bfloat16()}, TypeError, "supports must be float64, got bfloat16"),
        ({"nb": 5}, TypeError, "nb must be Neighbors, got int"),
        (
            {"nb": Neighbors(torch.zeros(0, device="meta").int(), torch.zeros(43, device="meta").long(), 85)},
            ValueError,
            "nb must be on cpu, got meta",
        ),
        ({"kernel_points": torch.zeros(15, 2)}, ValueError, r"kernel_points must have shape \(\*, 3\), got \(15, 2\)"),
        ({"kernel_points": torch.zeros(0, 3)}, ValueError, "kernel_points must have 1 to 64 rows, got 0"),
        ({"kernel_points": torch.zeros(65, 3)}, ValueError, "kernel_points must have 1 to 64 rows, got 65"),
        (
            {"weights": torch.zeros(15, 4, 7).double()},
            ValueError,
            r"weights must have shape \(15, 5, \*\), got \(15, 4, 7\)",
        ),
        ({"weights": torch.zeros(15, 5, 7)}, TypeError, "weights must be float64, got float32"),
        ({"extent": 0.0}, ValueError, "extent must be positive and finite, got 0.0"),
        ({"extent": float("nan")}, ValueError, "extent must be positive and finite, got nan"),
        ({"influence": "cubic"}, ValueError, "influence must be one of linear, constant, gaussian, got 'cubic'"),
        ({"aggregation": "mean"}, ValueError, "aggregation must be one of sum, closest, got 'mean'"),
        ({"influence": ["linear"]}, ValueError, r"influence must be one of linear, .*, got \['linear'\]"),
        ({"aggregation": None}, ValueError, "aggregation must be one of sum, closest, got None"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    names = ("features", "queries", "supports", "nb", "kernel_points", "weights")
    args = dict(zip(names, problem(), strict=True)) | {"extent": 0.2} | changes
    with pytest.raises(error, match=message):
        kpconv(**args)


def test_neighbours_of_other_points_are_refused():
    features, queries, supports, nb, kernel, weights = problem()
    with pytest.raises(ValueError, match="nb must be neighbours among 85 supports, got neighbours among 9"):
        kpconv(features, queries, supports, Neighbors(nb.indices, nb.splits, 9), kernel, weights, 0.2)
    outside, falling = r"^nb.indices must be in \[0, 85\)$", r"^nb.splits must rise within \[0, \d+\]$"
    for indices, splits, message in (
        (nb.indices + 85, nb.splits, outside),
        (nb.indices - 85, nb.splits, outside),
        (nb.indices, nb.splits + 1, falling),
    ):
        with pytest.raises(ValueError, match=message):
            kpconv(features, queries, supports, Neighbors(indices, splits, 85), kernel, weights, 0.2)
