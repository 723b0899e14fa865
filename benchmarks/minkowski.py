"""MinkowskiEngine, used as its users do: its own coordinates, kernel maps and modules, nothing of our engine."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from dsp_sparse.backbones.engines.minkowski import load, new_manager
from dsp_sparse.backbones.minkunet import DOWN, UP

from .row import Contender
from .textbook_sparse import keys

NAME = "MinkowskiEngine"


def with_sample(coords: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
    """Coordinates `[V, 4]` of the only sample, as MinkowskiEngine takes them."""
    return nn.functional.pad(coords, (1, 0)).to(dtype)


class Level:
    """Voxels of a resolution, and those of half of it, in a coordinate manager of their own."""

    def __init__(self, coords: Tensor, stride: int = 1):
        self.manager = new_manager(coords.device)
        self.fine, _ = self.manager.insert_and_map(with_sample(coords), [stride] * 3, "")
        self.stride = stride

    @cached_property
    def coarse(self):
        return self.manager.stride(self.fine, [2 * self.stride] * 3)

    def pairs(self, kernel_size: int, stride: int = 1) -> dict[int, Tensor]:
        """Rows `[2, E]` of the fine and of the fine or coarse voxels, tap by tap. The manager keeps them."""
        target = self.fine if stride == 1 else self.coarse
        return self.manager.kernel_map(self.fine, target, stride=stride, kernel_size=kernel_size)

    def order(self, key, ours: Tensor) -> Tensor:
        """Our row of each of its rows; ours are sorted."""
        return torch.searchsorted(keys(ours), keys(self.coords(key)))

    def coords(self, key) -> Tensor:
        return self.manager.get_coordinates(key)[:, 1:].long()

    def tensor(self, features: Tensor, key):
        return load().SparseTensor(features, coordinate_map_key=key, coordinate_manager=self.manager)


def coordinates_and_map(coords: Tensor, kernel_size: int, stride: int, canonical: Callable) -> Contender:
    """From integer coordinates to the pairs of a kernel."""

    def setup():
        load()

        def call():
            level = Level(coords)
            return level, level.pairs(kernel_size, stride)

        return call

    def plain(found):
        level, pairs = found
        fine, coarse = level.coords(level.fine), level.coords(level.fine if stride == 1 else level.coarse)
        taps = torch.tensor([tap for tap, rows in pairs.items() for _ in range(rows.shape[1])], device=coords.device)
        rows = torch.cat([rows.long() for rows in pairs.values()], dim=1)
        return canonical(fine[rows[0]], coarse[rows[1]], taps)

    return Contender(NAME, setup, plain)


def operator(layer, finish: Callable, module: Callable, leaves: list[Tensor]) -> Contender:
    """A module between voxels with maps cached.

    Args:
        layer: with `fine` and `coarse` voxels, `strided` and `transposed`.
        finish: `forward` or `forward_backward`.
        module: given the package, makes the module.
        leaves: features, and the kernel of a convolution.
    """
    orders = {}

    def setup():
        level = Level(layer.fine.coords, layer.fine.stride)
        ends = [(level.fine, layer.fine.coords)] * 2
        if layer.strided:
            # The pairs of the strided convolution, which a transposed one after it finds cached, as in any U-Net.
            ends[1] = (level.coarse, layer.coarse.coords)
            level.pairs(layer.kernel_size, stride=2)
        source, target = ends[::-1] if layer.transposed else ends
        orders.update(source=level.order(*source), target=level.order(*target))
        made = module(load()).to(layer.fine.coords.device)

        def apply(features, *kernel):
            x = level.tensor(features, source[0])
            names = [name for name, _ in made.named_parameters()]
            return torch.func.functional_call(made, dict(zip(names, kernel, strict=True)), (x,)).F

        call = finish(apply, [leaves[0][orders["source"]], *leaves[1:]], orders["target"])
        call()  # finds the pairs and keeps them
        return call

    def plain(results):
        """Results and gradients of features in our order of rows."""
        result, *grads = results
        back = [torch.empty_like(result).index_copy_(0, orders["target"], result)]
        if grads:
            back.append(torch.empty_like(grads[0]).index_copy_(0, orders["source"], grads[0]))
        return *back, *grads[1:]

    return Contender(NAME, setup, plain)


def convolution(layer, finish: Callable, leaves: list[Tensor]) -> Contender:
    def module(package):
        kind = package.MinkowskiConvolutionTranspose if layer.transposed else package.MinkowskiConvolution
        stride = 2 if layer.strided else 1
        return kind(layer.in_channels, layer.out_channels, layer.kernel_size, stride, dimension=3)

    return operator(layer, finish, module, leaves)


def pooling(layer, finish: Callable, leaves: list[Tensor], mode: str) -> Contender:
    def module(package):
        kind = {"max": package.MinkowskiMaxPooling, "mean": package.MinkowskiAvgPooling}[mode]
        return kind(kernel_size=2, stride=2, dimension=3)

    return operator(layer, finish, module, leaves)


def trilinear(coords: Tensor, points: Tensor, voxel_size: float, features: Tensor, finish: Callable) -> Contender:
    """Its interpolation does not scale weights to a sum of 1: a channel of ones, interpolated too, tells their sum."""

    def setup():
        level = Level(coords)
        queries = nn.functional.pad(points / voxel_size - 0.5, (1, 0))

        def interpolate(features):
            ones = features.new_ones(len(features), 1)
            found = level.tensor(torch.cat([features, ones], dim=1), level.fine).features_at_coordinates(queries)
            return found[:, :-1] / found[:, -1:].clamp(min=1e-12)

        return finish(interpolate, [features])

    return Contender(NAME, setup)


class Block(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut."""

    def __init__(self, package, in_channels: int, planes: int):
        super().__init__()
        self.conv1 = package.MinkowskiConvolution(in_channels, planes, kernel_size=3, dimension=3)
        self.norm1 = package.MinkowskiBatchNorm(planes)
        self.conv2 = package.MinkowskiConvolution(planes, planes, kernel_size=3, dimension=3)
        self.norm2 = package.MinkowskiBatchNorm(planes)
        self.relu = package.MinkowskiReLU(inplace=True)
        self.downsample = None
        if in_channels != planes:
            pointwise = package.MinkowskiConvolution(in_channels, planes, kernel_size=1, dimension=3)
            self.downsample = nn.Sequential(pointwise, package.MinkowskiBatchNorm(planes))

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.downsample(x) if self.downsample else x
        return self.relu(y)


