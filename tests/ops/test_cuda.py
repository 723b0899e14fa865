"""The CUDA operators beside the CPU's, at every width their kernels tell apart; and what only a GPU can show."""

import pytest
import torch

from kpconv_ops import (
    Neighbors,
    _native,
    deformable_kpconv,
    fitting_loss,
    grid_subsample,
    interpolate,
    kernel_map,
    kpconv,
    max_pool,
    mean_pool,
    nearest,
    radius_search,
    scatter_mean,
    sparse_conv,
    stride_coords,
    trilinear,
    voxelize,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HAS_GPU = torch.cuda.is_available() and _native.CUDA_LIBRARY.exists()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU, and kpconv_ops built with CUDA")


def moved(device, value):
    """Tensors, or neighbourhoods, or lists of them, on another device."""
    if isinstance(value, (list, tuple)):
        return [moved(device, each) for each in value]
    if isinstance(value, Neighbors):
        return Neighbors(value.indices.to(device), value.splits.to(device), value.num_supports)
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=needs_gpu)])
def run(request):
    """Calls a function with tensors on the GPU, or the emulator in its place; returns the result on the CPU."""

    def on_gpu(function, *args):
        return moved("cpu", function(*moved("cuda", args)))

    def emulated(function, *args):
        with _native.emulated_cuda(library):
            return moved("cpu", function(*args))

    if request.param == "cuda":
        return on_gpu
    library = request.getfixturevalue("emulated_library")
    return emulated


def points(num_queries=37, num_supports=90, radius=0.45, seed=0):
    """Queries, supports and neighbourhoods of up to some 50 neighbours, one of them empty."""
    random = torch.Generator().manual_seed(seed)
    queries, supports = (torch.rand(n, 3, generator=random) for n in (num_queries, num_supports))
    queries[3] += 10
    nb = radius_search(queries, torch.tensor([0, num_queries]), supports, torch.tensor([0, num_supports]), radius)
    assert nb.splits.diff().max() > 32 and nb.splits.diff().min() == 0
    return queries, supports, nb


def convolution(dtype, channels, num_points=15, deformable=False, **geometry):
    """Arguments of `with_gradients`: geometry, and the tensors that get gradients; float64 goes with float64 points."""
    queries, supports, nb = points(**geometry)
    random = torch.Generator().manual_seed(1)
    wide = torch.promote_types(dtype, torch.float32)

    def draw(*shape):
        return torch.randn(*shape, generator=random)

    kernel = draw(num_points, 3) * 0.15
    weights = draw(num_points, channels, 8) / (num_points * channels) ** 0.5
    wanted = [draw(len(supports), channels).to(dtype), weights.to(dtype)]
    if deformable:
        wanted += [0.1 * draw(len(queries), num_points, 3).to(wide), draw(len(queries), num_points).to(wide)]
    return [queries.to(wide), supports.to(wide), nb, kernel.to(wide)], wanted


def with_gradients(geometry, wanted, influence="linear", aggregation="sum"):
    """The convolution and the gradients of a fixed weighting of it."""
    queries, supports, nb, kernel = geometry
    features, weights, *deformation = wanted = [t.detach().requires_grad_() for t in wanted]
    rule = {"extent": 0.3, "influence": influence, "aggregation": aggregation}
    function = deformable_kpconv if deformation else kpconv
    out = function(features, queries, supports, nb, kernel, weights, *deformation, **rule)
    weighting = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out)
    return [out.detach(), *torch.autograd.grad(out, wanted, weighting)]


def assert_same_to_rounding(results, expected, dtype):
    """Errors relative to the largest value: sums in another order; of narrow types, roundings of the aggregate too."""
    units = 4 if dtype in (torch.float16, torch.bfloat16) else 32
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == exact.dtype and result.shape == exact.shape
        error = (result.double() - exact.double()).abs().max()
        assert error <= units * torch.finfo(dtype).eps * exact.double().abs().max()


# 5, 8: one channel a lane; 13, 18: none fit a vector; 16, 24, 32: two and four channels a lane; 64, 72, 200: whole and
# broken tiles of 64 channels.
@pytest.mark.parametrize("channels", [1, 5, 8, 13, 16, 18, 24, 32, 64, 72, 200])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deformable", [False, True], ids=["rigid", "deformable"])
def test_convolution(run, dtype, channels, deformable):
    args = convolution(dtype, channels, deformable=deformable)
    assert_same_to_rounding(run(with_gradients, *args), with_gradients(*args), dtype)


