import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kpconv_ops import (
    Neighbors,
    _native,
    deformable_kpconv,
    fitting_loss,
    kpconv,
    radius_search,
    reference,
    repulsive_loss,
)

RULES = [(i, a) for i in ("linear", "constant", "gaussian") for a in ("sum", "closest")]
LEARNED = ("features", "weights", "offsets", "modulations")
RADIUS, EXTENT = 0.5, 0.25


def problem(sizes=((30, 60), (0, 5), (12, 20)), channels=(5, 7), num_points=15, seed=0, modulated=True) -> dict:
    """`deformable_kpconv`'s arguments; sizes: (queries, supports) of each sample."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    counts = torch.tensor([(0, 0), *sizes]).cumsum(0)
    queries, supports = (torch.rand(int(n), 3, generator=random, dtype=torch.float64) for n in counts[-1])
    return {
        "features": draw(len(supports), channels[0]),
        "queries": queries,
        "supports": supports,
        "nb": radius_search(queries, counts[:, 0].contiguous(), supports, counts[:, 1].contiguous(), RADIUS),
        "kernel_points": draw(num_points, 3) * RADIUS / 4,
        "weights": draw(num_points, *channels) / (num_points * channels[0]) ** 0.5,
        "offsets": draw(len(queries), num_points, 3) * EXTENT / 4,
        "modulations": 2 * torch.sigmoid(draw(len(queries), num_points)) if modulated else None,
    }


def converted(args: dict, device="cpu", features=None, coordinates=None) -> dict:
    """The arguments on a device, features and weights of one dtype, everything geometric of another."""

    def convert(name, value):
        if isinstance(value, Neighbors):
            return Neighbors(value.indices.to(device), value.splits.to(device), value.num_supports)
        dtype = features if name in ("features", "weights") else coordinates
        return value.to(device=device, dtype=dtype or value.dtype) if isinstance(value, Tensor) else value

    return {name: convert(name, value) for name, value in args.items()}


def with_gradients(function, args: dict, learned=LEARNED) -> dict[str, Tensor]:
    """The output and the gradients of a fixed weighting of it."""
    learned = [name for name in learned if isinstance(args.get(name), Tensor)]
    args = {**args, **{name: args[name].detach().clone().requires_grad_() for name in learned}}
    out = function(**args)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    inputs = [args[name] for name in learned]
    grads = torch.autograd.grad(out, inputs, weighting, allow_unused=True, materialize_grads=True)
    return {"out": out.detach(), **dict(zip(learned, grads, strict=True))}


def assert_oracle(device, args: dict, **tolerance):
    expected = with_gradients(reference.deformable_kpconv, args)
    for name, result in with_gradients(deformable_kpconv, converted(args, device)).items():
        assert result.dtype == expected[name].dtype
        torch.testing.assert_close(result.cpu(), expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_values_and_gradients_equal_the_oracle(device, influence, aggregation, modulated):
    rule = {"extent": EXTENT, "influence": influence, "aggregation": aggregation}
    assert_oracle(device, problem(modulated=modulated) | rule)


@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_float32(device, influence, aggregation):
    args = converted(problem(), features=torch.float32, coordinates=torch.float32)
    args |= {"extent": EXTENT, "influence": influence, "aggregation": aggregation}
    assert_oracle(device, args, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_points", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("channels", [(1, 3), (70, 2)])
def test_any_number_of_kernel_points_and_channels(device, num_points, channels):
    for aggregation in ("sum", "closest"):
        assert_oracle(device, problem([(6, 20)], channels, num_points) | {"extent": EXTENT, "aggregation": aggregation})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(device, dtype):
    """Results and all gradients are off by some units in the last place, for any number of neighbours."""
    args = converted(problem([(40, 200)], (16, 8)), features=dtype, coordinates=torch.float32) | {"extent": EXTENT}
    expected = with_gradients(
        reference.deformable_kpconv, converted(args, features=torch.float64, coordinates=torch.float64)
    )
    results = with_gradients(deformable_kpconv, converted(args, device))
    wide = {"offsets", "modulations"}
    assert {name: r.dtype for name, r in results.items()} == {
        name: torch.float32 if name in wide else dtype for name in results
    }
    for name, result in results.items():
        error = (result.cpu().double() - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 3 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_gradcheck(device, influence, aggregation):
    args = converted(problem([(4, 9), (2, 3)], (2, 3), 5), device)
    rule = {"extent": EXTENT, "influence": influence, "aggregation": aggregation}
    inputs = tuple(args[name].requires_grad_() for name in LEARNED)
    assert torch.autograd.gradcheck(
        lambda *values: deformable_kpconv(**args | dict(zip(LEARNED, values, strict=True)), **rule), inputs
    )


@pytest.mark.parametrize("needed", [(name,) for name in LEARNED] + [("features", "offsets"), ("weights", "offsets")])
def test_only_the_gradients_asked_for(device, needed):
    args = converted(problem(), device) | {"extent": EXTENT}
    expected = with_gradients(deformable_kpconv, args)
    results = with_gradients(deformable_kpconv, args, needed)
    assert set(results) == {"out", *needed}
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name])


@pytest.mark.parametrize(("influence", "aggregation"), RULES)
def test_without_deformation_it_is_the_rigid_convolution(device, influence, aggregation):
    """Zero offsets and no modulation, or modulations of 1, give kpconv's values and gradients bit for bit."""
    args = converted(problem(modulated=False), device)
    rule = {"extent": EXTENT, "influence": influence, "aggregation": aggregation}
    args["offsets"] = torch.zeros_like(args["offsets"])
    rigid = {name: value for name, value in args.items() if name not in ("offsets", "modulations")}
    expected = with_gradients(kpconv, rigid | rule)
    for modulations in (None, args["offsets"].new_ones(args["offsets"].shape[:2])):
        results = with_gradients(deformable_kpconv, args | rule | {"modulations": modulations})
        assert all(torch.equal(results[name], value) for name, value in expected.items())


