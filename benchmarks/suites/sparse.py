"""Sparse convolutions of a room at 5 cm: kernel maps, single layers, pooling, devoxelisation, and all of MinkUNet34C.

Layers and pooling have their kernel maps given, on sorted voxels, which suits every library best. Maps and the network
start from voxels in random order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import kpconv_ops

from .. import inputs as made
from .. import minkowski, peers
from .. import textbook_sparse as textbook
from ..calls import as_graph, forward, forward_backward
from ..row import OURS, Contender, Row, Work
from ..sparse_layer import Layer, Level
from ..sparse_network import CLASSES, IN_CHANNELS, network_rows

ROOM = 8  # the one with most occupied voxels around a voxel: 15 of 27, as in rooms that were really scanned
VOXEL = 0.05  # metres
VOXELS = 50_000
EVERY = 4  # of the raw points in these voxels, what is devoxelised
CHANNELS = 64


def inputs(points: int) -> dict:
    """The 50,000 voxels nearest to the middle of the room (fewer of few points), in random order, and points in them.

    A voxel has the colour and the label of its first point.
    """
    cloud = made.room(points, ROOM)
    voxels = kpconv_ops.voxelize(cloud["points"], torch.tensor([0, len(cloud["points"])]), VOXEL)
    distance = (voxels.coords - voxels.coords.amax(dim=0) / 2).norm(dim=1)
    kept = distance.argsort(stable=True)[:VOXELS].sort().values
    chosen = torch.zeros(len(voxels.coords), dtype=torch.bool)
    chosen[kept] = True
    rows = torch.arange(len(voxels.inverse))
    first = torch.full_like(distance, len(rows), dtype=torch.int64).scatter_reduce(0, voxels.inverse, rows, "amin")
    shuffled = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(made.SEED))]
    return {
        "coords": voxels.coords[shuffled],
        "colours": cloud["colours"][first[shuffled]],
        "labels": cloud["labels"][first[shuffled]],
        "points": cloud["points"][chosen[voxels.inverse]][::EVERY],
    }


def describe(inputs: dict) -> dict:
    level = Level.of(inputs["coords"])
    pairs = level.pairs(level, 3)
    return {
        "voxels": len(level.coords),
        "voxel edge": VOXEL,
        "pairs of 3x3x3": pairs,
        "pairs a voxel": round(pairs / len(level.coords), 2),
        "pairs of 5x5x5": level.pairs(level, 5),
        "devoxelised points": len(inputs["points"]),
        "classes": CLASSES,
    }


def rows(inputs: dict, device: str, with_peers: bool) -> list[Row]:
    cloud = {name: tensor.to(device) for name, tensor in inputs.items()}
    level = Level.of(cloud["coords"])
    made_rows = [
        map_row("coordinates + map 3x3x3", cloud["coords"], 3, 1, with_peers),
        map_row("coordinates + map 5x5x5", cloud["coords"], 5, 1, with_peers),
        map_row("coordinates, strided ones + map 2x2x2", cloud["coords"], 2, 2, with_peers),
        layer_row("3x3x3 64 to 64 forward", Layer(level, 3, CHANNELS, CHANNELS), forward, 1, with_peers),
        *layer_rows(level, with_peers),
        *pooling_rows(level, with_peers),
        *devoxelisation_rows(level, cloud["points"], with_peers),
        *network_rows(cloud, VOXEL, device, with_peers),
    ]
    if device == "cuda":
        half = Layer(level, 3, CHANNELS, CHANNELS, dtype=torch.bfloat16)
        name = "3x3x3 64 to 64 forward + backward, bfloat16"
        made_rows.append(layer_row(name, half, forward_backward, 3, False, tolerance=5e-2))
    return made_rows


def map_row(name: str, coords: Tensor, kernel_size: int, stride: int, with_peers: bool) -> Row:
    """From unsorted coordinates to the pairs of a kernel on them, or from them to coordinates of half the resolution.

    Sorting and finding duplicates is part of it: coordinates come from points.
    """

    def ours():
        fine = Level.of(coords)
        coarse = fine if stride == 1 else Level.of(fine.coords, stride)
        return fine.coords, coarse.coords, fine.map(coarse, kernel_size)

    def plain(found):
        fine, coarse, kernel_map = found
        taps, out_rows = (kernel_map.rows >= 0).nonzero(as_tuple=True)
        return canonical(fine[kernel_map.rows[taps, out_rows].long()], coarse[out_rows], taps)

    def book():
        fine = textbook.unique(coords)[0]
        coarse = fine if stride == 1 else textbook.stride_coords(fine, stride)
        return fine, coarse, textbook.kernel_map(fine, coarse, kernel_size, 1)

    def plain_book(found):
        fine, coarse, pairs = found
        taps = torch.arange(len(pairs), device=coords.device)
        taps = taps.repeat_interleave(taps.new_tensor([len(rows) for rows, _ in pairs]))
        in_rows, out_rows = (torch.cat(rows) for rows in zip(*pairs, strict=True))
        return canonical(fine[in_rows], coarse[out_rows], taps)

    contenders = [Contender(OURS, lambda: ours, plain), Contender("textbook", lambda: book, plain_book)]
    if with_peers:
        contenders.append(minkowski.coordinates_and_map(coords, kernel_size, stride, canonical))
        if kernel_size == 3:
            contenders.append(peers.spconv_map(coords, kernel_size, canonical))

    def work():
        fine, coarse, kernel_map = ours()
        pairs = int((kernel_map.rows >= 0).sum())
        return Work(0, coords.nbytes + fine.nbytes + (stride > 1) * coarse.nbytes + 4 * pairs)

    return Row(name, work, contenders)


def warmed(call):
    """The call, run once: what it finds at first use and keeps, as transposed maps, all layers of a level share."""
    call()
    return call


def canonical(in_coords: Tensor, out_coords: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs in an order of their own: the target voxels and taps, ascending, and the source voxel of each."""

    def number(coords):
        x, y, z = coords.unbind(dim=1)
        return (z << 16 | y) << 16 | x

    targets, order = (number(out_coords) << 8 | taps).sort()
    return targets, number(in_coords)[order]


