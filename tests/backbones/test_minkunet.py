"""MinkUNet: MinkowskiEngine's names and shapes, voxels in and out, and the whole network against dense convolutions."""

import pytest
import torch
import torch.nn.functional as F

from dsp_sparse import Ragged, UserError, build_backbone
from dsp_sparse.testing import random_ragged, tiny_backbone

PLANES_14A = (32, 64, 128, 256, 128, 128, 96, 96)
PLANES_34C = (32, 64, 128, 256, 256, 128, 96, 96)
LAYERS_34 = (2, 3, 4, 6, 2, 2, 2, 2)


def minkowski_shapes(planes, layers, in_channels, num_classes) -> dict[str, tuple]:
    """Names and shapes of the parameters of a MinkowskiEngine checkpoint of a MinkUNet of basic blocks."""
    shapes = {}

    def norm(key, width):
        shapes.update({f"{key}.bn.weight": (width,), f"{key}.bn.bias": (width,)})
        shapes.update({f"{key}.bn.running_mean": (width,), f"{key}.bn.running_var": (width,)})
        shapes[f"{key}.bn.num_batches_tracked"] = ()

    def stage(key, count, width_in, width):
        for block in range(count):
            shapes[f"{key}.{block}.conv1.kernel"] = (27, width_in if block == 0 else width, width)
            shapes[f"{key}.{block}.conv2.kernel"] = (27, width, width)
            norm(f"{key}.{block}.norm1", width)
            norm(f"{key}.{block}.norm2", width)
        if width_in != width:
            shapes[f"{key}.0.downsample.0.kernel"] = (width_in, width)
            norm(f"{key}.0.downsample.1", width)

    a, b, c, d, e, f, g, h = planes
    shapes["conv0p1s1.kernel"] = (125, in_channels, 32)
    shapes["conv1p1s2.kernel"] = (8, 32, 32)
    shapes["conv2p2s2.kernel"] = (8, a, a)
    shapes["conv3p4s2.kernel"] = (8, b, b)
    shapes["conv4p8s2.kernel"] = (8, c, c)
    shapes["convtr4p16s2.kernel"] = (8, d, e)
    shapes["convtr5p8s2.kernel"] = (8, e, f)
    shapes["convtr6p4s2.kernel"] = (8, f, g)
    shapes["convtr7p2s2.kernel"] = (8, g, h)
    for number, width in enumerate((32, 32, a, b, c)):
        norm(f"bn{number}", width)
    for number, width in enumerate((e, f, g, h), start=4):
        norm(f"bntr{number}", width)
    widths_in = (32, a, b, c, e + c, f + b, g + a, h + 32)
    for number, (count, width_in, width) in enumerate(zip(layers, widths_in, planes, strict=True), start=1):
        stage(f"block{number}", count, width_in, width)
    shapes["final.kernel"] = (h, num_classes)
    shapes["final.bias"] = (1, num_classes)
    return shapes


@pytest.mark.parametrize(
    ("variant", "planes", "layers"), [("14A", PLANES_14A, (1,) * 8), ("34C", PLANES_34C, LAYERS_34)], ids=["14A", "34C"]
)
def test_names_and_shapes_are_minkowski_engines(variant, planes, layers):
    """A checkpoint of MinkowskiEngine's MinkUNet fits `load_state_dict(strict=True)`."""
    net = build_backbone("minkunet", 3, 20, variant=variant)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes == minkowski_shapes(planes, layers, 3, 20)


def test_size_of_34c():
    """MinkUNet34C for ScanNet, colours in and 20 classes out, has 37.86 million parameters."""
    net = build_backbone("minkunet", 3, 20)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 2) == 37.86


@pytest.mark.parametrize(
    ("variant", "blocks", "final"),
    [
        ("14A", 8, 96),
        ("14B", 8, 128),
        ("14C", 8, 128),
        ("14D", 8, 384),
        ("18A", 16, 96),
        ("18B", 16, 128),
        ("18D", 16, 384),
        ("34A", 23, 64),
        ("34B", 23, 32),
        ("34C", 23, 96),
    ],
)
def test_every_variant_builds(variant, blocks, final):
    net = build_backbone("minkunet", 3, 5, variant=variant)
    assert sum(key.endswith("conv1.kernel") for key in net.state_dict()) == blocks
    assert net.final.kernel.shape == (final, 5)