def test_equal_offsets_are_a_rigid_convolution_of_moved_kernel_points(device):
    args = converted(problem(modulated=False), device)
    step = args["offsets"][0].clone()
    args["offsets"] = step.expand_as(args["offsets"])
    rigid = {name: value for name, value in args.items() if name not in ("offsets", "modulations")}
    rigid["kernel_points"] = rigid["kernel_points"] + step
    torch.testing.assert_close(deformable_kpconv(**args, extent=EXTENT), kpconv(**rigid, extent=EXTENT))


@pytest.mark.parametrize("modulated", [True, False])
def test_opcheck(device, modulated):
    args = converted(problem([(6, 12)], (3, 4), 5, modulated=modulated), device)
    points = args["kernel_points"] + args["offsets"]
    learned = [args["features"], args["weights"], args["modulations"], points]
    features, weights, modulations, points = (t if t is None else t.requires_grad_() for t in learned)
    nb = args["nb"]
    geometry = args["queries"], args["supports"], points, nb.indices, nb.splits
    seen_by = nb.transposed.indices, nb.transposed.splits
    op = torch.ops.kpconv_ops.deformable_kpconv
    torch.library.opcheck(op, (features, weights, modulations, *geometry, *seen_by, EXTENT, "linear", "sum"))
    torch.library.opcheck(
        torch.ops.kpconv_ops.kernel_point_neighbors,
        (args["queries"], args["supports"], points.detach(), nb.indices, nb.splits),
    )
    torch.library.opcheck(torch.ops.kpconv_ops.repulsion, (points, EXTENT, 1.2))


