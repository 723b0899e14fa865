"""MinkUNet: MinkowskiEngine's names and shapes, voxels in and out, and the whole network against dense convolutions and
against a network of MinkowskiEngine's own modules."""

import pytest
import torch
import torch.nn.functional as F

from dsp_sparse import Ragged, UserError, build_backbone
from dsp_sparse.backbones.engines import minkowski
from dsp_sparse.backbones.minkunet_config import LAYERS, PLANES
from dsp_sparse.testing import engines, random_ragged, tiny_backbone

# Written down anew, from the public implementation's names: depth, planes of the eight stages.
VARIANTS = {
    "14A": ((1, 1, 1, 1, 1, 1, 1, 1), (32, 64, 128, 256, 128, 128, 96, 96)),
    "14B": ((1, 1, 1, 1, 1, 1, 1, 1), (32, 64, 128, 256, 128, 128, 128, 128)),
    "14C": ((1, 1, 1, 1, 1, 1, 1, 1), (32, 64, 128, 256, 192, 192, 128, 128)),
    "14D": ((1, 1, 1, 1, 1, 1, 1, 1), (32, 64, 128, 256, 384, 384, 384, 384)),
    "18A": ((2, 2, 2, 2, 2, 2, 2, 2), (32, 64, 128, 256, 128, 128, 96, 96)),
    "18B": ((2, 2, 2, 2, 2, 2, 2, 2), (32, 64, 128, 256, 128, 128, 128, 128)),
    "18D": ((2, 2, 2, 2, 2, 2, 2, 2), (32, 64, 128, 256, 384, 384, 384, 384)),
    "34A": ((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 64, 64)),
    "34B": ((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 64, 32)),
    "34C": ((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 96, 96)),
    "50": ((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 96, 96)),
    "101": ((2, 3, 4, 23, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 96, 96)),
}
DOWN = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
UP = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
NARROW = (4, 5, 6, 7, 6, 5, 4, 3)


def bottleneck(variant) -> bool:
    return variant in ("50", "101")


# ------------------------------------------------------------------------------------------------- names and shapes


def minkowski_shapes(variant, in_channels, num_classes, stem=5) -> dict[str, tuple]:
    """Names and shapes of the parameters of a MinkowskiEngine checkpoint."""
    layers, planes = VARIANTS[variant]
    expansion = 4 if bottleneck(variant) else 1
    shapes = {}

    def norm(key, width):
        shapes.update({f"{key}.bn.weight": (width,), f"{key}.bn.bias": (width,)})
        shapes.update({f"{key}.bn.running_mean": (width,), f"{key}.bn.running_var": (width,)})
        shapes[f"{key}.bn.num_batches_tracked"] = ()

    def stage(key, count, width_in, width):
        for block in range(count):
            first = width_in if block == 0 else width * expansion
            if expansion == 1:
                convs = [(27, first, width), (27, width, width)]
            else:
                convs = [(first, width), (27, width, width), (width, 4 * width)]
            for number, shape in enumerate(convs, start=1):
                shapes[f"{key}.{block}.conv{number}.kernel"] = shape
                norm(f"{key}.{block}.norm{number}", shape[-1])
        if width_in != width * expansion:
            shapes[f"{key}.0.downsample.0.kernel"] = (width_in, width * expansion)
            norm(f"{key}.0.downsample.1", width * expansion)

    *_, e, f, g, h = planes
    wide = [width * expansion for width in planes]
    shapes["conv0p1s1.kernel"] = (stem**3, in_channels, 32)
    for name, width in zip(DOWN, (32, *wide), strict=False):
        shapes[f"{name}.kernel"] = (8, width, width)
    for name, width_in, width in zip(UP, wide[3:], (e, f, g, h), strict=False):
        shapes[f"{name}.kernel"] = (8, width_in, width)
    for number, width in enumerate((32, 32, *wide[:3])):
        norm(f"bn{number}", width)
    for number, width in enumerate((e, f, g, h), start=4):
        norm(f"bntr{number}", width)
    widths_in = (32, *wide[:3], e + wide[2], f + wide[1], g + wide[0], h + 32)
    for number, (count, width_in, width) in enumerate(zip(layers, widths_in, planes, strict=True), start=1):
        stage(f"block{number}", count, width_in, width)
    shapes["final.kernel"] = (wide[7], num_classes)
    shapes["final.bias"] = (1, num_classes)
    return shapes


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_minkowski_engines(variant):
    """A checkpoint of MinkowskiEngine's MinkUNet fits `load_state_dict(strict=True)`."""
    with torch.device("meta"):
        net = build_backbone("minkunet", 3, 20, variant=variant)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes == minkowski_shapes(variant, 3, 20)


