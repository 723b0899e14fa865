"""Every operator on one layer of a room."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import kpconv_ops

from .. import inputs as made
from .. import peers, textbook
from ..calls import as_graph, forward, forward_backward
from ..row import OURS, Contender, Row, Work, edges_differ

CELL = 0.057  # leaves about 50,000 of the room's points, with 26 neighbours on average
RADIUS, EXTENT = 2.5, 1.2  # in cells
MAX_NEIGHBORS = 40
KERNEL_POINTS, CHANNELS = 15, 64
SUBSAMPLE_CELL = 0.04


def inputs(points: int) -> dict:
    return made.room(points)


def describe(inputs: dict) -> dict:
    """Sizes for the report."""
    fine = kpconv_ops.grid_subsample(inputs["points"], torch.tensor([0, len(inputs["points"])]), CELL)
    layer = Layer(fine.points, fine.offsets, torch.float32)
    return {
        "layer points": len(layer.points),
        "mean neighbours": round(len(layer.nb.indices) / len(layer.points), 2),
        "most neighbours": MAX_NEIGHBORS,
        "kernel points": KERNEL_POINTS,
        "channels": CHANNELS,
    }


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution of a KPConv network: where it is evaluated, and its parameters."""

    points: Tensor
    offsets: Tensor
    dtype: torch.dtype

    radius, extent = RADIUS * CELL, EXTENT * CELL

    @cached_property
    def nb(self) -> kpconv_ops.Neighbors:
        return kpconv_ops.radius_search(
            self.points, self.offsets, self.points, self.offsets, self.radius, MAX_NEIGHBORS
        )

    @cached_property
    def matrix(self) -> Tensor:
        return textbook.padded(self.nb.indices, self.nb.splits, len(self.points))

    @cached_property
    def kernel_points(self) -> Tensor:
        generator = torch.Generator().manual_seed(made.SEED)
        return kpconv_ops.kernel_points(KERNEL_POINTS, self.radius, generator).to(self.points.device)

    @cached_property
    def features(self) -> Tensor:
        return made.normal(len(self.points), CHANNELS, stream=1).to(self.points.device, self.dtype)

    @cached_property
    def weights(self) -> Tensor:
        scale = (KERNEL_POINTS * CHANNELS) ** -0.5
        return (scale * made.normal(KERNEL_POINTS, CHANNELS, CHANNELS, stream=2)).to(self.points.device, self.dtype)

    @cached_property
    def kernel_offsets(self) -> Tensor:
        """Offsets of the deformable convolution: a third of the extent, as far as trained ones go."""
        noise = made.normal(len(self.points), KERNEL_POINTS, 3, stream=3)
        return (self.extent / 3 * noise).to(self.points.device)

    def work(self, passes: int) -> Work:
        """Each pass multiplies all aggregates by matrices and reads the neighbours; two tensors of features a pass."""
        rows, size = len(self.points), self.features.element_size()
        flops = 2 * rows * KERNEL_POINTS * CHANNELS * CHANNELS
        moved = 2 * rows * CHANNELS * size + 4 * len(self.nb.indices) + 12 * rows + self.weights.nbytes
        return Work(passes * flops, passes * moved, str(self.dtype).removeprefix("torch."))


def rows(inputs: dict, device: str, with_peers: bool) -> list[Row]:
    cloud = {name: tensor.to(device) for name, tensor in inputs.items()}
    whole = torch.tensor([0, len(cloud["points"])], device=device)
    fine = kpconv_ops.grid_subsample(cloud["points"], whole, CELL)
    coarse = kpconv_ops.grid_subsample(fine.points, fine.offsets, 2 * CELL)
    layer = Layer(fine.points, fine.offsets, torch.float32)
    made_rows = [
        *convolution_rows(layer, device, with_peers),
        *search_rows(fine, coarse, with_peers),
        subsample_row(cloud, whole, with_peers),
        *pooling_rows(fine, coarse, with_peers),
        transpose_row(layer.nb, with_peers),
    ]
    if device == "cuda":
        made_rows += convolution_rows(Layer(fine.points, fine.offsets, torch.bfloat16), device, with_peers)
    return made_rows


def convolution_rows(layer: Layer, device: str, with_peers: bool) -> list[Row]:
    x, extent = layer.points, layer.extent
    rigid = [layer.features, layer.weights]
    moving = [*rigid, layer.kernel_offsets]
    dtype = "" if layer.dtype == torch.float32 else ", bfloat16"
    tolerance = 1e-3 if layer.dtype == torch.float32 else 5e-2

    def convolve(kpconv, neighborhoods):
        return lambda f, w: kpconv(f, x, x, neighborhoods, layer.kernel_points, w, extent)

    def deform(kpconv, neighborhoods):
        return lambda f, w, o: kpconv(f, x, x, neighborhoods, layer.kernel_points, w, o, extent=extent)

    def row(name, finish, leaves, function, ours, books, passes):
        def contender(name, kpconv, neighborhoods, wrap=lambda call: call):
            return Contender(name, lambda: wrap(finish(function(kpconv, neighborhoods()), leaves)))

        contenders = [contender(OURS, ours, lambda: layer.nb)]
        if device == "cuda":
            contenders.append(contender(f"{OURS}, CUDA graph", ours, lambda: layer.nb, as_graph))
        contenders += [contender(name, kpconv, lambda: layer.matrix) for name, kpconv in books.items()]
        if with_peers:
            contenders.append(peers.torch_pointcloud_kpconv(layer, leaves, finish))
        return Row(name + dtype, lambda: layer.work(passes), contenders, tolerance)

    ours, deformable = kpconv_ops.kpconv, kpconv_ops.deformable_kpconv
    books = {"textbook": textbook.kpconv, "textbook, tuned": textbook.tuned_kpconv}
    moved = {"textbook": textbook.deformable_kpconv}
    return [
        row("KPConv forward", forward, rigid, convolve, ours, books, 1),
        row("KPConv forward + backward", forward_backward, rigid, convolve, ours, books, 3),
        row("deformable forward + backward", forward_backward, moving, deform, deformable, moved, 3),
    ]