@pytest.mark.parametrize("aggregation", ["sum", "closest"])
@pytest.mark.parametrize("influence", ["linear", "constant", "gaussian"])
@pytest.mark.parametrize("num_points", [1, 16, 17, 64])
@pytest.mark.parametrize("deformable", [False, True], ids=["rigid", "deformable"])
def test_every_rule_and_number_of_kernel_points(run, influence, aggregation, num_points, deformable):
    args = *convolution(torch.float32, 16, num_points, deformable), influence, aggregation
    assert_same_to_rounding(run(with_gradients, *args), with_gradients(*args), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_that_start_anywhere(run, dtype):
    """Rows that no vector may be read from, because the tensor starts in the middle of one."""
    geometry, (features, weights) = convolution(dtype, 16)

    def convolve(geometry, shifted, weights):
        return with_gradients(geometry, [shifted[1:].view(-1, 16), weights])

    shifted = torch.cat([features.new_zeros(1), features.flatten()])
    expected = with_gradients(geometry, [features, weights])
    assert_same_to_rounding(run(convolve, geometry, shifted, weights), expected, dtype)


def test_float64_coordinates(run):
    """Coordinates in float64 far from the origin, features in float32."""
    (queries, supports, nb, kernel), wanted = convolution(torch.float32, 16, deformable=True)
    far = torch.tensor([2.0**22, -(2.0**21), 0], dtype=torch.float64)
    geometry = [queries + far, supports + far, nb, kernel]
    results, expected = run(with_gradients, geometry, wanted), with_gradients(geometry, wanted)
    assert_same_to_rounding(results[:3], expected[:3], torch.float32)
    assert_same_to_rounding(results[3:], expected[3:], torch.float32)


def pooled(features, nb):
    features = features.detach().requires_grad_()
    out = max_pool(features, nb)
    weighting = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out)
    return [out.detach(), *torch.autograd.grad(out, features, weighting)]


@pytest.mark.parametrize("channels", [1, 6, 16, 40, 520])
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool(run, dtype, channels):
    _, supports, nb = points()
    features = torch.randn(len(supports), channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    (out, grad), (expected, expected_grad) = run(pooled, features, nb), pooled(features, nb)
    assert torch.equal(out, expected)
    assert_same_to_rounding([grad], [expected_grad], dtype)


def cloud_with_features(channels, dtype, random):
    """Two samples of points, and features of theirs."""
    cloud, offsets = torch.rand(200, 3, generator=random), torch.tensor([0, 120, 200])
    return cloud, offsets, torch.randn(200, channels, generator=random).to(dtype)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_convolution(run, dtype, channels):
    random = torch.Generator().manual_seed(0)
    cloud, offsets, features = cloud_with_features(channels, dtype, random)
    weights = (torch.randn(27, channels, 8, generator=random) / 9).to(dtype)

    def convolve(cloud, offsets, features, weights):
        cells = voxelize(cloud, offsets, 0.2)
        pairs = kernel_map(cells.coords, cells.offsets, cells.coords, cells.offsets, 3)
        features, weights = features.detach().requires_grad_(), weights.detach().requires_grad_()
        out = sparse_conv(scatter_mean(features, cells.inverse, len(cells.coords)), weights, pairs)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (features, weights))]

    args = cloud, offsets, features, weights
    assert_same_to_rounding(run(convolve, *args), convolve(*args), dtype)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_means_and_interpolation(run, dtype, channels):
    """Kernel maps, their neighbourhoods and trilinear weights, and what is gathered through them."""
    random = torch.Generator().manual_seed(0)
    cloud, offsets, features = cloud_with_features(channels, dtype, random)

    def pool_and_return(cloud, offsets, features):
        cells = voxelize(cloud, offsets, 0.1)
        coarse = stride_coords(cells.coords, cells.offsets, 2)
        nb = kernel_map(cells.coords, cells.offsets, coarse.coords, coarse.offsets, (2, 3, 2)).neighbors
        features = features.detach().requires_grad_()
        means = mean_pool(scatter_mean(features, cells.inverse, len(cells.coords)), nb)
        out = interpolate(means, trilinear(cloud, offsets, coarse.coords, coarse.offsets, 0.1, 2))
        return [out.detach(), *torch.autograd.grad(out.square().sum(), features)]

    args = cloud, offsets, features
    assert_same_to_rounding(run(pool_and_return, *args), pool_and_return(*args), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_geometry_is_the_same_on_every_device(run, dtype):
    """Neighbours, nearest points and deformed kernel points' neighbours, bit for bit; cells to rounding."""
    random = torch.Generator().manual_seed(0)
    cloud = torch.rand(150, 3, generator=random).to(dtype)
    cloud[7] = cloud[8]
    offsets = torch.tensor([0, 90, 90, 150])

    def search(cloud, offsets):
        sub = grid_subsample(cloud, offsets, 0.3)
        nb = radius_search(cloud, offsets, sub.points, sub.offsets, 0.5)
        return [*nearest(sub.points, sub.offsets, cloud, offsets), sub.offsets, sub.inverse, nb.indices, nb.splits]

    for result, expected in zip(run(search, cloud, offsets), search(cloud, offsets), strict=True):
        assert torch.equal(result, expected)

    queries, supports, nb = points()
    offsets = 0.2 * torch.randn(len(queries), 15, 3, generator=random)
    args = queries, supports, nb, torch.zeros(15, 3), offsets, 0.3
    torch.testing.assert_close(run(fitting_loss, *args), fitting_loss(*args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_on_every_run(run, dtype):
    args = convolution(dtype, 40, deformable=True)
    for first, second in zip(run(with_gradients, *args), run(with_gradients, *args), strict=True):
        assert torch.equal(first, second)


def test_a_rigid_kernel_is_a_deformable_one_at_rest(run):
    """Offsets of zero and no modulation give the same bits as kernel points that all queries share."""
    geometry, (features, weights) = convolution(torch.bfloat16, 32)

    def both(geometry, features, weights, offsets):
        queries, supports, nb, kernel = geometry
        args = features, queries, supports, nb, kernel, weights
        return kpconv(*args, extent=0.3), deformable_kpconv(*args, offsets, extent=0.3)

    rigid, deformable = run(both, geometry, features, weights, torch.zeros(len(geometry[0]), 15, 3))
    assert torch.equal(rigid, deformable)


def test_autocast(run):
    geometry, wanted = convolution(torch.float32, 32, deformable=True)

    def step(geometry, wanted):
        wanted = [t.detach().requires_grad_() for t in wanted]
        features, weights, *deformation = wanted
        queries, supports, nb, kernel = geometry
        with torch.autocast(features.device.type, torch.bfloat16):
            out = deformable_kpconv(features, queries, supports, nb, kernel, weights, *deformation, extent=0.3)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), wanted)]

    results = run(step, geometry, wanted)
    assert [t.dtype for t in results] == [torch.bfloat16] + 4 * [torch.float32]
    assert_same_to_rounding(results, step(geometry, wanted), torch.bfloat16)