def layer_rows(level: Level, with_peers: bool) -> list[Row]:
    stride8 = level.coarse.coarse.coarse
    layers = {
        "3x3x3 64 to 64": Layer(level, 3, CHANNELS, CHANNELS),
        "3x3x3 32 to 32": Layer(level, 3, 32, 32),
        "3x3x3 96 to 96": Layer(level, 3, 96, 96),
        "3x3x3 256 to 256 at stride 8": Layer(stride8, 3, 256, 256),
        "5x5x5 5 to 32": Layer(level, 5, IN_CHANNELS, 32),
        "strided 2x2x2 32 to 32": Layer(level, 2, 32, 32),
        "transposed 2x2x2 96 to 96": Layer(level, 2, 96, 96, transposed=True),
    }
    return [
        layer_row(f"{name} forward + backward", layer, forward_backward, 3, with_peers)
        for name, layer in layers.items()
    ]


def layer_row(name: str, layer: Layer, finish: Callable, passes: int, with_peers: bool, tolerance: float = 1e-4) -> Row:
    leaves = [layer.features, layer.weights]

    def ours():
        return warmed(finish(lambda f, w: kpconv_ops.sparse_conv(f, w, layer.map), leaves))

    def book():
        return warmed(finish(lambda f, w: textbook.sparse_conv(f, w, layer.pairs, layer.num_out), leaves))

    contenders = [Contender(OURS, ours)]
    if layer.features.is_cuda:
        contenders.append(Contender(f"{OURS}, CUDA graph", lambda: as_graph(ours())))
    contenders.append(Contender("textbook", book))
    if with_peers:
        contenders.append(minkowski.convolution(layer, finish, leaves))
        if layer.in_channels == layer.out_channels == CHANNELS:
            contenders.append(peers.spconv_convolution(layer, finish, leaves))
    return Row(name, lambda: layer.work(passes), contenders, tolerance)


def pooling_rows(level: Level, with_peers: bool) -> list[Row]:
    layer = Layer(level, 2, CHANNELS, CHANNELS)
    leaves = [layer.features]
    made_rows = []
    for mode, operator in (
        ("max", kpconv_ops.max_pool),
        ("mean", kpconv_ops.mean_pool),
    ):

        def ours(operator=operator):
            return warmed(forward_backward(lambda x: operator(x, layer.map.neighbors), leaves))

        def book(mode=mode):
            return warmed(forward_backward(lambda x: textbook.pool(x, layer.pairs, layer.num_out, mode), leaves))

        contenders = [Contender(OURS, ours), Contender("textbook", book)]
        if with_peers:
            contenders.append(minkowski.pooling(layer, forward_backward, leaves, mode))

        def work():
            result = layer.num_out * CHANNELS * layer.features.element_size()
            return Work(0, 2 * (layer.features.nbytes + result + 4 * len(level.coords)))

        made_rows.append(Row(f"{mode} pooling 2x2x2 forward + backward", work, contenders))
    return made_rows


def devoxelisation_rows(level: Level, points: Tensor, with_peers: bool) -> list[Row]:
    """Features of voxels to points. Finding voxels and weights is part of trilinear, and of nearest's gradient only."""
    leaves = [made.normal(len(level.coords), CHANNELS, stream=5).to(points)]
    offsets = torch.tensor([0, len(points)], device=points.device)
    cells = (points / VOXEL).floor().long()
    above = torch.searchsorted(textbook.keys(level.coords), textbook.keys(cells))

    def nearest(x):
        return kpconv_ops.upsample(x, kpconv_ops.Upsampling(above, len(level.coords)))

    def trilinear(x):
        found = kpconv_ops.trilinear(points, offsets, level.coords, level.offsets, VOXEL)
        return kpconv_ops.interpolate(x, found)

    def book(x):
        return textbook.interpolate(x, *textbook.trilinear(points, level.coords, VOXEL))

    blends = {OURS: trilinear, "textbook": book}
    copies = {OURS: nearest, "textbook": lambda x: x[above]}
    contenders = [
        [Contender(name, lambda f=f: forward_backward(f, leaves)) for name, f in each.items()]
        for each in (copies, blends)
    ]
    if with_peers:
        contenders[1].append(minkowski.trilinear(level.coords, points, VOXEL, leaves[0], forward_backward))
    result = 4 * len(points) * CHANNELS
    moved = 2 * (leaves[0].nbytes + result)
    return [
        Row("nearest devoxelisation forward + backward", lambda: Work(0, moved + 2 * above.nbytes), contenders[0]),
        Row("trilinear devoxelisation forward + backward", lambda: Work(0, moved + points.nbytes), contenders[1]),
    ]
