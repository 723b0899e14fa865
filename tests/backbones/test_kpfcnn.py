"""KPFCNN: its size, its pyramid, and the whole network against the reference operators."""

import pytest
import torch
import torch.nn.functional as F

from dsp_sparse import UserError, build_backbone
from dsp_sparse.backbones.kpfcnn_blocks import DeformableKPConv
from dsp_sparse.backbones.norm import BatchNorm
from dsp_sparse.testing import random_ragged, tiny_backbone
from kpconv_ops import Neighbors, reference


def trainable(net) -> int:
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 24_377_933), ({"first_width": 64}, 6_106_413), ({"deformable_levels": (3, 4)}, 25_587_758)],
)
def test_parameter_counts_of_the_official_networks(options, parameters):
    """The S3DIS architectures of KPConv-PyTorch, counted there: 5 features in, 13 classes out."""
    assert trainable(build_backbone("kpfcnn", 5, 13, **options)) == parameters


def test_deformable_convolutions_of_the_official_network():
    """All blocks on the points of levels 3 and 4, and the one from level 3 to 4; not the one that leads to level 3."""
    net = tiny_backbone("kpfcnn", 3, 4, blocks=(1, 2, 2, 2, 2), first_width=4, deformable_levels=(3, 4))
    deformable = [key for key, module in net.named_modules() if isinstance(module, DeformableKPConv)]
    places = ("3.blocks.0", "3.blocks.1", "4.entry", "4.blocks.0", "4.blocks.1")
    assert deformable == [f"encoder.{place}.conv" for place in places]
    names = {id(p): key for key, p in net.named_parameters()}
    assert sorted(names[id(p)] for p in net.offset_parameters()) == sorted(
        f"{key}.{name}" for key in deformable for name in ("offset_bias", "offset_conv.weights")
    )


def test_kernel_points_are_saved_and_not_trained():
    """Each layer has its own kernel points, as far out as its level's radius; they travel with the weights."""
    net = tiny_backbone("kpfcnn", 3, 4, grid_size=0.1, blocks=(1, 1))
    points = {key: value for key, value in net.state_dict().items() if key.endswith("kernel_points")}
    assert list(points) == [
        f"encoder.{block}.conv.kernel_points" for block in ("0.entry", "0.blocks.0", "1.entry", "1.blocks.0")
    ]
    assert not any(key.endswith("kernel_points") for key, _ in net.named_parameters())
    reach = [value.norm(dim=1).sort().values[1:].mean().item() for value in points.values()]
    # 0.66 of the convolution radius of 2.5 cells, up to the noise on each layer's disposition. The block that leads to
    # the coarser level still convolves the finer one.
    assert reach == pytest.approx([0.165, 0.165, 0.165, 0.33], rel=0.05)
    assert not torch.equal(*list(points.values())[:2])


def test_normalisations_have_the_momentum_of_the_settings():
    net = tiny_backbone("kpfcnn", 3, 4, bn_momentum=0.3)
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.3}
    assert len(norms) == 1 + (2 + 1 + 1) + 2 * (3 + 3 + 1) + 2, "stem, first block, two levels of two blocks, decoder"