def test_compiles_without_graph_breaks():
    args = problem()

    def step(features, queries, supports, nb, kernel_points, weights, offsets, modulations):
        out = deformable_kpconv(
            features, queries, supports, nb, kernel_points, weights, offsets, modulations, extent=EXTENT
        )
        fit = fitting_loss(queries, supports, nb, kernel_points, offsets, EXTENT)
        return out.relu() * 2 + fit + repulsive_loss(kernel_points, offsets, EXTENT)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = with_gradients(step, args)
    for name, result in with_gradients(compiled, args).items():
        torch.testing.assert_close(result, expected[name])


def test_autocast(device):
    """Features and weights are rounded, the geometry is not; gradients have the dtype of what they belong to."""
    args = converted(problem(), device, torch.float32, torch.float32)
    learned = {name: args[name].requires_grad_() for name in LEARNED}
    with torch.autocast(device.type, torch.bfloat16):
        out = deformable_kpconv(**args, extent=EXTENT)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert {tensor.grad.dtype for tensor in learned.values()} == {torch.float32}
    torch.testing.assert_close(out.float(), deformable_kpconv(**args, extent=EXTENT), rtol=0.05, atol=0.05)


def test_offsets_of_another_dtype_are_converted(device):
    """As a network predicts them: float32 or bfloat16 beside float64 coordinates."""
    args = converted(problem(), device, features=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        narrow = {name: args[name].to(dtype) for name in ("offsets", "modulations")}
        results = with_gradients(deformable_kpconv, args | narrow | {"extent": EXTENT})
        assert results["offsets"].dtype == results["modulations"].dtype == dtype
        wide = {name: value.double() for name, value in narrow.items()}
        assert torch.equal(results["out"], deformable_kpconv(**args | wide, extent=EXTENT))


@pytest.mark.parametrize("sizes", [[], [(0, 0)], [(5, 0)], [(0, 5)], [(1, 1)]])
def test_empty_and_single(device, sizes):
    """A query without neighbours gets zeros, and no set of points is too small."""
    args = problem(sizes or [(0, 0)])
    assert_oracle(device, args | {"extent": EXTENT})
    if sizes == [(5, 0)]:
        results = with_gradients(deformable_kpconv, converted(args, device) | {"extent": EXTENT})
        assert not any(result.any() for result in results.values())


def strided(tensor):
    """The same values, not contiguous."""
    if not isinstance(tensor, Tensor):
        return tensor
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def test_non_contiguous_arguments(device):
    args = converted(problem(), device) | {"extent": EXTENT}
    expected = with_gradients(deformable_kpconv, args)
    results = with_gradients(lambda **a: deformable_kpconv(**{k: strided(v) for k, v in a.items()}), args)
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name])
    geometry = {name: args[name] for name in ("queries", "supports", "nb", "kernel_points", "offsets", "extent")}
    odd = {name: strided(value) for name, value in geometry.items()}
    assert torch.equal(fitting_loss(**odd), fitting_loss(**geometry))


def test_expanded_gradient(device):
    args = converted(problem(), device)
    args["offsets"].requires_grad_()
    out = deformable_kpconv(**args, extent=EXTENT)
    (summed,) = torch.autograd.grad(out.sum(), args["offsets"], retain_graph=True)
    (dense,) = torch.autograd.grad(out, args["offsets"], torch.ones_like(out))
    assert torch.equal(summed, dense)