class MinkUNet(nn.Module):
    """MinkUNet of MinkowskiEngine's modules. Its parameters have the names of ours, whose weights it takes.

    Args:
        in_channels: features a voxel.
        num_classes: logits a voxel.
        planes: channels of the eight stages.
        layers: blocks of the eight stages.
    """

    def __init__(self, in_channels: int, num_classes: int, planes: tuple[int, ...], layers: tuple[int, ...]):
        super().__init__()
        self.package = package = load()
        self.relu = package.MinkowskiReLU(inplace=True)
        width = 32
        self.conv0p1s1 = package.MinkowskiConvolution(in_channels, width, kernel_size=5, dimension=3)
        self.bn0 = package.MinkowskiBatchNorm(width)
        self.steps = []
        skips = [width, *planes[:3]]
        for stage, name in enumerate((*DOWN, *UP)):
            down = stage < len(DOWN)
            kind = package.MinkowskiConvolution if down else package.MinkowskiConvolutionTranspose
            out = width if down else planes[stage]
            step = (name, f"bn{stage + 1}" if down else f"bntr{stage}", f"block{stage + 1}")
            self.add_module(step[0], kind(width, out, kernel_size=2, stride=2, dimension=3))
            self.add_module(step[1], package.MinkowskiBatchNorm(out))
            width = out if down else out + skips.pop()
            blocks = [Block(package, planes[stage] if i else width, planes[stage]) for i in range(layers[stage])]
            self.add_module(step[2], nn.Sequential(*blocks))
            self.steps.append(step)
            width = planes[stage]
        self.final = package.MinkowskiConvolution(width, num_classes, kernel_size=1, bias=True, dimension=3)

    def forward(self, features: Tensor, coordinates: Tensor) -> Tensor:
        """`[V, C]` logits of voxels from `[V, F]` features at `[V, 4]` int32 coordinates, in the order given."""
        manager = new_manager(features.device)  # its own would set the number of threads of the whole process
        start = self.package.SparseTensor(features, coordinates, coordinate_manager=manager)
        x = self.relu(self.bn0(self.conv0p1s1(start)))
        skips = [x]
        for stage, step in enumerate(self.steps):
            conv, norm, blocks = (getattr(self, name) for name in step)
            x = self.relu(norm(conv(x)))
            x = blocks(x if stage < len(DOWN) else self.package.cat(x, skips.pop()))
            if stage < len(DOWN) - 1:
                skips.append(x)
        return self.final(x).F[start.inverse_mapping]