def test_pyramid():
    """Level l + 1 has a point in each occupied cell of twice level l's, its neighbourhoods span 2.5 cells of their
    level (5 of a deformable one), and every point knows the nearest point of the next level of its own sample."""
    reach = (2.5, 5.0, 2.5)
    batch = random_ragged((200, 0, 150), 3, seed=1, dtype=torch.float64)
    net = tiny_backbone("kpfcnn", 3, 4, grid_size=0.1, blocks=(1, 1, 1), deformable_levels=(1,)).double()
    geometry = net.geometry(batch)
    assert torch.equal(geometry.levels[0].points, batch.coord)
    for depth, level in enumerate(geometry.levels):
        cell = 0.1 * 2**depth
        for b in range(batch.batch_size):
            points = level.points[level.offsets[b] : level.offsets[b + 1]]
            if depth and len(points):
                finer = geometry.levels[depth - 1]
                below = finer.points[finer.offsets[b] : finer.offsets[b + 1]]
                cells = ((below - below.amin(dim=0)) / cell).floor().unique(dim=0)
                assert len(points) == len(cells)
                nearest = finer.upsamples.rows[finer.offsets[b] : finer.offsets[b + 1]] - level.offsets[b]
                assert torch.equal(nearest, torch.cdist(below, points).argmin(dim=1))
        sample = torch.arange(3).repeat_interleave(level.offsets.diff())
        close = torch.cdist(level.points, level.points) <= reach[depth] * cell
        assert torch.equal(level.neighbors.splits.diff(), (close & (sample[:, None] == sample)).sum(dim=1))
        if depth:
            finer = geometry.levels[depth - 1]
            above = torch.arange(3).repeat_interleave(finer.offsets.diff())
            close = torch.cdist(level.points, finer.points) <= reach[depth - 1] * cell / 2
            assert torch.equal(level.pools.splits.diff(), (close & (sample[:, None] == above)).sum(dim=1))