def test_nan_reaches_only_those_who_see_it(device):
    """A feature that is NaN spoils the queries that see it, an offset that is NaN its own query: none is lost."""
    args = problem()
    nb, transposed = args["nb"], args["nb"].transposed
    args["features"][3] = torch.nan
    seen = torch.zeros(len(args["queries"]), dtype=torch.bool)
    seen[transposed.indices[transposed.splits[3] : transposed.splits[4]].long()] = True
    assert seen.any() and not seen.all()
    out = deformable_kpconv(**converted(args, device), extent=EXTENT, influence="constant").cpu()
    assert torch.equal(out.isnan().all(1), seen) and torch.equal(out.isnan().any(1), seen)
    args = problem()
    args["offsets"][2, 4] = torch.nan
    assert nb.splits[3] > nb.splits[2]
    for influence in ("linear", "gaussian"):
        out = deformable_kpconv(**converted(args, device), extent=EXTENT, influence=influence).cpu()
        assert out[2].isnan().all() and out.isnan().any(1).sum() == 1
    geometry = {name: args[name] for name in ("queries", "supports", "nb", "kernel_points", "offsets")}
    assert fitting_loss(**converted(geometry, device), extent=EXTENT).isnan()
    assert repulsive_loss(args["kernel_points"], args["offsets"], EXTENT).isnan()


def test_a_neighbour_on_a_kernel_point_pulls_it_nowhere(device):
    """The distance has no slope at 0: the gradient is 0, not NaN, in the convolution and in both regularisers."""
    args = converted(problem([(3, 9)], (2, 3), 4), device)
    nb = args["nb"]
    first = nb.indices[nb.splits[:-1]].long()
    args["offsets"][:, 1] = args["supports"][first] - args["queries"] - args["kernel_points"][1]
    args["offsets"][:, 2] = args["offsets"][:, 1] + args["kernel_points"][1] - args["kernel_points"][2]
    assert_oracle(device, args | {"extent": EXTENT})
    offsets = args["offsets"].requires_grad_()
    geometry = args["queries"], args["supports"], nb, args["kernel_points"], offsets
    loss = fitting_loss(*geometry, EXTENT) + repulsive_loss(args["kernel_points"], offsets, EXTENT)
    assert torch.autograd.grad(loss, offsets)[0].isfinite().all()


def test_a_batch_equals_its_samples_one_by_one(device):
    sizes = [(30, 60), (0, 5), (12, 20)]
    args = converted(problem(sizes), device)
    whole = deformable_kpconv(**args, extent=EXTENT)
    query, support = 0, 0
    for num_queries, num_supports in sizes:
        q, s = slice(query, query + num_queries), slice(support, support + num_supports)
        part = {name: args[name][q] for name in ("queries", "offsets", "modulations")}
        part |= {name: args[name][s] for name in ("features", "supports")}
        ends = (torch.tensor([0, n]).to(device) for n in (num_queries, num_supports))
        part["nb"] = radius_search(part["queries"], next(ends), part["supports"], next(ends), RADIUS)
        alone = deformable_kpconv(**args | part, extent=EXTENT)
        torch.testing.assert_close(alone, whole[q])
        query, support = q.stop, s.stop


def test_the_same_bits_on_every_run_with_the_same_number_of_threads(device):
    sizes = [(8, 15)] if _native.on_cuda(torch.empty(0)) else [(300, 400)]  # the emulator is slow and has one thread
    args = converted(problem(sizes, (8, 8)), device, torch.float32, torch.float32) | {"extent": EXTENT}
    threads, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            results.append(with_gradients(deformable_kpconv, args))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[name], value) for other in results[1:] for name, value in results[0].items())


@pytest.mark.parametrize("name", LEARNED)
def test_a_second_derivative_is_an_error(device, name):
    """It would count as zero, also where a loss is linear in the result."""
    args = converted(problem([(8, 15)]), device)
    args[name].requires_grad_()
    (first,) = torch.autograd.grad(
        deformable_kpconv(**args, extent=EXTENT).square().sum(), args[name], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"^deformable_kpconv can be differentiated only once$"):
        torch.autograd.grad(first.sum() + args[name].sum(), args[name])


