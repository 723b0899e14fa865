import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import Upsampling, nearest, pyramid, reference, upsample

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def problem(num_points, num_coarse, channels=5, dtype=torch.float32, seed=0):
    """Features of the coarser points, rows, and a gradient of the result."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num_coarse, channels, generator=random, dtype=torch.float64).to(dtype)
    rows = torch.randint(0, max(num_coarse, 1), (num_points,), generator=random)
    return features, rows, torch.randn(num_points, channels, generator=random, dtype=torch.float64).to(dtype)


def gradient_of(features, rows, grad):
    features = features.clone().requires_grad_()
    return torch.autograd.grad(upsample(features, rows), features, grad)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_points", "num_coarse"), [(200, 40), (3, 50), (0, 4), (0, 0), (1, 1)])
def test_equals_the_oracle(device, dtype, num_points, num_coarse):
    """Features are copied exactly; a gradient is the sum over the copies, zero without one."""
    features, rows, grad = problem(num_points, num_coarse, dtype=dtype)
    result = upsample(features.to(device), rows.to(device))
    assert result.dtype == dtype and torch.equal(result.cpu(), reference.upsample(features, rows))
    wide = features.double().requires_grad_()
    expected = torch.autograd.grad(reference.upsample(wide, rows), wide, grad.double())[0]
    found = gradient_of(features.to(device), rows.to(device), grad.to(device))
    torch.testing.assert_close(found.cpu(), expected.to(dtype))


def test_half_precision_gradients_are_summed_in_full_precision(device):
    """A long sum of ones, which bfloat16 alone would stop counting at 256."""
    features = torch.zeros(2, 3, dtype=torch.bfloat16, device=device)
    rows = torch.zeros(1024, dtype=torch.int64, device=device)
    found = gradient_of(features, rows, torch.ones(1024, 3, dtype=torch.bfloat16, device=device))
    assert torch.equal(found.cpu(), torch.tensor([[1024.0] * 3, [0.0] * 3], dtype=torch.bfloat16))


def test_an_upsampling_is_transposed_once(device):
    features, rows, grad = (each.to(device) for each in problem(60, 20))
    shared = Upsampling(rows, 20)
    assert torch.equal(upsample(features, shared), upsample(features, rows))
    assert torch.equal(gradient_of(features, shared, grad), gradient_of(features, rows, grad))
    assert shared.transposed is shared.transposed and shared.transposed.num_supports == 60


def test_non_contiguous_inputs(device):
    features, rows, grad = (each.to(device) for each in problem(60, 20))
    strided = features.T.contiguous().T, rows.repeat_interleave(2)[::2], grad.T.contiguous().T
    assert torch.equal(upsample(*strided[:2]), upsample(features, rows))
    assert torch.equal(gradient_of(*strided), gradient_of(features, rows, grad))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), num_points=st.integers(0, 80), num_coarse=st.integers(1, 20))
def test_no_gradient_is_lost(seed, num_points, num_coarse):
    """The gradients of the coarser points sum to those of the points."""
    features, rows, grad = problem(num_points, num_coarse, 3, torch.float64, seed)
    torch.testing.assert_close(gradient_of(features, rows, grad).sum(0), grad.sum(0))


def test_gradients(device):
    features, rows, _ = problem(12, 5, 3, torch.float64)
    features, rows = features.to(device).requires_grad_(), rows.to(device)
    assert torch.autograd.gradcheck(lambda features: upsample(features, rows), features)
    assert torch.autograd.gradgradcheck(lambda features: upsample(features, rows), features)


def test_follows_nearest_and_pyramid(device):
    random = torch.Generator().manual_seed(0)
    points, offsets = torch.rand(100, 3, generator=random).to(device), torch.tensor([0, 60, 100], device=device)
    fine, coarse = pyramid(points, offsets, 0.1, 2).levels
    rows, _ = nearest(points, offsets, coarse.points, coarse.offsets)
    assert torch.equal(upsample(coarse.points, fine.upsamples), coarse.points[rows])


def test_the_number_of_threads_changes_nothing():
    features, rows, grad = problem(20000, 3000, 17)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(gradient_of(features, rows, grad))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_operators_are_registered_properly():
    features, rows, grad = problem(30, 8)
    taken = Upsampling(rows, 8).transposed
    torch.library.opcheck(torch.ops.kpconv_ops.upsample, (features.requires_grad_(), rows, taken.indices, taken.splits))
    torch.library.opcheck(torch.ops.kpconv_ops.segment_sum, (grad.requires_grad_(), taken.indices, taken.splits, rows))
    torch.library.opcheck(torch.ops.kpconv_ops.transpose, (rows.int(), torch.arange(31), 8, "nb"))


def test_compiles_to_one_graph():
    def loss(features, rows):
        return upsample(features, rows).square().sum()

    features, rows, _ = problem(40, 10)
    features.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(features, rows), features)[0] for f in (loss, compiled)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("features", "rows", "error", "message"),
    [
        (torch.ones(4), torch.tensor([0]), ValueError, r"features must have shape \(\*, \*\), got \(4,\)"),
        (torch.ones(4, 2).int(), torch.tensor([0]), TypeError, "features must be float32"),
        (torch.ones(4, 2), torch.tensor([0]).int(), TypeError, "rows must be int64, got int32"),
        (torch.ones(4, 2), torch.tensor([[0]]), ValueError, r"rows must have shape \(\*\), got \(1, 1\)"),
        (torch.ones(4, 2), [0], TypeError, "rows must be a tensor, got list"),
        (torch.ones(4, 2), torch.zeros(1, device="meta").long(), ValueError, "rows must be on cpu, got meta"),
    ],
)
def test_bad_arguments_are_named(features, rows, error, message):
    with pytest.raises(error, match=message):
        upsample(features, rows)


def test_an_upsampling_of_other_points_is_refused():
    with pytest.raises(ValueError, match="rows must be rows of 4 features, got rows of 5"):
        upsample(torch.ones(4, 2), Upsampling(torch.tensor([0]), 5))
    with pytest.raises(ValueError, match="rows must be on cpu, got meta"):
        upsample(torch.ones(4, 2), Upsampling(torch.tensor([0], device="meta"), 4))


@pytest.mark.parametrize(
    ("rows", "num_supports", "error", "message"),
    [
        (torch.tensor([0.0]), 4, TypeError, "rows must be int64, got float32"),
        (torch.tensor([[0]]), 4, ValueError, r"rows must have shape \(\*\), got \(1, 1\)"),
        ([0], 4, TypeError, "rows must be a tensor, got list"),
        (torch.tensor([0]), None, TypeError, "num_supports must be an int, got NoneType"),
        (torch.tensor([0]), -4, ValueError, "num_supports must be at least 0, got -4"),
    ],
)
def test_upsamplings_name_bad_arguments(rows, num_supports, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        Upsampling(rows, num_supports)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("row", [-1, 4, 2**32])
def test_rows_outside_the_features_are_an_error(row, requires_grad):
    with pytest.raises(ValueError, match=r"^rows must be in \[0, 4\)$"):
        upsample(torch.ones(4, 2, requires_grad=requires_grad), torch.tensor([0, row]))