def dense_oracle(weights, volume) -> torch.Tensor:
    """MinkUNet with one block a stage, in evaluation mode, as dense convolutions of a full `[C, X, Y, Z]` volume."""

    def dense(key):
        kernel = weights[f"{key}.kernel"]
        size = round(len(kernel) ** (1 / 3))
        return kernel.reshape(size, size, size, *kernel.shape[1:]).permute(4, 3, 2, 1, 0)

    def norm(x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{key}.bn.{name}"] for name in names))

    def conv(x, key):
        kernel = dense(key)
        return F.conv3d(x, kernel, padding=kernel.shape[-1] // 2)

    def pointwise(x, key):
        return torch.einsum("bcxyz,cd->bdxyz", x, weights[f"{key}.kernel"])

    def block(x, key):
        y = F.relu(norm(conv(x, f"{key}.conv1"), f"{key}.norm1"))
        y = norm(conv(y, f"{key}.conv2"), f"{key}.norm2")
        if f"{key}.downsample.0.kernel" in weights:
            x = norm(pointwise(x, f"{key}.downsample.0"), f"{key}.downsample.1")
        return F.relu(y + x)

    x = F.relu(norm(conv(volume[None], "conv0p1s1"), "bn0"))
    skips = []
    for number, name in enumerate(("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2"), start=1):
        skips.append(x)
        x = F.relu(norm(F.conv3d(x, dense(name), stride=2), f"bn{number}"))
        x = block(x, f"block{number}.0")
    for number, name in enumerate(("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"), start=4):
        x = F.relu(norm(F.conv_transpose3d(x, dense(name).transpose(0, 1), stride=2), f"bntr{number}"))
        x = block(torch.cat([x, skips.pop()], dim=1), f"block{number + 1}.0")
    return (pointwise(x, "final") + weights["final.bias"].view(1, -1, 1, 1, 1))[0]


def test_network_against_dense_convolutions():
    """On a fully occupied grid the network's logits are those of dense convolutions with the same kernels."""
    net = tiny_backbone("minkunet", 3, 4, planes=(4, 5, 6, 7, 6, 5, 4, 3), voxel_size=0.25).double()
    with torch.no_grad():
        net.train()(random_ragged((300, 100), 3, size=4.0, seed=2, dtype=torch.float64))
        generator = torch.Generator().manual_seed(0)
        volume = torch.randn(3, 16, 16, 16, generator=generator, dtype=torch.float64)
        # A batch of the volume and something else; the volume's points in random order, one a voxel, off the centre.
        index = torch.cartesian_prod(*[torch.arange(16)] * 3)[torch.randperm(16**3, generator=generator)]
        coord = (index + 0.1 + 0.8 * torch.rand(16**3, 3, generator=generator, dtype=torch.float64)) * 0.25 - 4.0
        feat = volume[:, index[:, 0], index[:, 1], index[:, 2]].T
        other = random_ragged((50,), 3, seed=3, dtype=torch.float64)
        batch = Ragged.pack([(other.feat, other.coord), (feat, coord)])
        logits = net.eval()(batch)[50:]
        expected = dense_oracle(net.state_dict(), volume)[:, index[:, 0], index[:, 1], index[:, 2]].T
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "34Z"}, "variant must be one of 14A, .*; got '34Z'"),
        ({"voxel_size": -0.1}, "voxel_size must be positive, got -0.1"),
        ({"planes": (8, 8)}, "planes must hold 8 positive numbers"),
        ({"layers": (1, 1, 1, 0, 1, 1, 1, 1)}, "layers must hold 8 positive numbers"),
        ({"engine": "torchsparse"}, "engine must be one of native, minkowski; got 'torchsparse'"),
    ],
)
def test_settings_no_network_can_be_built_with(options, message):
    with pytest.raises(UserError, match=message):
        build_backbone("minkunet", 3, 4, **options)