def test_a_second_derivative_of_the_repulsive_loss_is_an_error(device):
    args = converted(problem([(8, 15)]), device)
    offsets = args["offsets"].requires_grad_()
    loss = repulsive_loss(args["kernel_points"], offsets, EXTENT)
    (first,) = torch.autograd.grad(loss, offsets, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^repulsion can be differentiated only once$"):
        torch.autograd.grad(first.sum() + offsets.sum(), offsets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_repulsive_loss_of_half_precision_is_formed_in_float32(device, dtype):
    args = converted(problem([(8, 15)]), device, coordinates=dtype)
    loss = repulsive_loss(args["kernel_points"], args["offsets"], EXTENT)
    wide = repulsive_loss(args["kernel_points"].double(), args["offsets"].double(), EXTENT)
    assert loss.dtype == torch.float32 and wide.dtype == torch.float64
    torch.testing.assert_close(loss.double(), wide, rtol=1e-5, atol=0)


def test_peak_memory_is_one_chunk(device, monkeypatch):
    """Forward and backward never hold more than a chunk of aggregates, and the chunks join seamlessly."""
    args = converted(problem([(50, 60)]), device) | {"extent": EXTENT}
    expected = with_gradients(deformable_kpconv, args)
    shape = {name: args[name] for name in ("kernel_points", "offsets", "extent")}
    repelled = with_gradients(repulsive_loss, shape)
    module = sys.modules["kpconv_ops.kpconv"]
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(module, "_MIN_CHUNK_ROWS", 7)
    calls, call = [], _native.call
    monkeypatch.setattr(_native, "call", lambda name, *rest: (calls.append((name, rest)), call(name, *rest)))
    results = with_gradients(deformable_kpconv, args)
    rows = {name: [rest[4] for called, rest in calls if called == name] for name, _ in calls}
    assert rows["kp_aggregate"] == [7] * 7 + [1] + [7] * 8 + [4], "forward, then the supports' gradient"
    assert rows["kp_deform_backward"] == [7] * 7 + [1]
    torch.testing.assert_close(results, expected)
    torch.testing.assert_close(with_gradients(repulsive_loss, shape), repelled)


# ---- regularisers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", [[(30, 60), (0, 5), (12, 20)], [(0, 0)], [(5, 0)], [(0, 5)], [(1, 1)]])
def test_losses_equal_the_oracle(device, sizes, dtype):
    """Values and gradients of both; queries without neighbours add nothing, no query at all gives 0."""
    args = converted(problem(sizes), coordinates=dtype)
    geometry = {name: args[name] for name in ("queries", "supports", "nb", "kernel_points", "offsets")}
    shape = {name: args[name] for name in ("kernel_points", "offsets")}
    for function, oracle, inputs in (
        (fitting_loss, reference.fitting_loss, geometry),
        (repulsive_loss, reference.repulsive_loss, shape),
    ):
        inputs = inputs | {"extent": EXTENT}
        expected = with_gradients(oracle, inputs)
        for name, result in with_gradients(function, converted(inputs, device)).items():
            assert result.dtype == dtype and result.isfinite().all()
            torch.testing.assert_close(result.cpu(), expected[name])


def test_losses_gradcheck(device):
    """The repulsive loss moves one kernel point against the others held still: half the slope of its value."""
    args = converted(problem([(4, 9), (2, 3)], num_points=5), device)
    geometry = args["queries"], args["supports"], args["nb"], args["kernel_points"]
    offsets = args["offsets"].requires_grad_()
    assert torch.autograd.gradcheck(lambda o: fitting_loss(*geometry, o, EXTENT), offsets)
    loss = repulsive_loss(args["kernel_points"], offsets, EXTENT)
    (grad,) = torch.autograd.grad(loss, offsets)
    direction = torch.randn(offsets.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    step = 1e-6 * direction
    ahead, behind = (repulsive_loss(args["kernel_points"], offsets + s, EXTENT) for s in (step, -step))
    torch.testing.assert_close((grad * direction).sum(), (ahead - behind).detach() / 2e-6 / 2, rtol=1e-6, atol=1e-9)


def test_losses_of_known_positions():
    """One query at the origin, two kernel points: distances and their weights by hand."""
    queries = torch.zeros(1, 3, dtype=torch.float64)
    supports = torch.tensor([[0.0, 0, 0], [3, 0, 0]], dtype=torch.float64)
    nb = Neighbors(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2]), 2)
    kernel = torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    offsets = torch.tensor([[[0.0, 0.5, 0], [1, 0, 0]]], dtype=torch.float64)
    # Points (0, .5, 0) and (2, 0, 0): squared distances .25 and 1 to their nearest neighbours.
    assert fitting_loss(queries, supports, nb, kernel, offsets, 2.0).item() == pytest.approx((0.25 + 1) / 2 / 4)
    apart = 4.25**0.5 / 2
    assert repulsive_loss(kernel, offsets, 2.0).item() == pytest.approx((1.2 - apart) ** 2)
    assert repulsive_loss(kernel, offsets, 2.0, repulse_extent=1.0).item() == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_permutation_equivariance(seed, rule):
    """Reordering the supports changes nothing, reordering the queries reorders the result."""
    args = problem([(7, 12)], (2, 3), 6, seed=seed)
    random = torch.Generator().manual_seed(seed)
    q, s = torch.randperm(7, generator=random), torch.randperm(12, generator=random)
    moved = {name: args[name][q] for name in ("queries", "offsets", "modulations")}
    moved |= {name: args[name][s] for name in ("features", "supports")}
    moved["nb"] = radius_search(
        moved["queries"], torch.tensor([0, 7]), moved["supports"], torch.tensor([0, 12]), RADIUS
    )
    rule = dict(zip(("influence", "aggregation"), rule, strict=True), extent=EXTENT)
    torch.testing.assert_close(deformable_kpconv(**args | moved, **rule), deformable_kpconv(**args, **rule)[q])


@settings(max_examples=25, deadline=None)
@given(shift=st.tuples(*[st.integers(-1000, 1000)] * 3), seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_translation_invariance(shift, seed, rule):
    """Moving all points together changes nothing, in the convolution and in the fitting loss."""
    args = problem([(5, 12)], (2, 3), 6, seed=seed)
    args |= {name: (args[name] * 2**20).round() / 2**20 for name in ("queries", "supports")}  # exact after the shift
    there = args | {name: args[name] + torch.tensor(shift, dtype=torch.float64) for name in ("queries", "supports")}
    rule = dict(zip(("influence", "aggregation"), rule, strict=True), extent=EXTENT)
    assert torch.equal(deformable_kpconv(**args, **rule), deformable_kpconv(**there, **rule))
    names = "queries", "supports", "nb", "kernel_points", "offsets"
    here, there = (fitting_loss(*(a[name] for name in names), EXTENT) for a in (args, there))
    assert torch.equal(here, there)


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(-3, 3), seed=st.integers(0, 2**16), rule=st.sampled_from(RULES))
def test_linearity_in_the_modulations(factor, seed, rule):
    """The convolution of a combination of modulations is the combination of the convolutions."""
    args = problem([(5, 12)], (2, 3), 6, seed=seed)
    rule = dict(zip(("influence", "aggregation"), rule, strict=True), extent=EXTENT)

    def convolve(modulations):
        return deformable_kpconv(**args | {"modulations": modulations}, **rule)

    one, other = args["modulations"], args["modulations"].flip(0)
    torch.testing.assert_close(convolve(one + factor * other), convolve(one) + factor * convolve(other))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"offsets": torch.zeros(42, 14, 3)}, ValueError, r"offsets must have shape \(42, 15, 3\), got \(42, 14, 3\)"),
        ({"offsets": torch.zeros(41, 15, 3)}, ValueError, r"offsets must have shape \(42, 15, 3\), got \(41, 15, 3\)"),
        ({"offsets": torch.zeros(42, 15, 3).long()}, TypeError, "offsets must be float32 or .*, got int64"),
        ({"offsets": None}, TypeError, "offsets must be a tensor, got NoneType"),
        ({"modulations": torch.zeros(42, 3)}, ValueError, r"modulations must have shape \(42, 15\), got \(42, 3\)"),
        ({"modulations": 1.0}, TypeError, "modulations must be a tensor, got float"),
        (
            {"features": torch.zeros(84, 5)},
            ValueError,
            r"features must have shape \(85, \*\), got \(84, 5\)",
        ),
        ({"queries": torch.zeros(42, 3)}, TypeError, "supports must be float32, got float64"),
        ({"nb": 5}, TypeError, "nb must be Neighbors, got int"),
        ({"kernel_points": torch.zeros(65, 3)}, ValueError, "kernel_points must have 1 to 64 rows, got 65"),
        ({"weights": torch.zeros(15, 4, 7).double()}, ValueError, r"weights must have shape \(15, 5, \*\)"),
        ({"extent": -1.0}, ValueError, "extent must be positive and finite, got -1.0"),
        ({"influence": "cubic"}, ValueError, "influence must be one of linear, constant, gaussian, got 'cubic'"),
        ({"aggregation": "mean"}, ValueError, "aggregation must be one of sum, closest, got 'mean'"),
        ({"influence": ["linear"]}, ValueError, r"influence must be one of linear, .*, got \['linear'\]"),
        ({"aggregation": None}, ValueError, "aggregation must be one of sum, closest, got None"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        deformable_kpconv(**problem() | {"extent": EXTENT} | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"offsets": torch.zeros(42, 14, 3)}, ValueError, r"offsets must have shape \(.+, 15, 3\), got \(42, 14, 3\)"),
        ({"extent": 0}, ValueError, "extent must be positive and finite, got 0"),
        ({"kernel_points": [0, 0, 0]}, TypeError, "kernel_points must be a tensor, got list"),
        ({"kernel_points": torch.zeros(65, 3)}, ValueError, "kernel_points must have 1 to 64 rows, got 65"),
        ({"extent": 1e300}, ValueError, r"extent must have a square between .*, got 1e\+300"),
        ({"extent": 1e-200}, ValueError, "extent must have a square between .*, got 1e-200"),
        ({"repulse_extent": 1e200}, ValueError, r"repulse_extent must have a square between .*, got 1e\+200"),
        ({"repulse_extent": float("nan")}, ValueError, "repulse_extent must be positive and finite, got nan"),
        (
            {"nb": Neighbors(torch.zeros(0).int(), torch.zeros(43).long(), 9)},
            ValueError,
            "nb must be neighbours among 85",
        ),
    ],
)
def test_bad_arguments_of_the_losses_are_named(changes, error, message):
    args = problem() | {"extent": EXTENT} | changes
    fits = {name: args[name] for name in ("queries", "supports", "nb", "kernel_points", "offsets", "extent")}
    repels = {name: args[name] for name in ("kernel_points", "offsets", "extent", "repulse_extent") if name in args}
    for function, arguments in ((fitting_loss, fits), (repulsive_loss, repels)):
        if set(changes) <= set(arguments):
            with pytest.raises(error, match=message):
                function(**arguments)


def test_neighbours_of_other_points_are_refused():
    args = problem()
    nb = args["nb"]
    outside, falling = r"^nb.indices must be in \[0, 85\)$", r"^nb.splits must rise within \[0, \d+\]$"
    for indices, splits, message in (
        (nb.indices + 85, nb.splits, outside),
        (nb.indices - 85, nb.splits, outside),
        (nb.indices, nb.splits + 1, falling),
    ):
        args["nb"] = Neighbors(indices, splits, 85)
        with pytest.raises(ValueError, match=message):
            deformable_kpconv(**args, extent=EXTENT)
        with pytest.raises(ValueError, match=message):
            fitting_loss(*(args[n] for n in ("queries", "supports", "nb", "kernel_points", "offsets")), EXTENT)
