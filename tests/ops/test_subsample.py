import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import grid_subsample, reference

DTYPES = [torch.float32, torch.float64]


def cloud(sizes, dtype, seed=0, scale=1.0, shift=0.0):
    """Random points, features and labels of a batch with samples of these sizes."""
    random = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    points = torch.rand(total, 3, generator=random, dtype=torch.float64) * scale + shift
    features = torch.randn(total, 5, generator=random, dtype=torch.float64)
    labels = torch.randint(-1, 4, (total,), generator=random)
    return points.to(dtype), torch.tensor([0, *sizes]).cumsum(0), features.to(dtype), labels


def assert_matches_oracle(result, points, offsets, cell_size, features=None, labels=None, origin=None):
    expected = reference.grid_subsample(points, offsets, cell_size, features, labels, origin)
    torch.testing.assert_close(
        result.points.cpu(), expected[0], rtol=1e-6 if points.dtype == torch.float32 else 1e-14, atol=1e-9
    )
    assert torch.equal(result.offsets.cpu(), expected[1])
    if features is not None:
        torch.testing.assert_close(result.features.cpu(), expected[2])
    if labels is not None:
        assert torch.equal(result.labels.cpu(), expected[3])
    assert torch.equal(result.inverse.cpu(), expected[4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [[300], [150, 0, 120, 1], [0], [], [0, 0, 5]])
def test_equals_the_oracle(device, dtype, sizes):
    points, offsets, features, labels = cloud(sizes, dtype)
    result = grid_subsample(*(t.to(device) for t in (points, offsets)), 0.17, features.to(device), labels.to(device))
    assert result.points.dtype == dtype and result.features.dtype == dtype
    assert_matches_oracle(result, points, offsets, 0.17, features, labels)


def test_features_and_labels_are_optional(device):
    points, offsets, *_ = cloud([50], torch.float32)
    result = grid_subsample(points.to(device), offsets.to(device), 0.3)
    assert result.features is None and result.labels is None
    assert_matches_oracle(result, points, offsets, 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [[300], [150, 0, 120, 1], [0], []])
def test_cells_start_at_the_origin(device, dtype, sizes):
    points, offsets, features, labels = cloud(sizes, dtype)
    origin = -torch.arange(3.0 * len(sizes), dtype=torch.float64).view(-1, 3) / 7
    tensors = (t.to(device) for t in (points, offsets, features, labels, origin))
    points_, offsets_, features_, labels_, origin_ = tensors
    result = grid_subsample(points_, offsets_, 0.17, features_, labels_, origin=origin_)
    assert_matches_oracle(result, points, offsets, 0.17, features, labels, origin)


def test_the_smallest_coordinates_are_the_default_origin(device):
    points, offsets, *_ = (t.to(device) for t in cloud([90, 30], torch.float64, shift=5e5))
    lowest = torch.stack([points[:90].amin(0), points[90:].amin(0)])
    one, other = grid_subsample(points, offsets, 0.2), grid_subsample(points, offsets, 0.2, origin=lowest)
    assert torch.equal(one.points, other.points) and torch.equal(one.inverse, other.inverse)


def test_the_highest_point_has_its_own_cell(device):
    """The size of the grid is rounded like the points: two points on either side of a face are not merged."""
    points = torch.zeros(3, 3, dtype=torch.float64)
    points[:, 0] = torch.tensor([9.58, 27.22, 27.24], dtype=torch.float64)
    offsets, origin = torch.tensor([0, 3]), torch.zeros(1, 3, dtype=torch.float64)
    result = grid_subsample(points.to(device), offsets.to(device), 0.04, origin=origin.to(device))
    assert result.inverse.tolist() == [0, 1, 2]
    assert_matches_oracle(result, points, offsets, 0.04, origin=origin)


def test_pieces_with_a_common_origin_have_the_cells_of_the_whole(device):
    """A cloud cut along a face of its cells, piece by piece, gives bit for bit what it gives in one."""
    points, offsets, features, labels = (t.to(device) for t in cloud([500], torch.float64, scale=3.0, shift=-7.25))
    origin = points.amin(0, keepdim=True)
    whole = grid_subsample(points, offsets, 0.2, features, labels)
    left = ((points - origin) / 0.2).floor()[:, 0] < 6
    for side in (left, ~left):
        size = torch.tensor([0, int(side.sum())], device=device)
        piece = grid_subsample(points[side], size, 0.2, features[side], labels[side], origin=origin)
        cells, inverse = torch.unique(whole.inverse[side], return_inverse=True)
        assert torch.equal(piece.inverse, inverse)
        for name in ("points", "features", "labels"):
            assert torch.equal(getattr(piece, name), getattr(whole, name)[cells])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_averaged_in_full_precision(device, dtype):
    points, offsets, features, _ = cloud([400], torch.float32)
    half = features.to(dtype)
    result = grid_subsample(points.to(device), offsets.to(device), 0.5, half.to(device))
    exact = grid_subsample(points.to(device), offsets.to(device), 0.5, half.double().to(device)).features
    assert result.features.dtype == dtype
    assert torch.equal(result.features, exact.float().to(dtype))


def test_half_precision_covers_its_whole_range(device):
    """A cell of one point returns every finite half and bfloat16 value unchanged."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    points = torch.arange(len(bits), dtype=torch.float64)[:, None].expand(-1, 3).contiguous().to(device)
    offsets = torch.tensor([0, len(bits)], device=device)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)[:, None]
        values = torch.where(values.isfinite(), values, 0).to(device)
        assert torch.equal(grid_subsample(points, offsets, 0.5, values).features, values)


def test_rows_go_by_cell_x_fastest(device):
    corners = torch.tensor([[x, y, z] for z in (0.0, 1.0) for y in (0.0, 1.0) for x in (0.0, 1.0)])
    mixed = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    result = grid_subsample(corners[mixed].to(device), torch.tensor([0, 8], device=device), 1.0)
    assert torch.equal(result.points.cpu(), corners)
    assert torch.equal(result.inverse.cpu(), mixed)


def test_equally_frequent_labels_give_the_smallest(device):
    points = torch.zeros(5, 3, device=device)
    labels = torch.tensor([7, -1, 7, -1, 3], device=device)
    assert grid_subsample(points, torch.tensor([0, 5], device=device), 1.0, labels=labels).labels.tolist() == [-1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicates_keep_their_place_exactly(device, dtype):
    """Points at one place give that place, bit for bit."""
    points = torch.tensor([[0.1, 7e5, 6.3e6]], dtype=dtype).repeat(37, 1).to(device)
    result = grid_subsample(points, torch.tensor([0, 37], device=device), 0.04)
    assert torch.equal(result.points, points[:1])


def test_a_batch_equals_its_samples_one_by_one(device):
    points, offsets, features, labels = (t.to(device) for t in cloud([80, 0, 1, 130], torch.float32))
    points[offsets[3] :] += 1000.25  # samples far from each other share no grid
    whole = grid_subsample(points, offsets, 0.2, features, labels)
    for b in range(4):
        rows, cells = slice(*offsets[b : b + 2].tolist()), slice(*whole.offsets[b : b + 2].tolist())
        alone = grid_subsample(points[rows], offsets[b : b + 2] - offsets[b], 0.2, features[rows], labels[rows])
        assert torch.equal(alone.points, whole.points[cells])
        assert torch.equal(alone.features, whole.features[cells])
        assert torch.equal(alone.labels, whole.labels[cells])
        assert torch.equal(alone.inverse + cells.start, whole.inverse[rows])


def test_projected_metres_lose_nothing(device):
    """Shifting a float64 cloud by exact amounts shifts the result and merges the same points."""
    points, offsets, *_ = cloud([500], torch.float64)
    points = (points * 2**20).round() / 2**20
    shift = torch.tensor([770000.0, 6300000.0, 500.0], dtype=torch.float64)
    near = grid_subsample(points.to(device), offsets.to(device), 0.1)
    far = grid_subsample((points + shift).to(device), offsets.to(device), 0.1)
    assert torch.equal(near.inverse, far.inverse)
    torch.testing.assert_close(far.points.cpu() - shift, near.points.cpu(), rtol=0, atol=2e-9)


def test_a_grid_of_more_than_2_to_the_31_cells(device):
    points, offsets, *_ = cloud([200], torch.float64, scale=1000.0)
    assert_matches_oracle(grid_subsample(points.to(device), offsets.to(device), 0.01), points, offsets, 0.01)


def test_non_contiguous_inputs(device):
    points, offsets, features, labels = cloud([90, 60], torch.float32)
    strided = [points.T.contiguous().T, offsets.repeat_interleave(2)[::2], features.T.contiguous().T]
    assert not strided[0].is_contiguous() and not strided[2].is_contiguous()
    strided = [t.to(device) for t in strided]
    result = grid_subsample(*strided[:2], 0.2, strided[2], labels.repeat_interleave(3)[::3].to(device))
    assert_matches_oracle(result, points, offsets, 0.2, features, labels)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.integers(1, 60), cell_size=st.floats(0.01, 2.0))
def test_order_of_points_does_not_matter(seed, size, cell_size):
    """A permutation of the points permutes `inverse` and changes the cells not at all (means up to rounding)."""
    points, offsets, features, labels = cloud([size], torch.float64, seed)
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    one = grid_subsample(points, offsets, cell_size, features, labels)
    other = grid_subsample(points[mixed], offsets, cell_size, features[mixed], labels[mixed])
    assert torch.equal(one.inverse[mixed], other.inverse)
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.points, other.points, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.features, other.features, rtol=1e-9, atol=1e-9)


def test_gradients(device):
    points, offsets, features, _ = cloud([20, 0, 9], torch.float64)
    points, offsets, features = points.to(device), offsets.to(device), features.to(device)

    def both(points, features):
        result = grid_subsample(points, offsets, 0.4, features)
        return result.points, result.features

    # The steps of the numerical gradient must not move points into other cells: only the barycentre varies.
    assert torch.autograd.gradcheck(both, (points.requires_grad_(), features.requires_grad_()), eps=1e-7, atol=1e-5)


def test_operators_are_registered_properly():
    points, offsets, features, labels = cloud([40, 0, 10], torch.float32)
    torch.library.opcheck(torch.ops.kpconv_ops.grid_cells, (points, offsets, 0.3))
    torch.library.opcheck(torch.ops.kpconv_ops.grid_cells, (points, offsets, 0.3, torch.zeros(3, 3).double()))
    order, splits, inverse, _ = torch.ops.kpconv_ops.grid_cells(points, offsets, 0.3)
    torch.library.opcheck(torch.ops.kpconv_ops.segment_mean, (features.requires_grad_(), order, splits, inverse))
    torch.library.opcheck(torch.ops.kpconv_ops.segment_mode, (labels, order, splits))


def test_the_number_of_threads_changes_nothing():
    points, offsets, features, labels = cloud([30000], torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(grid_subsample(points, offsets, 0.05, features, labels))
    finally:
        torch.set_num_threads(threads)
    for name in ("points", "offsets", "features", "labels", "inverse"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name))


GOOD = cloud([4, 6], torch.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": torch.rand(10, 2)}, ValueError, r"points must have shape \(\*, 3\), got \(10, 2\)"),
        ({"points": torch.rand(10)}, ValueError, "points must have shape"),
        ({"points": torch.rand(10, 3).half()}, TypeError, "points must be float32 or float64, got float16"),
        ({"points": [[0.0, 0.0, 0.0]]}, TypeError, "points must be a tensor, got list"),
        ({"points": GOOD[0] * torch.inf}, ValueError, "points must be finite"),
        ({"points": GOOD[0].index_fill(0, torch.tensor(7), torch.nan)}, ValueError, "points must be finite"),
        ({"offsets": torch.tensor([0, 4, 10], dtype=torch.int32)}, TypeError, "offsets must be int64, got int32"),
        ({"offsets": torch.tensor([0, 4, 9])}, ValueError, r"offsets must rise from 0 to 10, got \[0, 4, 9\]"),
        ({"offsets": torch.tensor([0, 11, 10])}, ValueError, "offsets must rise"),
        ({"offsets": torch.tensor([1, 10])}, ValueError, "offsets must rise"),
        ({"offsets": torch.empty(0, dtype=torch.int64)}, ValueError, "offsets must rise"),
        ({"cell_size": 0.0}, ValueError, "cell_size must be positive and finite, got 0.0"),
        ({"cell_size": -0.1}, ValueError, "cell_size must be positive"),
        ({"cell_size": float("nan")}, ValueError, "cell_size must be positive"),
        ({"cell_size": "4 cm"}, TypeError, "cell_size must be a number, got str"),
        ({"cell_size": 1e-9}, ValueError, "cell_size 1e-09 is too small"),
        ({"features": torch.rand(9, 5)}, ValueError, r"features must have shape \(10, \*\), got \(9, 5\)"),
        ({"features": torch.ones(10, 5).int()}, TypeError, "features must be float32"),
        ({"labels": torch.zeros(10)}, TypeError, "labels must be int64, got float32"),
        ({"origin": torch.zeros(1, 3).double()}, ValueError, r"origin must have shape \(2, 3\), got \(1, 3\)"),
        ({"origin": torch.zeros(2, 3)}, TypeError, "origin must be float64, got float32"),
        (
            {"origin": torch.ones(2, 3).double()},
            ValueError,
            r"origin must not be above any point, got \[1.0, 1.0, 1.0\]",
        ),
        ({"origin": torch.full((2, 3), torch.nan).double()}, ValueError, "origin must be finite"),
        ({"origin": torch.full((2, 3), -torch.inf).double()}, ValueError, "origin must be finite"),
        ({"labels": torch.zeros(10, 1).long()}, ValueError, "labels must have shape"),
        ({"labels": torch.zeros(10, device="meta").long()}, ValueError, "labels must be on cpu, got meta"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    points, offsets, features, labels = GOOD
    good = {"points": points, "offsets": offsets, "cell_size": 0.1, "features": features, "labels": labels}
    grid_subsample(**good)
    with pytest.raises(error, match=message):
        grid_subsample(**(good | change))
