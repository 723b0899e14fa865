import numpy as np
import pytest
import torch
from cells import assert_equal, cloud, on, voxels
from hypothesis import given, settings
from hypothesis import strategies as st

from kpconv_ops import KernelMap, kernel_map, reference, stride_coords, voxelize

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


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.sampled_from([0.02, 0.05, 0.3, 7.0]), dtype=st.sampled_from([0, 1]))
def test_points_on_the_faces_of_voxels(seed, size, dtype):
    """Also where a quotient rounds up to a whole number, and in the outermost voxels, points equal the oracle."""
    random = torch.Generator().manual_seed(seed)
    points = torch.randint(-9, 10, (60, 3), generator=random) * torch.tensor(size, dtype=torch.float64)
    points, offsets = points.to((torch.float32, torch.float64)[dtype]), torch.tensor([0, 20, 60])
    assert_equal(voxelize(points, offsets, size), reference.voxelize(points, offsets, size))


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


def test_boxes_that_fit_only_one_by_one_are_refused():
    """Samples share the numbers: two boxes of 2^61 voxels are too many, one is not."""
    corners = torch.tensor([[0, 0, 0], [2**20 - 1, 2**20 - 1, 2**21 - 1]])
    assert torch.equal(stride_coords(corners, torch.tensor([0, 2]), 1).coords, corners)
    with pytest.raises(ValueError, match="coords must lie closer together: 2 samples of up to 1048576 x"):
        stride_coords(corners.repeat(2, 1), torch.tensor([0, 2, 4]), 1)


