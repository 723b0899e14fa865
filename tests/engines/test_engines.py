"""Every engine of sparse convolutions against the reference operators, and against one another."""

import pytest
import torch

import kpconv_ops
from dsp_sparse import UserError
from dsp_sparse.backbones.engines import ENGINES, build_engine
from dsp_sparse.testing import devices, engines
from kpconv_ops import reference

LENGTHS = (40, 0, 1, 25)
KERNELS = [1, 2, 3, 4, 5, (3, 1, 2), (1, 2, 5)]
ALL = [
    pytest.param(name, marks=[] if name in engines() else pytest.mark.skip(reason=f"{engine.package} not installed"))
    for name, engine in ENGINES.items()
]


@pytest.fixture(params=ALL)
def engine(request):
    return build_engine(request.param)


@pytest.fixture(params=devices())
def device(request, engine):
    if request.param == "cuda" and engine.package == "MinkowskiEngine":
        from dsp_sparse.backbones.engines.minkowski import load

        if not load().is_cuda_available():
            pytest.skip("this MinkowskiEngine was built for the CPU only")
    return request.param


def random_points(lengths=LENGTHS, size=6, shift=(0, 0, 0), device="cpu", seed=0):
    """Packed float64 points in cubes of `size` voxels of edge 1, the origin in their midst, and their offsets."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(sum(lengths), 3, generator=generator, dtype=torch.float64) - 0.5) * size
    points += torch.tensor(shift, dtype=torch.float64)
    return points.to(device), torch.tensor([0, *lengths]).cumsum(0).to(device)


def random_features(rows, channels, dtype=torch.float64, device="cpu", seed=1):
    features = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return features.to(dtype).to(device).requires_grad_()


def random_kernel(taps, inputs, outputs, dtype=torch.float64, device="cpu", seed=2):
    return random_features(taps * inputs, outputs, dtype, device, seed).detach().view(taps, inputs, outputs)


def taps_of(kernel_size) -> int:
    return kernel_size**3 if isinstance(kernel_size, int) else kernel_size[0] * kernel_size[1] * kernel_size[2]


def reference_map(source, target, kernel_size, dilation=1):
    coordinates = (t.cpu() for t in (source.coords, source.offsets, target.coords, target.offsets))
    return reference.kernel_map(*coordinates, kernel_size, dilation * source.stride)


def check(operator, expected, *arguments):
    """Values and gradients of `operator` are those of `expected`, in float64."""
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    twins = [argument.detach().cpu().requires_grad_() for argument in arguments]
    ours, theirs = operator(*arguments), expected(*twins)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-10, atol=1e-10)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(3), dtype=theirs.dtype)
    gradients = torch.autograd.grad((ours * weights.to(ours.device)).sum(), arguments)
    for gradient, twin in zip(gradients, torch.autograd.grad((theirs * weights).sum(), twins), strict=True):
        torch.testing.assert_close(gradient.cpu(), twin, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------ coordinates


@pytest.mark.parametrize("stride", [2, 3])
def test_coordinates(engine, device, stride):
    """Voxels and coarser voxels are the reference's, in its order, whatever the engine's own order is."""
    points, offsets = random_points(device=device)
    grid, inverse = engine.quantize(points, offsets, 0.8)
    voxels = reference.voxelize(points.cpu(), offsets.cpu(), 0.8)
    assert grid.coords.amin() < 0
    for ours, theirs in zip((grid.coords, grid.offsets, inverse), voxels, strict=True):
        assert torch.equal(ours.cpu(), theirs)
    coarse = engine.downsample(engine.downsample(grid, stride))
    expected = reference.stride_coords(voxels.coords, voxels.offsets, 2 * stride)
    assert (coarse.stride, grid.stride) == (2 * stride, 1)
    assert torch.equal(coarse.coords.cpu(), expected.coords) and torch.equal(coarse.offsets.cpu(), expected.offsets)


def test_average(engine, device):
    points, offsets = random_points(device=device)
    grid, inverse = engine.quantize(points, offsets, 2.0)
    assert len(grid.coords) < len(points)
    check(
        lambda x: engine.average(x, inverse, grid),
        lambda x: reference.scatter_mean(x, inverse.cpu(), len(grid.coords)),
        random_features(len(points), 3, device=device),
    )


# ------------------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1), (3, 3)], ids=str)
def test_convolutions(engine, device, kernel_size, stride, dilation):
    """Convolution and transposed convolution of any kernel size, dilation and stride, with both gradients; along one
    kernel map, on a grid that is itself strided."""
    points, offsets = random_points(device=device)
    grid = engine.downsample(engine.quantize(points, offsets, 0.5)[0])
    target = engine.downsample(grid, stride) if stride > 1 else grid
    kernel_map, pairs = (build(grid, target, kernel_size, dilation) for build in (engine.kernel_map, reference_map))
    features = random_features(len(grid.coords), 3, device=device)
    kernel = random_kernel(taps_of(kernel_size), 3, 4, device=device)
    check(
        lambda x, w: engine.conv(x, w, kernel_map),
        lambda x, w: reference.sparse_conv(x, w, pairs),
        features,
        kernel,
    )
    back = reference.KernelMap(reference.transpose_map(pairs.rows, pairs.num_in), len(target.coords))
    check(
        lambda x, w: engine.conv_transposed(x, w, kernel_map),
        lambda x, w: reference.sparse_conv(x, w, back),
        random_features(len(target.coords), 3, device=device),
        kernel,
    )


def test_transposed_convolution_alone(engine, device):
    """A transposed convolution does not need the convolution before it."""
    points, offsets = random_points(device=device)
    grid = engine.quantize(points, offsets, 1.0)[0]
    coarse = engine.downsample(grid)
    kernel_map, pairs = engine.kernel_map(grid, coarse, 2), reference_map(grid, coarse, 2)
    back = reference.KernelMap(reference.transpose_map(pairs.rows, pairs.num_in), len(coarse.coords))
    check(
        lambda x, w: engine.conv_transposed(x, w, kernel_map),
        lambda x, w: reference.sparse_conv(x, w, back),
        random_features(len(coarse.coords), 2, device=device),
        random_kernel(8, 2, 5, device=device),
    )


@pytest.mark.parametrize("shift", [(2**30, -(2**30), 5), (-(2**31) + 2**21, 0, 2**31 - 2**21)], ids=str)
def test_large_coordinates(engine, device, shift):
    """Kernel maps depend on differences of coordinates alone, far from the origin too."""
    near, far = (engine.quantize(*random_points(shift=by, device=device), 1.0)[0] for by in ((0, 0, 0), shift))
    features, kernel = random_features(len(near.coords), 3, device=device), random_kernel(27, 3, 4, device=device)
    assert torch.equal(far.coords - near.coords, torch.tensor(shift, device=device).expand_as(near.coords))
    results = [engine.conv(features, kernel, engine.kernel_map(grid, grid, 3)) for grid in (near, far)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("mode", ["max", "mean"])
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pooling(engine, device, kernel_size, stride, mode):
    """Maximum and mean over the occupied taps, zeros and no gradient where no tap is occupied."""
    points, offsets = random_points(device=device)
    grid = engine.quantize(points, offsets, 1.0)[0]
    target = engine.downsample(grid, stride) if stride > 1 else grid
    kernel_map, pairs = (build(grid, target, kernel_size) for build in (engine.kernel_map, reference_map))
    occupied = (pairs.rows >= 0).T
    if (kernel_size, stride) == (1, 2):
        assert 0 < occupied.any(dim=1).sum() < len(target.coords), "some target voxels have nothing to pool"

    def expected(x):
        pooled = [x[rows[taken].long()] for rows, taken in zip(pairs.rows.T, occupied, strict=True)]
        reduced = [rows.amax(dim=0) if mode == "max" else rows.mean(dim=0) for rows in pooled if len(rows)]
        reduced = iter(reduced)
        return torch.stack([next(reduced) if len(rows) else x.new_zeros(x.shape[1]) for rows in pooled])

    check(lambda x: engine.pool(x, kernel_map, mode), expected, random_features(len(grid.coords), 3, device=device))


# ------------------------------------------------------------------------------------------------- few and no points


@pytest.mark.parametrize("lengths", [(), (0,), (1,), (0, 0), (0, 3, 0), (1, 0, 1)], ids=str)
def test_few_points(engine, device, lengths):
    """Empty samples, one point or none: results of the right shape, and a gradient for every argument."""
    grid, inverse = engine.quantize(*random_points(lengths, device=device), 1.0)
    coarse = engine.downsample(grid)
    down, inner = engine.kernel_map(grid, coarse, 2), engine.kernel_map(grid, grid, 3)
    features = random_features(sum(lengths), 3, torch.float32, device)
    first, second, third = (
        random_kernel(taps, *widths, torch.float32, device).requires_grad_()
        for taps, widths in ((27, (3, 4)), (8, (4, 5)), (8, (5, 6)))
    )
    x = engine.conv(engine.average(features, inverse, grid), first, inner)
    y = engine.conv(x, second, down)
    z = engine.conv_transposed(y, third, down)
    pooled = [engine.pool(x, down, mode) for mode in ("max", "mean")]
    out = engine.devoxelize(z, engine.nearest(inverse, grid))
    assert [t.shape for t in (x, y, z)] == [(len(grid.coords), 4), (len(coarse.coords), 5), (len(grid.coords), 6)]
    assert [t.shape for t in (*pooled, out)] == [(len(coarse.coords), 4)] * 2 + [(sum(lengths), 6)]
    gradients = torch.autograd.grad(out.sum() + sum(t.sum() for t in pooled), [features, first, second, third])
    assert all(t.isfinite().all() for t in (out, *pooled, *gradients))
    assert all(gradient.any() for gradient in gradients) == (sum(lengths) > 0)


# ------------------------------------------------------------------------------------------------------ devoxelising


def test_nearest(engine, device):
    """Every point takes the features of its own voxel."""
    points, offsets = random_points(device=device)
    grid, inverse = engine.quantize(points, offsets, 2.0)
    onto = engine.nearest(inverse, grid)
    check(
        lambda x: engine.devoxelize(x, onto),
        lambda x: x[inverse.cpu()],
        random_features(len(grid.coords), 3, device=device),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_trilinear(engine, device, stride):
    """Points blend the voxels around them, of any stride, as the reference does."""
    points, offsets = random_points(device=device)
    grid = engine.quantize(points, offsets, 0.9)[0]
    if stride > 1:
        grid = engine.downsample(grid, stride)
    onto = engine.trilinear(points, offsets, grid, 0.9)
    weighted = reference.trilinear(points.cpu(), offsets.cpu(), grid.coords.cpu(), grid.offsets.cpu(), 0.9, stride)
    expected = kpconv_ops.Interpolation(*weighted, len(grid.coords))
    check(
        lambda x: engine.devoxelize(x, onto),
        lambda x: reference.interpolate(x, expected),
        random_features(len(grid.coords), 3, device=device),
    )


# ------------------------------------------------------------------------------------------- precision, compilation


@pytest.mark.parametrize(
    ("kind", "autocast"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.float16, False), (torch.float32, True)],
    ids=str,
)
def test_precision(engine, device, kind, autocast):
    """Results have the type of the features, or of autocast; gradients that of their argument; both are as exact."""
    points, offsets = random_points(device=device)
    grid = engine.quantize(points, offsets, 1.0)[0]
    kernel_map = engine.kernel_map(grid, grid, 3)
    result_type = torch.bfloat16 if autocast else kind
    features = random_features(len(grid.coords), 8, kind, device)
    kernel = random_kernel(27, 8, 4, kind, device).requires_grad_()
    twins = [argument.detach().double().requires_grad_() for argument in (features, kernel)]
    for operator in (engine.conv, engine.conv_transposed):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            out = operator(features, kernel, kernel_map)
        expected = operator(*twins, kernel_map)
        gradients = torch.autograd.grad(out.float().square().sum(), [features, kernel])
        exact = torch.autograd.grad(expected.square().sum(), twins)
        assert out.dtype == result_type and all(gradient.dtype == kind for gradient in gradients)
        tolerance = 1e-5 if result_type == torch.float32 else 2e-2
        for ours, theirs in ((out, expected), *zip(gradients, exact, strict=True)):
            assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_pooling_keeps_the_type(engine, device, mode):
    points, offsets = random_points(device=device)
    grid = engine.quantize(points, offsets, 1.0)[0]
    kernel_map = engine.kernel_map(grid, engine.downsample(grid), 2)
    features = random_features(len(grid.coords), 3, torch.bfloat16, device)
    pooled = engine.pool(features, kernel_map, mode)
    expected = engine.pool(features.double(), kernel_map, mode)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.double(), expected, rtol=1e-2, atol=1e-2)


def test_compile(engine, device):
    """Compiled code gives the same values and gradients."""
    points, offsets = random_points(device=device)
    grid = engine.quantize(points, offsets, 1.0)[0]
    coarse = engine.downsample(grid)
    down, inner = engine.kernel_map(grid, coarse, 2), engine.kernel_map(grid, grid, 3)

    def network(x, first, second):
        y = torch.relu(engine.conv(x, first, inner))
        return engine.conv_transposed(engine.pool(y, down, "max") * 2, second, down)

    arguments = [
        random_features(len(grid.coords), 3, device=device),
        random_kernel(27, 3, 4, device=device).requires_grad_(),
        random_kernel(8, 4, 2, device=device).requires_grad_(),
    ]
    expected, out = network(*arguments), torch.compile(network, backend="aot_eager")(*arguments)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(result.square().sum(), arguments) for result in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------ parity


@pytest.mark.skipif(len(engines()) < 2, reason="only the native engine is installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_engines_agree(dtype):
    """On a cloud of a few thousand voxels all engines give the same, operator by operator, gradients included."""
    points, offsets = random_points((4000, 3000), size=20)
    results = {}
    for name in engines():
        engine = build_engine(name)
        grid, inverse = engine.quantize(points, offsets, 1.0)
        coarse = engine.downsample(grid)
        down, inner = engine.kernel_map(grid, coarse, 2), engine.kernel_map(grid, grid, 3, dilation=2)
        x = random_features(len(points), 16, dtype)
        first, second = (
            random_kernel(27, 16, 24, dtype).requires_grad_(),
            random_kernel(8, 24, 8, dtype).requires_grad_(),
        )
        voxels = engine.average(x, inverse, grid)
        conv = engine.conv(voxels, first, inner)
        strided = engine.conv(conv, second, down)
        pooled = [engine.pool(conv, down, mode) for mode in ("max", "mean")]
        back = engine.conv_transposed(strided, second.mT.contiguous(), down)
        out = engine.devoxelize(back, engine.nearest(inverse, grid))
        out = out + engine.devoxelize(back, engine.trilinear(points, offsets, grid, 1.0))
        gradients = torch.autograd.grad(
            out.square().mean() + sum(p.square().mean() for p in pooled), [x, first, second]
        )
        results[name] = [grid.coords, coarse.coords, inverse, voxels, conv, strided, *pooled, back, out, *gradients]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for name, values in results.items():
        for ours, theirs in zip(values, results["native"], strict=True):
            assert len(ours) > 0, name
            torch.testing.assert_close(
                ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.detach().abs().max())
            )


# ------------------------------------------------------------------------------------------------------------ errors


def test_unknown_engine():
    with pytest.raises(UserError, match="engine must be one of native, minkowski; got 'torchsparse'"):
        build_engine("torchsparse")


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "error", "message"),
    [
        (0, 1, ValueError, "kernel_size must be at least 1"),
        ((3, 0, 3), 1, ValueError, "kernel_size must be at least 1"),
        ((3, 3), 1, ValueError, "kernel_size must be a size or three"),
        (2.5, 1, TypeError, "kernel_size must be an integer"),
        (3, 0, ValueError, "dilation must be at least 1"),
        (3, 1.5, TypeError, "dilation must be an integer"),
    ],
)
def test_kernels_there_are_not(engine, device, kernel_size, dilation, error, message):
    grid = engine.quantize(*random_points(device=device), 1.0)[0]
    with pytest.raises(error, match=message):
        engine.kernel_map(grid, grid, kernel_size, dilation)


@pytest.mark.parametrize("lengths", [LENGTHS, (0,)], ids=str)
def test_arguments_that_do_not_fit(engine, device, lengths):
    """Every engine refuses features and kernels of other shapes or dtypes than the map's and one another's, before its
    library reads outside of them; with no voxel too."""
    grid = engine.quantize(*random_points(lengths, device=device), 1.0)[0]
    coarse = engine.downsample(grid)
    kernel_map = engine.kernel_map(grid, coarse, 3)
    kernel = random_kernel(27, 3, 4, device=device)
    for operator, rows in ((engine.conv, len(grid.coords)), (engine.conv_transposed, len(coarse.coords))):
        features = random_features(rows, 3, device=device)
        assert operator(features, kernel, kernel_map).shape[1] == 4
        for x, w in (
            (features, kernel[:8]),
            (features, kernel[0]),
            (features, kernel[:, :2]),
            (random_features(rows + 1, 3, device=device), kernel),
            (features[:, 0], kernel),
        ):
            with pytest.raises(ValueError, match="must have shape"):
                operator(x, w, kernel_map)
        for x, w in ((features, kernel.float()), (features.float(), kernel), (features.long(), kernel.long())):
            with pytest.raises(TypeError, match=r"must be .*float"):
                operator(x, w, kernel_map)
        with pytest.raises(TypeError, match="must be a tensor, got list"):
            operator(features, [1.0], kernel_map)
    for features in (random_features(len(grid.coords) + 1, 3, device=device), torch.ones(len(grid.coords))):
        with pytest.raises(ValueError, match=r"shape|rows|supports"):
            engine.pool(features, kernel_map, "max")
    features = random_features(len(grid.coords), 3, device=device)
    with pytest.raises(TypeError, match=r"features must be .*float"):
        engine.pool(features.long(), kernel_map, "mean")
    with pytest.raises(ValueError, match="mode must be one of max, mean, got 'sum'"):
        engine.pool(features, kernel_map, "sum")


def test_voxels_too_small_to_number(engine, device):
    """Voxels so small that 64 bits (or the engine's 32) do not number them are an error that names `voxel_size`."""
    points, offsets = random_points(device=device)
    with pytest.raises(UserError, match=r"voxel_size 1e-19 does not fit the coordinates: .*voxels"):
        engine.quantize(points, offsets, 1e-19)
