import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from kpconv_ops import Neighbors, grid_subsample, nearest, radius_search, reference

DTYPES = [torch.float32, torch.float64]


def packed(sizes, dtype, seed=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(sum(sizes), 3, generator=random, dtype=torch.float64) * scale
    return points.to(dtype), torch.tensor([0, *sizes]).cumsum(0)


def on(device, *tensors):
    return tuple(tensor.to(device) for tensor in tensors)


def assert_radius(device, queries, query_offsets, supports, support_offsets, radius, max_neighbors=None):
    batch = queries, query_offsets, supports, support_offsets
    result = radius_search(*on(device, *batch), radius, max_neighbors)
    indices, splits = reference.radius_search(*batch, radius, max_neighbors)
    assert result.indices.dtype == torch.int32 and result.splits.dtype == torch.int64
    assert torch.equal(result.splits.cpu(), splits)
    assert torch.equal(result.indices.cpu(), indices)
    assert result.num_supports == len(supports)
    return result


def assert_nearest(device, *batch):
    indices, distances = nearest(*on(device, *batch))
    expected_indices, expected_distances = reference.nearest(*batch)
    assert torch.equal(indices.cpu(), expected_indices)
    rounding = 2 * torch.finfo(distances.dtype).eps  # torch's square root is not always rounded to nearest
    torch.testing.assert_close(distances.cpu(), expected_distances, rtol=rounding, atol=0)


BATCHES = [([60], [150]), ([30, 0, 40, 1], [70, 20, 1, 90]), ([0], [0]), ([], []), ([0, 5], [0, 9])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("query_sizes", "support_sizes"), [*BATCHES, ([5, 6], [0, 30]), ([5, 0], [7, 0])])
def test_radius_equals_the_oracle(device, dtype, query_sizes, support_sizes):
    batch = *packed(query_sizes, dtype, 1), *packed(support_sizes, dtype, 2)
    assert_radius(device, *batch, 0.23)
    assert_radius(device, *batch, 0.3, max_neighbors=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("query_sizes", "support_sizes"), BATCHES)
def test_nearest_equals_the_oracle(device, dtype, query_sizes, support_sizes):
    assert_nearest(device, *packed(query_sizes, dtype, 1), *packed(support_sizes, dtype, 2))


@pytest.mark.parametrize("shape", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.01), (1.0, 0.0, 0.0)])
def test_nearest_is_never_beyond_the_cells_that_were_looked_at(device, shape):
    """Many queries, inside and around the supports' box, against the whole matrix of distances."""
    queries, query_offsets = packed([1500], torch.float64, 1, 1.4 * torch.tensor(shape) + 0.01)
    supports, support_offsets = packed([300], torch.float64, 2, torch.tensor(shape))
    rows, _ = nearest(*on(device, queries, query_offsets, supports, support_offsets))
    assert torch.equal(rows.cpu(), (queries[:, None] - supports).square().sum(dim=-1).argmin(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [0.1, 0.3, 1.0, 50.0])
def test_lattice_points_at_exactly_the_radius(device, dtype, radius):
    """Distances that equal the radius up to rounding are judged as the oracle judges them, wherever cells end."""
    steps = torch.arange(-3, 4, dtype=torch.float64) * radius
    lattice = torch.cartesian_prod(steps, steps, steps).to(dtype)
    offsets = torch.tensor([0, len(lattice)])
    result = assert_radius(device, lattice, offsets, lattice, offsets, radius)
    assert len(result.indices) > 4 * len(lattice)
    assert_nearest(device, lattice + radius / 2, offsets, lattice, offsets)


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicates_come_in_the_order_of_their_rows(device, dtype):
    supports, offsets = packed([5], dtype)
    supports, offsets = supports.repeat(8, 1), offsets * 8
    assert_radius(device, supports, offsets, supports, offsets, 0.4)
    assert_radius(device, supports, offsets, supports, offsets, 0.4, max_neighbors=11)
    assert_nearest(device, supports, offsets, supports, offsets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_neighbors", [None, 1, 10, 224, 225, 400])
def test_crowds(device, dtype, max_neighbors):
    """More hits than are sorted in shared memory, or ranked on the CPU, are sorted all the same; many at one place."""
    supports, support_offsets = packed([650, 30], dtype)
    supports[100:180] = supports[100]
    queries, query_offsets = packed([4, 2], dtype, 1)
    assert_radius(device, queries, query_offsets, supports, support_offsets, 2.0, max_neighbors)


@pytest.mark.parametrize("shape", [(1.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (100.0, 1.0, 0.01)])
def test_flat_and_thin_clouds(device, shape):
    queries, query_offsets = packed([40], torch.float64, 1, torch.tensor(shape))
    supports, support_offsets = packed([80], torch.float64, 2, torch.tensor(shape))
    assert_radius(device, queries, query_offsets, supports, support_offsets, 0.2)
    assert_nearest(device, queries, query_offsets, supports, support_offsets)


def test_clusters_and_outliers(device):
    """One far point stretches the grid; neighbours are still found, near it, in the cluster and from far outside."""
    supports, support_offsets = packed([90], torch.float64, scale=1e-3)
    supports[50] = torch.tensor([1e4, -1e4, 30.0])
    queries = torch.cat([supports[::9], supports[50:51] + 1, torch.tensor([[5e3, 0, 0], [-1e6, 1e6, 1e7]]).double()])
    query_offsets = torch.tensor([0, len(queries)])
    assert_radius(device, queries, query_offsets, supports, support_offsets, 4e-4)
    assert_radius(device, queries, query_offsets, supports, support_offsets, 1e5)
    assert_nearest(device, queries, query_offsets, supports, support_offsets)


def test_a_radius_far_smaller_than_the_cloud(device):
    """A grid of cells as small as the radius could not be counted in 64 bits: larger cells find the same."""
    supports, offsets = packed([60], torch.float64, scale=1e6)
    supports[30:] = supports[:30] + 1e-4
    assert_radius(device, supports, offsets, supports, offsets, 2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_coordinates(device, dtype):
    """Projected metres: float64 finds exactly what it finds near zero, float32 what is left in float32."""
    supports, offsets = packed([150], torch.float64)
    supports = (supports * 2**16).round() / 2**16
    far = (supports + torch.tensor([770000.0, 6300000.0, 500.0])).to(dtype)
    result = assert_radius(device, far, offsets, far, offsets, 0.3)
    assert_nearest(device, far, offsets, far[::2].contiguous(), torch.tensor([0, 75]))
    if dtype == torch.float64:
        near = radius_search(*on(device, supports, offsets, supports, offsets), 0.3)
        assert torch.equal(result.indices, near.indices) and torch.equal(result.splits, near.splits)


def test_non_contiguous_inputs(device):
    queries, query_offsets = packed([30, 20], torch.float32, 1)
    supports, support_offsets = packed([50, 40], torch.float32, 2)
    strided = queries.T.contiguous().T, supports.repeat_interleave(2, dim=0)[::2]
    assert not any(points.is_contiguous() for points in strided)
    assert_radius(device, strided[0], query_offsets, strided[1], support_offsets, 0.3)
    assert_nearest(device, strided[0], query_offsets, strided[1], support_offsets)


def test_a_batch_equals_its_samples_one_by_one(device):
    """Samples in the same place do not see each other."""
    queries, query_offsets = packed([20, 0, 30, 1], torch.float32, 1)
    supports, support_offsets = packed([40, 3, 50, 60], torch.float32, 2)
    whole = radius_search(*on(device, queries, query_offsets, supports, support_offsets), 0.3)
    whole_nearest, _ = nearest(*on(device, queries, query_offsets, supports, support_offsets))
    for b in range(4):
        q, s = slice(*query_offsets[b : b + 2].tolist()), slice(*support_offsets[b : b + 2].tolist())
        sample = on(
            device, queries[q], torch.tensor([0, q.stop - q.start]), supports[s], torch.tensor([0, s.stop - s.start])
        )
        alone = radius_search(*sample, 0.3)
        splits = whole.splits[q.start : q.stop + 1]
        assert torch.equal(alone.splits, splits - splits[0])
        assert torch.equal(alone.indices + s.start, whole.indices[splits[0] : splits[-1]])
        assert torch.equal(nearest(*sample)[0] + s.start, whole_nearest[q])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.integers(1, 50), radius=st.floats(0.01, 2.0))
def test_order_of_points_does_not_matter(seed, size, radius):
    """Permuting queries and supports permutes the neighbourhoods, and a neighbour sees who sees it."""
    points, offsets = packed([size], torch.float64, seed)
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    one = radius_search(points, offsets, points, offsets, radius)
    other = radius_search(points[mixed], offsets, points[mixed], offsets, radius)
    rows = [one.indices[a:b].tolist() for a, b in zip(one.splits, one.splits[1:], strict=False)]
    for i, (a, b) in enumerate(zip(other.splits, other.splits[1:], strict=False)):
        assert mixed[other.indices[a:b]].tolist() == rows[mixed[i]]
    pairs = {(i, j) for i, row in enumerate(rows) for j in row}
    assert pairs == {(j, i) for i, j in pairs}


def test_real_rooms_agree_with_a_kd_tree(device, real_data):
    """On a real scan in float64, neighbours and nearest points are those of scipy's tree."""
    lines = real_data / "s3dis/Stanford3dDataset_v1.2_Aligned_Version/Area_3/hallway_3/Annotations"
    points = np.concatenate([np.loadtxt(path, usecols=(0, 1, 2))[::60] for path in sorted(lines.glob("*.txt"))])
    supports = torch.from_numpy(points)
    queries = supports[::7].contiguous()
    batch = on(device, queries, torch.tensor([0, len(queries)]), supports, torch.tensor([0, len(supports)]))
    tree = cKDTree(points)
    found = radius_search(*batch, 0.2)
    expected = tree.query_ball_point(queries.numpy(), 0.2, return_sorted=True)
    assert [len(row) for row in expected] == found.splits.diff().tolist()
    for a, b, row in zip(found.splits, found.splits[1:], expected, strict=False):
        assert sorted(found.indices[a:b].tolist()) == row
    distances = nearest(batch[0] + 0.013, *batch[1:])[1]
    np.testing.assert_allclose(distances.cpu().numpy(), tree.query(queries.numpy() + 0.013)[0], rtol=1e-9)


@pytest.mark.parametrize("sizes", [([12, 0, 30], [20, 4, 25]), ([0], [3]), ([4], [0])])
def test_transposed_holds_the_same_pairs(device, sizes):
    """Transposing swaps query and support of every pair, queries ascend; doing it twice sorts the neighbourhoods."""
    batch = on(device, *packed(sizes[0], torch.float32, 1), *packed(sizes[1], torch.float32, 2))
    found = radius_search(*batch, 0.4)
    swapped = found.transposed
    assert swapped.num_supports == len(batch[0]) and len(swapped.splits) == len(batch[2]) + 1
    assert swapped.indices.dtype == torch.int32 and swapped.splits.dtype == torch.int64

    def pairs(nb):
        owners = torch.arange(len(nb.splits) - 1).repeat_interleave(nb.splits.cpu().diff())
        return list(zip(owners.tolist(), nb.indices.tolist(), strict=True))

    assert pairs(swapped) == sorted((j, i) for i, j in pairs(found))
    assert pairs(swapped.transposed) == sorted(pairs(found))
    assert found.transposed is swapped


def test_transposing_many_pairs_of_one_support(device):
    """Queries ascend where a support has more of them than shared memory takes, and where a query names it twice."""
    indices = torch.arange(900, dtype=torch.int32) % 3
    indices[:6] = torch.tensor([0, 0, 1, 0, 0, 2])
    found = Neighbors(*on(device, indices, torch.tensor([0, 6, 6, *range(7, 901)])), 5)
    swapped, owners = found.transposed, torch.arange(896).repeat_interleave(found.splits.diff().cpu())
    assert swapped.splits.diff().tolist() == torch.bincount(indices, minlength=5).tolist()
    expected = [owners[indices == support] for support in range(5)]
    assert torch.equal(swapped.indices.cpu().long(), torch.cat(expected))


@pytest.mark.parametrize(
    ("indices", "splits", "message"),
    [
        ([0, 3], [0, 2], r"nb.indices must be in \[0, 3\)"),
        ([0, -1], [0, 2], r"nb.indices must be in \[0, 3\)"),
        ([0], [0, 2], r"nb.splits must rise within \[0, 1\]"),
    ],
)
def test_transposing_neighbours_that_do_not_exist_is_an_error(indices, splits, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        _ = Neighbors(torch.tensor(indices, dtype=torch.int32), torch.tensor(splits), 3).transposed


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indices": torch.tensor([0, 1])}, TypeError, "indices must be int32, got int64"),
        ({"indices": torch.zeros(2, 1).int()}, ValueError, r"indices must have shape \(\*\), got \(2, 1\)"),
        ({"indices": [0, 1]}, TypeError, "indices must be a tensor, got list"),
        ({"indices": torch.zeros(2).int().to_sparse()}, TypeError, "indices must be a dense tensor, got sparse_coo"),
        ({"splits": torch.tensor([0, 2]).int()}, TypeError, "splits must be int64, got int32"),
        ({"splits": torch.tensor(2)}, ValueError, r"splits must have shape \(\*\), got \(\)"),
        ({"splits": torch.zeros(0).long()}, ValueError, "splits must have at least one entry, got none"),
        ({"splits": torch.tensor([0, 2], device="meta")}, ValueError, "splits must be on cpu, got meta"),
        ({"num_supports": 3.0}, TypeError, "num_supports must be an int, got float"),
        ({"num_supports": True}, TypeError, "num_supports must be an int, got bool"),
        ({"num_supports": -1}, ValueError, "num_supports must be at least 0, got -1"),
    ],
)
def test_neighbours_name_bad_arguments(change, error, message):
    good = {"indices": torch.tensor([0, 1], dtype=torch.int32), "splits": torch.tensor([0, 2]), "num_supports": 3}
    Neighbors(**good)
    with pytest.raises(error, match=f"^{message}$"):
        Neighbors(**(good | change))


def test_numbers_of_numpy(device):
    points, offsets = on(device, *packed([30], torch.float32))
    one, other = (
        radius_search(points, offsets, points, offsets, radius, limit)
        for radius, limit in ((0.25, 3), (np.float32(0.25), np.int64(3)))
    )
    assert torch.equal(one.indices, other.indices) and torch.equal(one.splits, other.splits)


def test_operators_are_registered_properly():
    batch = *packed([10, 0, 5], torch.float32, 1), *packed([20, 3, 9], torch.float32, 2)
    torch.library.opcheck(torch.ops.kpconv_ops.radius_search, (*batch, 0.3, None))
    torch.library.opcheck(torch.ops.kpconv_ops.radius_search, (*batch, 0.3, 2))
    torch.library.opcheck(torch.ops.kpconv_ops.nearest, batch)


def test_one_compiled_graph_holds_the_whole_pyramid_step():
    """torch.compile traces subsampling and searches without a graph break and gives the same numbers and gradient."""

    def step(points, offsets, features):
        coarse = grid_subsample(points, offsets, 0.3, features)
        found = radius_search(coarse.points, coarse.offsets, points, offsets, 0.3)
        rows, distances = nearest(points, offsets, coarse.points, coarse.offsets)
        return coarse.features[rows].square().sum() + distances.sum(), found.indices, found.transposed.indices

    points, offsets = packed([40, 0, 30], torch.float32)
    features = torch.rand(70, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = step(points, offsets, features)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(points, offsets, features)
    assert torch.equal(plain[1], compiled[1]) and torch.equal(plain[2], compiled[2])
    gradients = [torch.autograd.grad(result[0], features)[0] for result in (plain, compiled)]
    assert torch.equal(*gradients)


def test_coordinates_get_no_gradient():
    points, offsets = packed([20], torch.float32)
    points.requires_grad_()
    assert not nearest(points, offsets, points, offsets)[1].requires_grad


def test_the_number_of_threads_changes_nothing():
    points, offsets = packed([20000], torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found = radius_search(points, offsets, points, offsets, 0.1)
            results.append((found, found.transposed, nearest(points + 0.01, offsets, points, offsets)[0]))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(results[0][:2], results[1][:2], strict=True):
        assert torch.equal(one.indices, other.indices) and torch.equal(one.splits, other.splits)
    assert torch.equal(results[0][2], results[1][2])


QUERIES, QUERY_OFFSETS = packed([4, 6], torch.float32, 1)
SUPPORTS, SUPPORT_OFFSETS = packed([5, 7], torch.float32, 2)
BAD_BATCHES = [
    ({"queries": QUERIES[:, :2]}, ValueError, r"queries must have shape \(\*, 3\), got \(10, 2\)"),
    ({"queries": QUERIES.long()}, TypeError, "queries must be float32 or float64, got int64"),
    ({"queries": QUERIES * torch.nan}, ValueError, "queries must be finite"),
    ({"queries": None}, TypeError, "queries must be a tensor, got NoneType"),
    ({"queries": QUERIES.numpy()}, TypeError, "queries must be a tensor, got ndarray"),
    ({"queries": QUERIES.to_sparse()}, TypeError, "queries must be a dense tensor, got sparse_coo"),
    ({"supports": SUPPORTS.double()}, TypeError, "supports must be float32, got float64"),
    ({"supports": SUPPORTS.index_fill(0, torch.tensor(3), torch.inf)}, ValueError, "supports must be finite"),
    ({"supports": SUPPORTS.to("meta")}, ValueError, "supports must be on cpu, got meta"),
    (
        {"query_offsets": torch.tensor([0, 4, 11])},
        ValueError,
        r"query_offsets must rise from 0 to 10, got \[0, 4, 11\]",
    ),
    (
        {"query_offsets": torch.tensor([0, 10])},
        ValueError,
        r"support_offsets must have shape \(2,\) like query_offsets",
    ),
    ({"support_offsets": torch.tensor([0, 13, 12])}, ValueError, "support_offsets must rise from 0 to 12"),
    ({"support_offsets": torch.tensor([0.0, 5.0, 12.0])}, TypeError, "support_offsets must be int64, got float32"),
]
BAD_RADII = [
    ({"radius": -1.0}, ValueError, "radius must be positive and finite, got -1.0"),
    ({"radius": float("inf")}, ValueError, "radius must be positive and finite"),
    ({"radius": 1e-25}, ValueError, "radius must have a square between"),
    ({"radius": 1e200}, ValueError, "radius must have a square between"),
    ({"radius": None}, TypeError, "radius must be a number, got NoneType"),
    ({"radius": 10**400}, ValueError, "radius must be positive and finite, got inf"),
    ({"radius": True}, TypeError, "radius must be a number, got bool"),
    ({"max_neighbors": 0}, ValueError, r"max_neighbors must be at least 1 and less than 2\^31, got 0"),
    ({"max_neighbors": 2**64}, ValueError, r"max_neighbors must be at least 1 and less than 2\^31, got 1844"),
    ({"max_neighbors": 2.5}, TypeError, "max_neighbors must be an integer, got float"),
]


def good_batch():
    return {
        "queries": QUERIES,
        "query_offsets": QUERY_OFFSETS,
        "supports": SUPPORTS,
        "support_offsets": SUPPORT_OFFSETS,
    }


@pytest.mark.parametrize(("change", "error", "message"), BAD_BATCHES + BAD_RADII)
def test_radius_search_names_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        radius_search(**(good_batch() | {"radius": 0.2} | change))


@pytest.mark.parametrize(("change", "error", "message"), BAD_BATCHES)
def test_nearest_names_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        nearest(**(good_batch() | change))


def test_nearest_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="supports must not be empty where there are queries, sample 1 is"):
        nearest(QUERIES, QUERY_OFFSETS, SUPPORTS, torch.tensor([0, 12, 12]))