def everything(geometry, wanted, features):
    return [*with_gradients(geometry, wanted), *with_gradients(geometry, wanted[:2]), *pooled(features, geometry[2])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_splits_beyond_the_indices_are_clamped(run, dtype):
    """Splits that begin before the indices and end after them give the results of clamped ones, bit for bit."""
    (queries, supports, nb, kernel), wanted = convolution(dtype, 16, deformable=True)
    indices = nb.indices[100:-100]  # with rows of supports on both sides, that kernels would sum if they read them
    splits = nb.splits - 100
    clamped = splits.clamp(0, len(indices))
    assert not torch.equal(splits, clamped)

    def results(indices, splits):
        geometry = [queries, supports, Neighbors(indices, splits, len(supports)), kernel]
        return [*run(everything, geometry, wanted, wanted[0]), run(fitting_loss, *geometry, wanted[2], 0.3)]

    for result, expected in zip(results(indices, splits), results(indices, clamped), strict=True):
        assert torch.equal(result, expected)


def test_overlapping_splits_are_transposed_within_bounds(run):
    """Pairs beyond those that were counted are dropped, not written after the end."""
    indices = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    memory = torch.full((8,), -1, dtype=torch.int32)

    def transpose(indices, splits, places, bounds, memory):
        _native.call("kp_transpose_fill", indices, indices, 4, splits, 3, 2, 1, places, bounds, memory[:4])
        return memory

    splits, bounds = torch.tensor([0, 4, 0, 4]), torch.tensor([0, 2, 4])
    out = run(transpose, indices, splits, torch.tensor([0, 2]), bounds, memory)
    assert torch.isin(out[:4], torch.tensor([0, 2])).all() and (out[4:] == -1).all()


# ---- on a GPU only


def example(dtype=torch.float32):
    """Arguments of `everything`, on the GPU, more than one chunk of aggregates long; and the results."""
    geometry, wanted = convolution(dtype, 64, deformable=True, num_queries=20000, num_supports=3000, radius=0.15)
    args = moved("cuda", [geometry, wanted, wanted[0]])
    args[0][2].transposed  # noqa: B018  computed once, before a graph is captured
    return args, everything(*args)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_replays_with_new_values(dtype):
    """Forward and backward never wait for the GPU: captured in a graph, they give the same bits again."""
    args, _ = example(dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        everything(*args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(*args)
    with torch.no_grad():
        for tensor in [*args[1], args[2]]:
            tensor.mul_(0.5)
    graph.replay()
    for result, expected in zip(captured, everything(*args), strict=True):
        assert torch.equal(result, expected)


@needs_gpu
def test_another_stream():
    """Operators run on the current stream: they see what it has just written, and not too early."""
    args, expected = example()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles
        copies = [[t.clone() for t in args[1]], args[2].clone()]
        results = everything(args[0], *copies)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(result, value) for result, value in zip(results, expected, strict=True))


@pytest.mark.skipif(not HAS_GPU or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device():
    """Tensors decide on the device, not the current one."""
    args, expected = example()
    results = everything(*moved("cuda:1", args))
    assert all(result.device.index == 1 for result in results) and torch.cuda.current_device() == 0
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), value.cpu())