def test_every_variant_is_tested():
    assert set(VARIANTS) == set(PLANES) and {variant.rstrip("ABCD") for variant in VARIANTS} == set(LAYERS)


def test_stem_of_another_size():
    """Res16UNet checkpoints have a first convolution of 3³ taps."""
    with torch.device("meta"):
        net = build_backbone("minkunet", 3, 20, variant="34C", stem_kernel=3)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == minkowski_shapes("34C", 3, 20, 3)


def test_size_of_34c():
    """MinkUNet34C for ScanNet, colours in and 20 classes out, has 37.86 million parameters."""
    with torch.device("meta"):
        net = build_backbone("minkunet", 3, 20)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 2) == 37.86


# ------------------------------------------------------------------------------------------------ dense convolutions


def dense_oracle(weights, layers, volume) -> torch.Tensor:
    """MinkUNet in evaluation mode, as dense convolutions of a full `[C, X, Y, Z]` volume."""

    def conv(x, key, **options):
        kernel = weights[f"{key}.kernel"]
        if kernel.dim() == 2:
            return torch.einsum("bcxyz,cd->bdxyz", x, kernel)
        size = round(len(kernel) ** (1 / 3))
        kernel = kernel.reshape(size, size, size, *kernel.shape[1:]).permute(4, 3, 2, 1, 0)
        return F.conv3d(x, kernel, **({"padding": size // 2} | options))

    def conv_transposed(x, key):
        kernel = weights[f"{key}.kernel"]
        kernel = kernel.reshape(2, 2, 2, *kernel.shape[1:]).permute(3, 4, 2, 1, 0)
        return F.conv_transpose3d(x, kernel, stride=2)

    def norm(x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{key}.bn.{name}"] for name in names))

    def stage(x, key, count):
        for block in range(count):
            name = f"{key}.{block}"
            y = F.relu(norm(conv(x, f"{name}.conv1"), f"{name}.norm1"))
            y = norm(conv(y, f"{name}.conv2"), f"{name}.norm2")
            if f"{name}.conv3.kernel" in weights:
                y = norm(conv(F.relu(y), f"{name}.conv3"), f"{name}.norm3")
            if f"{name}.downsample.0.kernel" in weights:
                x = norm(conv(x, f"{name}.downsample.0"), f"{name}.downsample.1")
            x = F.relu(y + x)
        return x

    x = F.relu(norm(conv(volume[None], "conv0p1s1"), "bn0"))
    skips = []
    for number, name in enumerate(DOWN, start=1):
        skips.append(x)
        x = F.relu(norm(conv(x, name, stride=2, padding=0), f"bn{number}"))
        x = stage(x, f"block{number}", layers[number - 1])
    for number, name in enumerate(UP, start=4):
        x = F.relu(norm(conv_transposed(x, name), f"bntr{number}"))
        x = stage(torch.cat([x, skips.pop()], dim=1), f"block{number + 1}", layers[number])
    return (conv(x, "final") + weights["final.bias"].view(1, -1, 1, 1, 1))[0]


@pytest.mark.parametrize(("variant", "stem"), [*((variant, 5) for variant in VARIANTS), ("18A", 3)], ids=str)
def test_network_against_dense_convolutions(variant, stem):
    """On a fully occupied grid the network's logits and gradients are those of dense convolutions with its kernels.

    Depths are the variant's; widths are narrow, and differ from stage to stage.
    """
    options = {"planes": NARROW, "layers": None, "voxel_size": 0.25, "stem_kernel": stem}
    net = tiny_backbone("minkunet", 3, 4, variant=variant, **options).double()
    with torch.no_grad():
        net.train()(random_ragged((300, 100), 3, size=4.0, seed=2, dtype=torch.float64))
    net.eval()
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(3, 16, 16, 16, generator=generator, dtype=torch.float64)
    # A batch of the volume and something else; the volume's points in random order, one a voxel, off the centre.
    index = torch.cartesian_prod(*[torch.arange(16)] * 3)[torch.randperm(16**3, generator=generator)]
    coord = (index + 0.1 + 0.8 * torch.rand(16**3, 3, generator=generator, dtype=torch.float64)) * 0.25 - 4.0
    feat = volume[:, index[:, 0], index[:, 1], index[:, 2]].T
    other = random_ragged((50,), 3, seed=3, dtype=torch.float64)
    batch = Ragged.pack([(other.feat, other.coord), (feat, coord)])
    logits = net(batch)[50:]
    weights = net.state_dict() | dict(net.named_parameters())
    expected = dense_oracle(weights, VARIANTS[variant][0], volume)[:, index[:, 0], index[:, 1], index[:, 2]].T
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))
    scalar = torch.randn(4096, 4, generator=generator, dtype=torch.float64)
    parameters = list(net.parameters())
    gradients = [torch.autograd.grad((scalar * out).sum(), parameters) for out in (logits, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


# ------------------------------------------------------------------------------------- MinkowskiEngine's own modules


def minkowski_network(me, variant, planes, in_channels, num_classes) -> torch.nn.Module:
    """MinkUNet of MinkowskiEngine's convolutions, normalisations and residual blocks."""
    from MinkowskiEngine.modules.resnet_block import BasicBlock, Bottleneck

    layers, block = VARIANTS[variant][0], Bottleneck if bottleneck(variant) else BasicBlock

    def conv(inputs, outputs, size, stride=1, **options):
        return me.MinkowskiConvolution(inputs, outputs, kernel_size=size, stride=stride, dimension=3, **options)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0p1s1, self.bn0 = conv(in_channels, 32, 5), me.MinkowskiBatchNorm(32)
            width, skips = 32, [32]
            for stage, name in enumerate(DOWN):
                setattr(self, name, conv(width, width, 2, stride=2))
                setattr(self, f"bn{stage + 1}", me.MinkowskiBatchNorm(width))
                width = self.add_stage(stage, width)
                skips.append(width)
            skips.pop()
            for stage, name in enumerate(UP, start=4):
                up = me.MinkowskiConvolutionTranspose(width, planes[stage], kernel_size=2, stride=2, dimension=3)
                setattr(self, name, up)
                setattr(self, f"bntr{stage}", me.MinkowskiBatchNorm(planes[stage]))
                width = self.add_stage(stage, planes[stage] + skips.pop())
            self.final = conv(width, num_classes, 1, bias=True)
            self.relu = me.MinkowskiReLU()

        def add_stage(self, stage, width):
            blocks, wide = [], planes[stage] * block.expansion
            for _ in range(layers[stage]):
                change = None
                if width != wide:
                    change = torch.nn.Sequential(conv(width, wide, 1), me.MinkowskiBatchNorm(wide))
                blocks.append(block(width, planes[stage], downsample=change, dimension=3))
                width = wide
            setattr(self, f"block{stage + 1}", torch.nn.Sequential(*blocks))
            return width

        def forward(self, x):
            x = self.relu(self.bn0(self.conv0p1s1(x)))
            skips = []
            for stage, name in enumerate(DOWN, start=1):
                skips.append(x)
                x = self.relu(getattr(self, f"bn{stage}")(getattr(self, name)(x)))
                x = getattr(self, f"block{stage}")(x)
            for stage, name in enumerate(UP, start=4):
                x = self.relu(getattr(self, f"bntr{stage}")(getattr(self, name)(x)))
                x = getattr(self, f"block{stage + 1}")(me.cat(x, skips.pop()))
            return self.final(x)

    return Network()


@pytest.mark.skipif("minkowski" not in engines(), reason="MinkowskiEngine not installed")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["14A", "18A", "34C", "50", "101"])
def test_network_against_minkowski_engine(variant, dtype, engine):
    """A `state_dict` of MinkowskiEngine's modules loads with `strict=True` and gives their logits, and gradients in
    float64."""
    me = minkowski.load()
    planes = tuple(4 * width for width in NARROW)
    torch.manual_seed(0)
    theirs = minkowski_network(me, variant, planes, 3, 4).to(dtype)
    ours = build_backbone("minkunet", 3, 4, variant=variant, planes=planes, voxel_size=0.1, engine=engine).to(dtype)
    # Integer coordinates of up to 40 voxels: four levels with something to do at each. One point a voxel.
    cells = [torch.unique(torch.randint(-20, 20, (900, 3)), dim=0) for _ in range(2)]
    batch = Ragged.pack([(torch.randn(len(c), 3, dtype=dtype), (c + 0.5).double() * 0.1) for c in cells])
    coordinates = torch.cat([batch.batch_index[:, None], torch.cat(cells)], dim=1).int()

    def run_theirs():
        tensor = theirs(me.SparseTensor(batch.feat, coordinates))
        row_of = {cell: row for row, cell in enumerate(map(tuple, tensor.C.tolist()))}
        return tensor.F[[row_of[cell] for cell in map(tuple, coordinates.tolist())]]

    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0  # running statistics are those of the next batch
    with torch.no_grad():
        run_theirs()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.eval(), theirs.eval()
    logits, expected = ours(batch), run_theirs()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert expected.detach().std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    if dtype == torch.float32:
        return  # a ReLU that rounding turns off or on changes gradients by far more than rounding
    scalar = torch.randn_like(logits)
    keys = [key for key, _ in ours.named_parameters()]
    gradients = [
        torch.autograd.grad((scalar * out).sum(), [dict(net.named_parameters())[key] for key in keys])
        for net, out in ((ours, logits), (theirs, expected))
    ]
    for key, mine, other in zip(keys, *gradients, strict=True):
        assert (mine - other).norm() <= 10 * tolerance * other.norm(), key


# ----------------------------------------------------------------------------------------------------- points, voxels


def test_points_of_a_voxel_enter_as_their_mean_and_share_its_logits():
    """Voxels are `floor(coordinate / voxel_size)`, below zero too; a voxel's points count as one with mean features."""
    net = tiny_backbone("minkunet", 3, 4, voxel_size=0.1).eval()
    coord = torch.tensor([[-0.01, 0.05, 0.05], [0.01, 0.05, 0.05], [-0.09, 0.01, 0.09], [0.35, 0.05, 0.05]])
    feat = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    logits = net(Ragged(feat, coord, torch.tensor([0, 4])))
    assert torch.equal(logits[0], logits[2]), "rows 0 and 2 share the voxel (-1, 0, 0)"
    assert not torch.equal(logits[0], logits[1])
    merged = torch.stack([(feat[0] + feat[2]) / 2, feat[1], feat[3]])
    alone = net(Ragged(merged, coord[[0, 1, 3]], torch.tensor([0, 3])))
    torch.testing.assert_close(logits[[0, 1, 3]], alone)


def test_trilinear_logits():
    """`devoxelize: trilinear` blends the logits of the voxels around a point: on a full grid, as `grid_sample` does.
    At voxel centres it is `nearest`."""
    nearest, trilinear = (
        tiny_backbone("minkunet", 3, 4, voxel_size=0.25, devoxelize=way).double().eval()
        for way in ("nearest", "trilinear")
    )
    generator = torch.Generator().manual_seed(0)
    index = torch.cartesian_prod(*[torch.arange(8)] * 3)  # z runs fastest
    feat = torch.randn(512, 3, generator=generator, dtype=torch.float64)
    coord = (index + torch.rand(512, 3, generator=generator, dtype=torch.float64)) * 0.25
    offsets = torch.tensor([0, 512])
    logits = nearest(Ragged(feat, coord, offsets))
    volume = logits.T.reshape(1, 4, 8, 8, 8)
    at = (coord / 2.0 * 2 - 1).flip(1).view(1, 512, 1, 1, 3)  # in [-1, 1], z first
    expected = F.grid_sample(volume, at, mode="bilinear", padding_mode="border", align_corners=False)[0, :, :, 0, 0].T
    torch.testing.assert_close(trilinear(Ragged(feat, coord, offsets)), expected, rtol=1e-10, atol=1e-10)
    centres = Ragged(feat, (index + 0.5).double() * 0.25, offsets)
    torch.testing.assert_close(trilinear(centres), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stage", range(5))
def test_tap_points_are_voxel_centres(stage):
    """A tap point is the centre of its voxel: of edge 0.1 m times the stride, aligned with the world's origin."""
    net = tiny_backbone("minkunet", 3, 4, voxel_size=0.1, tap_stage=stage)
    batch = random_ragged((60, 30), 3, seed=1, dtype=torch.float64)
    batch = Ragged(batch.feat.float(), batch.coord - 0.5, batch.offsets)
    tap, _ = net.eval().encode(batch)
    edge = 0.1 * net.tap.stride
    for index in range(2):
        occupied = (batch.sample(index).coord / edge).floor().unique(dim=0)
        centres = tap.sample(index).coord
        torch.testing.assert_close((centres / edge - 0.5).round().unique(dim=0), occupied)
        torch.testing.assert_close(centres, ((centres / edge - 0.5).round() + 0.5) * edge)


def test_voxels_as_large_as_the_samples_are_warned_of():
    """A voxel size in another unit than the coordinates leaves a few voxels a sample: a warning names it."""
    batch = random_ragged((65, 0, 64), 3)
    net = tiny_backbone("minkunet", 3, 4, voxel_size=50.0).eval()
    centred = Ragged(batch.feat, batch.coord - 0.5, batch.offsets)
    for points, voxels in ((batch, 2), (centred, 16)):
        with pytest.warns(UserWarning, match=f"voxel_size 50.0 puts 129 points of 2 samples into {voxels} voxels"):
            logits = net(points)
        assert logits.isfinite().all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("lengths", "voxel_size"), [((100, 80), 0.2), ((64, 64), 50.0), ((1, 1, 0), 50.0), ((), 50.0)], ids=str
)
def test_few_voxels_are_not_warned_of(lengths, voxel_size):
    """Samples of up to 64 points fill one voxel, and a few voxels may be wanted."""
    tiny_backbone("minkunet", 3, 4, voxel_size=voxel_size).eval()(random_ragged(lengths, 3))


def test_voxels_too_small_to_number_are_refused():
    net = tiny_backbone("minkunet", 3, 4, voxel_size=1e-9).eval()
    far = random_ragged((50,), 3, size=1e12, dtype=torch.float64)
    with pytest.raises(UserError, match="voxel_size 1e-09 does not fit the coordinates: "):
        net.double()(far)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "34Z"}, "variant must be one of 14A, .*, 101; got '34Z'"),
        ({"devoxelize": "cubic"}, "devoxelize must be one of nearest, trilinear; got 'cubic'"),
        ({"stem_kernel": 4}, "stem_kernel must be odd and at least 3, got 4"),
        ({"stem_kernel": 1}, "stem_kernel must be odd and at least 3, got 1"),
        ({"voxel_size": -0.1}, "voxel_size must be positive and finite, got -0.1"),
        ({"voxel_size": float("inf")}, "voxel_size must be positive and finite, got inf"),
        ({"planes": (8, 8)}, "planes must hold 8 positive numbers"),
        ({"layers": (1, 1, 1, 0, 1, 1, 1, 1)}, "layers must hold 8 positive numbers"),
        ({"engine": "torchsparse"}, "engine must be one of native, minkowski; got 'torchsparse'"),
    ],
)
def test_settings_no_network_can_be_built_with(options, message):
    with pytest.raises(UserError, match=message):
        build_backbone("minkunet", 3, 4, **options)