def search_rows(fine, coarse, with_peers: bool) -> list[Row]:
    x, radius = fine.points, RADIUS * CELL
    nb = kpconv_ops.radius_search(x, fine.offsets, x, fine.offsets, radius)
    most = int(nb.splits.diff().max())
    search = [
        Contender(
            OURS,
            lambda: lambda: kpconv_ops.radius_search(x, fine.offsets, x, fine.offsets, radius),
            plain=lambda nb: (nb.indices, nb.splits),
        ),
        peers.scipy_radius_search(x, radius),
    ]
    ours = kpconv_ops.nearest
    closest = [
        Contender(
            OURS,
            lambda: lambda: ours(x, fine.offsets, coarse.points, coarse.offsets),
            plain=lambda found: (found[0],),
        ),
        peers.scipy_nearest(x, coarse.points),
    ]
    if with_peers:
        search += [
            peers.sklearn_radius_search(x, radius),
            peers.open3d_radius_search(x, radius),
            peers.torch_points_kernels_radius_search(x, radius, most),
            peers.torch_pointcloud_radius_search(x, radius, most),
        ]
        closest += [
            peers.sklearn_nearest(x, coarse.points),
            peers.open3d_nearest(x, coarse.points),
            peers.torch_points_kernels_nearest(x, coarse.points),
        ]
    moved = 2 * x.nbytes + nb.indices.nbytes + nb.splits.nbytes
    moved_nearest = x.nbytes + coarse.points.nbytes + (8 + 4) * len(x)
    return [
        Row("radius search", lambda: Work(0, moved), search, difference=edges_differ),
        Row("nearest", lambda: Work(0, moved_nearest), closest),
    ]


def subsample_row(cloud: dict, whole: Tensor, with_peers: bool) -> Row:
    points, colours, labels = cloud["points"], cloud["colours"], cloud["labels"]

    def ours():
        return kpconv_ops.grid_subsample(points, whole, SUBSAMPLE_CELL, colours, labels)

    arrays = [peers.array(each) for each in (points, colours, labels)]
    contenders = [
        Contender(OURS, lambda: ours, plain=lambda grid: (grid.points, grid.features, grid.labels, grid.inverse)),
        Contender(
            "textbook, numpy",
            lambda: lambda: textbook.numpy_subsample(*arrays, SUBSAMPLE_CELL),
            plain=peers.tensors,
            on_cpu=True,
        ),
        Contender("textbook, torch", lambda: lambda: textbook.torch_subsample(points, colours, labels, SUBSAMPLE_CELL)),
    ]
    if with_peers:
        contenders.append(peers.open3d_subsample(points, colours, SUBSAMPLE_CELL))
    cells = ours().points
    row_bytes = 12 + 12 + 8  # point, colour, label
    return Row(
        "grid subsampling of the raw points",
        lambda: Work(0, row_bytes * (len(points) + len(cells)) + 8 * len(points)),
        contenders,
    )


def pooling_rows(fine, coarse, with_peers: bool) -> list[Row]:
    device = fine.points.device
    nb = kpconv_ops.radius_search(coarse.points, coarse.offsets, fine.points, fine.offsets, RADIUS * CELL)
    above = kpconv_ops.nearest(fine.points, fine.offsets, coarse.points, coarse.offsets)[0]
    pooled = made.normal(len(fine.points), CHANNELS, stream=5).to(device)
    copied = made.normal(len(coarse.points), CHANNELS, stream=6).to(device)

    def pool_textbook():
        matrix = textbook.padded(nb.indices, nb.splits, nb.num_supports)
        return forward_backward(lambda x: textbook.max_pool(x, matrix), [pooled])

    pool = [
        Contender(OURS, lambda: forward_backward(lambda x: kpconv_ops.max_pool(x, nb), [pooled])),
        Contender("textbook", pool_textbook),
    ]
    if with_peers:
        pool.append(peers.scatter_max_pool(pooled, nb, forward_backward))
    copy = [
        Contender(OURS, lambda: forward_backward(lambda x: kpconv_ops.upsample(x, above), [copied])),
        Contender("textbook", lambda: forward_backward(lambda x: textbook.upsample(x, above), [copied])),
    ]
    return [
        Row(
            "max pooling forward + backward",
            lambda: Work(0, 2 * (pooled.nbytes + copied.nbytes + nb.indices.nbytes + nb.splits.nbytes)),
            pool,
        ),
        Row(
            "upsampling forward + backward",
            lambda: Work(0, 2 * (pooled.nbytes + copied.nbytes + above.nbytes)),
            copy,
        ),
    ]


def transpose_row(nb: kpconv_ops.Neighbors, with_peers: bool) -> Row:
    def ours():
        return kpconv_ops.Neighbors(nb.indices, nb.splits, nb.num_supports).transposed  # anew: it is kept

    contenders = [
        Contender(OURS, lambda: ours, plain=lambda nb: (nb.indices, nb.splits)),
        Contender("textbook", lambda: lambda: textbook.transpose(nb.indices, nb.splits, nb.num_supports)),
    ]
    if with_peers:
        contenders.append(peers.scipy_transpose(nb))
    moved = 2 * (nb.indices.nbytes + nb.splits.nbytes)
    return Row("Neighbors.transposed", lambda: Work(0, moved), contenders)