def oracle(weights, batch, grid_size, blocks, deformable) -> tuple[torch.Tensor, torch.Tensor]:
    """KPFCNN in evaluation mode, written out once more on the reference operators: its logits and regularisation."""

    def norm(x, key):
        statistics = weights[f"{key}.running_mean"], weights[f"{key}.running_var"]
        return F.batch_norm(x, *statistics, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def unary(x, key):
        return norm(x @ weights[f"{key}.linear.weight"].T, f"{key}.norm")

    def act(x):
        return torch.where(x > 0, x, 0.1 * x)

    def conv(x, key, queries, supports, neighbors, cell):
        points, kernel, extent = weights[f"{key}.kernel_points"], weights[f"{key}.weights"], 1.2 * cell
        if f"{key}.offset_bias" not in weights:
            return reference.kpconv(x, queries, supports, neighbors, points, kernel, extent)
        predicted = conv(x, f"{key}.offset_conv", queries, supports, neighbors, cell) + weights[f"{key}.offset_bias"]
        offsets = extent * predicted[:, : 3 * len(points)].reshape(len(queries), len(points), 3)
        modulated = predicted.shape[1] == 4 * len(points)
        modulations = 2 / (1 + (-predicted[:, 3 * len(points) :]).exp()) if modulated else None
        terms.append(
            2 * reference.fitting_loss(queries, supports, neighbors, points, offsets, extent)
            + reference.repulsive_loss(points, offsets, extent)
        )
        learned = points, kernel, offsets, modulations
        return reference.deformable_kpconv(x, queries, supports, neighbors, *learned, extent=extent)

    def residual(x, key, queries, supports, neighbors, cell, pool=False):
        y = act(unary(x, f"{key}.reduce")) if f"{key}.reduce.linear.weight" in weights else x
        y = act(norm(conv(y, f"{key}.conv", queries, supports, neighbors, cell), f"{key}.norm"))
        x = reference.max_pool(x, neighbors) if pool else x
        x = unary(x, f"{key}.shortcut") if f"{key}.shortcut.linear.weight" in weights else x
        return act(unary(y, f"{key}.expand") + x)

    def search(*points_and_offsets, radius):
        return Neighbors(*reference.radius_search(*points_and_offsets, radius), len(points_and_offsets[2]))

    def radius(level):
        return (5.0 if level in deformable else 2.5) * grid_size * 2**level

    points, offsets, x, levels, terms = batch.coord, batch.offsets, batch.feat, [], [torch.zeros(())]
    for level, count in enumerate(blocks):
        cell, key = grid_size * 2**level, f"encoder.{level}"
        if level:
            finer, finer_offsets = points, offsets
            points, offsets, *_ = reference.grid_subsample(finer, offsets, cell)
            pools = search(points, offsets, finer, finer_offsets, radius=radius(level - 1))
            x = residual(x, f"{key}.entry", points, finer, pools, cell / 2, pool=True)
        neighbors = search(points, offsets, points, offsets, radius=radius(level))
        if not level:
            x = act(norm(conv(x, f"{key}.entry.conv", points, points, neighbors, cell), f"{key}.entry.norm"))
        for block in range(count):
            x = residual(x, f"{key}.blocks.{block}", points, points, neighbors, cell)
        levels.append((points, offsets, x))
    coarse, coarse_offsets, x = levels.pop()
    for stage in range(len(blocks) - 1):
        points, offsets, skip = levels.pop()
        rows, _ = reference.nearest(points, offsets, coarse, coarse_offsets)
        x = act(unary(torch.cat([x[rows], skip], dim=1), f"decoder.{stage}"))
        coarse, coarse_offsets = points, offsets
    x = act(x @ weights["head.0.weight"].T + weights["head.0.bias"])
    return x @ weights["head.2.weight"].T + weights["head.2.bias"], sum(terms)


@pytest.mark.parametrize(("deformable", "modulated"), [((), False), ((1, 2), False), ((0,), True)], ids=str)
def test_network_against_the_reference_operators(deformable, modulated):
    """Logits and regularisation are those of the definition, written out on the reference operators in float64."""
    blocks = (2, 1, 2)
    options = {"grid_size": 0.1, "blocks": blocks, "deformable_levels": deformable, "modulated": modulated}
    net = tiny_backbone("kpfcnn", 3, 4, **options).double()
    with torch.no_grad():
        net.train()(random_ragged((150, 60), 3, seed=2, dtype=torch.float64))
        batch = random_ragged((100, 50), 3, seed=1, dtype=torch.float64)
        expected, term = oracle(net.state_dict(), batch, 0.1, blocks, deformable)
        tap, state = net.eval().encode(batch)
        torch.testing.assert_close(net.decode(tap.feat, state), expected, rtol=1e-10, atol=1e-10)
        if deformable:
            torch.testing.assert_close(net.regularization(state), term, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 0.0}, "grid_size must be positive, got 0.0"),
        ({"conv_radius": -1.0}, "conv_radius must be positive, got -1.0"),
        ({"extent": float("nan")}, "extent must be positive, got nan"),
        ({"num_kernel_points": 65}, "num_kernel_points must be from 1 to 64, got 65"),
        ({"bn_momentum": 0.0}, r"bn_momentum must be in \(0, 1\], got 0.0"),
        ({"first_width": 30}, "first_width must be a positive multiple of 4, got 30"),
        ({"deform_radius": 0.0}, "deform_radius must be positive, got 0.0"),
        ({"deformable_levels": (3, 5)}, "deformable_levels must be from 0 to 4, got 5"),
        *(
            ({"deformable_levels": levels}, rf"deformable_levels must be a list of levels, e.g. \[1\], got {got}$")
            for levels, got in ((1, "1"), (None, "None"), ((1.5,), r"\(1.5,\)"), (("1",), r"\('1',\)"))
        ),
        ({"blocks": (2,)}, "blocks must hold at least two levels"),
        ({"blocks": (1, 0)}, "blocks must hold at least two levels of at least one block"),
        ({"influence": "cubic"}, "influence must be one of linear, constant, gaussian; got 'cubic'"),
        ({"aggregation": "mean"}, "aggregation must be one of sum, closest; got 'mean'"),
    ],
)
def test_settings_no_network_can_be_built_with(options, message):
    with pytest.raises(UserError, match=message):
        build_backbone("kpfcnn", 3, 4, **options)


@pytest.mark.parametrize("option", [{"influence": "gaussian"}, {"influence": "constant"}, {"aggregation": "closest"}])
def test_settings_of_the_convolution_reach_it(option):
    """Each choice gives a network of its own from the same weights."""
    batch = random_ragged((80,), 3, seed=1)
    usual, other = tiny_backbone("kpfcnn", 3, 4).eval(), tiny_backbone("kpfcnn", 3, 4, **option).eval()
    assert not torch.allclose(usual(batch), other(batch))