@pytest.mark.parametrize("stride", [1, 2, 3, 2**31 - 1])
def test_whole_numbers_from_2_to_the_62_on_are_refused(stride):
    """Whatever the stride: a smaller quotient is multiplied by it again. What lies below keeps its voxel."""
    offsets = torch.tensor([0, 1])
    for far in (2**62 - 1, 1 - 2**62):
        coords = torch.tensor([[0, far, 0]])
        assert stride_coords(coords, offsets, stride).coords.tolist() == [[0, far // stride * stride, 0]]
    for far in (2**62, -(2**62), 2**63 - 1, -(2**63)):
        with pytest.raises(ValueError, match=r"^coords must be finite and within 2\^62 voxels of the origin$"):
            stride_coords(torch.tensor([[0, far, 0]]), offsets, stride)


def test_samples_of_many_blocks_equal_the_oracle():
    """Two threads share points and queries: each takes up the sample and the search where its block begins."""
    points, offsets = cloud((7000, 0, 1, 12999), extent=30)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fine = voxelize(points, offsets, 1.0)
        coarse = stride_coords(fine.coords, fine.offsets, 2)
        maps = [kernel_map(fine.coords, fine.offsets, out.coords, out.offsets, (3, 2, 1)) for out in (fine, coarse)]
    finally:
        torch.set_num_threads(threads)
    assert_equal(fine, reference.voxelize(points, offsets, 1.0))
    assert_equal(coarse, reference.stride_coords(fine.coords, fine.offsets, 2))
    assert len(fine.coords) > 3 * 4096 and len(coarse.coords) > 3 * 1024
    for result, out in zip(maps, (fine, coarse), strict=True):
        assert_equal(result, reference.kernel_map(fine.coords, fine.offsets, out.coords, out.offsets, (3, 2, 1)))


# ---- kernel maps


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, (3, 1, 2), (1, 5, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_kernel_maps_equal_the_oracle(device, kernel_size, dilation):
    """Convolutions that keep the voxels, and strided ones onto coarser voxels."""
    coords, offsets = voxels()
    coarse = reference.stride_coords(coords, offsets, 2)
    for out in ((coords, offsets), (coarse.coords, coarse.offsets)):
        result = kernel_map(*on(device, coords, offsets, *out), kernel_size, dilation)
        assert_equal(result, reference.kernel_map(coords, offsets, *out, kernel_size, dilation))
        assert (result.num_in, result.num_out) == (len(coords), len(out[0]))
        swapped = result.transposed
        assert torch.equal(swapped.rows.cpu(), reference.transpose_map(result.rows.cpu(), len(coords)))
        assert (swapped.num_in, swapped.num_out) == (result.num_out, result.num_in)
        assert result.transposed.rows is swapped.rows and swapped.transposed.rows is result.rows  # computed once
        indices, splits = reference.map_neighbors(result.rows.cpu())
        neighbors = result.neighbors
        assert torch.equal(neighbors.indices.cpu(), indices) and torch.equal(neighbors.splits.cpu(), splits)
        assert neighbors.num_supports == len(coords) and result.neighbors is neighbors
        assert swapped.neighbors is result.transposed.neighbors and swapped.transposed.neighbors is neighbors


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
    assert torch.equal(result.transposed.rows, result.rows.flip(0))
    assert torch.equal(result.rows[13], torch.arange(len(coords), dtype=torch.int32))
    assert (result.rows >= 0).sum() > len(coords)  # not the centre tap alone


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_voxels_does_not_matter(seed):
    """Shuffled inputs and outputs meet at the same taps as sorted ones."""
    coords, offsets = voxels((30,), seed)
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randperm(len(coords), generator=random) for _ in range(2))
    result = kernel_map(coords[a], offsets, coords[b], offsets, 3)
    assert_equal(result, reference.kernel_map(coords[a], offsets, coords[b], offsets, 3))


def test_opcheck(device):
    coords, offsets = on(device, *voxels((12,), extent=3))
    torch.library.opcheck(torch.ops.kpconv_ops.unique_voxels, (coords, offsets, 2.0, "coords"))
    torch.library.opcheck(torch.ops.kpconv_ops.kernel_map, (coords, offsets, coords, offsets, [3, 2, 1], 1))
    rows = kernel_map(coords, offsets, coords, offsets, 3).rows
    torch.library.opcheck(torch.ops.kpconv_ops.transpose_map, (rows, len(coords)))
    torch.library.opcheck(torch.ops.kpconv_ops.map_neighbors, (rows, len(coords)))


# ---- bad input


def test_bad_arguments_are_named():
    points, offsets = cloud()
    coords, voxel_offsets = voxels()
    same = coords, voxel_offsets, coords, voxel_offsets
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
        (kernel_map, (*same, (3, 3)), ValueError, r"kernel_size must be a size or three in a tuple, got \(3, 3\)"),
        (kernel_map, (*same, (3, 0, 3)), ValueError, "kernel_size must be at least 1 .*, got 0"),
        (kernel_map, (*same, [3, 3, 3]), ValueError, r"kernel_size must be a size or three in a tuple, got \[3, 3, 3"),
        (kernel_map, (*same, "3"), TypeError, "kernel_size must be an integer, got str"),
    ):
        with pytest.raises(error, match=message):
            function(*args)


@pytest.mark.parametrize(
    ("kernel_size", "voxels", "taps"), [(10**6, 1, 10**18), ((1, 1, 2**20 + 1), 1, 2**20 + 1), (64, 2**13, 2**18)]
)
def test_kernels_too_large_for_a_table_are_refused(kernel_size, voxels, taps):
    """Before anything is allocated: by the taps alone, and by taps times voxels."""
    coords, offsets = torch.zeros(voxels, 3).long(), torch.tensor([0, voxels])
    message = rf"at most 2\^20 taps, and with {voxels} output voxels fewer than 2\^31 entries, got {taps} taps$"
    with pytest.raises(ValueError, match=rf"^kernel_size must give {message}"):
        kernel_map(coords, offsets, coords, offsets, kernel_size)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": torch.tensor([[0, 1]])}, TypeError, "rows must be int32, got int64"),
        ({"rows": torch.tensor([0, 1]).int()}, ValueError, r"rows must have shape \(\*, \*\), got \(2,\)"),
        ({"num_in": 2.0}, TypeError, "num_in must be an int, got float"),
        ({"num_in": -1}, ValueError, "num_in must be at least 0, got -1"),
    ],
)
def test_kernel_maps_name_bad_arguments(change, error, message):
    good = {"rows": torch.tensor([[0, 1]], dtype=torch.int32), "num_in": 2}
    KernelMap(**good)
    with pytest.raises(error, match=f"^{message}$"):
        KernelMap(**(good | change))


@pytest.mark.parametrize("use", ["transposed", "neighbors"])
def test_rows_that_do_not_exist_are_refused(use):
    for row in (2, -2):
        with pytest.raises(ValueError, match=r"^rows of kernel_map must be in \[-1, 2\)$"):
            getattr(KernelMap(torch.tensor([[0, row]], dtype=torch.int32), 2), use)


def test_coordinates_given_twice_are_refused():
    """At once among the inputs; among the outputs when the map is transposed."""
    once, twice = torch.tensor([[0, 0, 0], [1, 0, 0]]), torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    pair, three = torch.tensor([0, 2]), torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"^in_coords must be unique within a sample, got coordinates twice$"):
        kernel_map(twice, three, once, pair, 3)
    kernel_map(twice, torch.tensor([0, 2, 3]), twice, torch.tensor([0, 2, 3]), 3)  # in two samples
    table = kernel_map(once, pair, twice, three, 3)
    with pytest.raises(
        ValueError, match=r"^rows .* must hold a row at most once in each tap: coordinates given twice\?$"
    ):
        _ = table.transposed


def test_numbers_of_numpy():
    coords, offsets = voxels()
    for function, number in ((stride_coords, 2), (lambda *a: kernel_map(*a[:2], *a), 3)):
        assert_equal(function(coords, offsets, np.int64(number)), function(coords, offsets, number))
