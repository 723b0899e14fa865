"""Helpers for tests of code built on this package."""

import importlib.util
from collections.abc import Sequence

import torch

from .backbones import TapBackbone, build_backbone
from .backbones.engines import ENGINES
from .ragged import Ragged

# Options under which a backbone trains in well under a second on a CPU. Their coarsest cells are 0.4 to 1.6 m, so that
# every level of a cube of 1 m has something to do.
TINY = {
    "kpfcnn": {"grid_size": 0.1, "first_width": 16, "blocks": (1, 1, 1)},
    "minkunet": {"variant": "14A", "voxel_size": 0.1, "planes": (8, 12, 16, 20, 16, 12, 8, 8)},
}


def devices() -> list[str]:
    """The torch devices of this machine that the package runs on."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def engines() -> list[str]:
    """The engines of sparse convolutions whose packages are installed, whether they work or not."""
    packages = {name: engine.package for name, engine in ENGINES.items()}
    return [name for name, package in packages.items() if package is None or importlib.util.find_spec(package)]


def random_ragged(
    lengths: Sequence[int],
    channels: int,
    size: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Ragged:
    """A batch of uniformly random points with normally distributed features; the same on every device.

    Args:
        lengths: points of each sample; 0 is an empty sample.
        channels: features per point.
        size: edge of the cube that holds each sample, in metres.
        seed: seed of coordinates and features.
        dtype: float32 or float64, of coordinates and features.
        device: where the batch lies.
    """
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    coord = size * torch.rand(sum(lengths), 3, generator=generator, dtype=dtype)
    feat = torch.randn(sum(lengths), channels, generator=generator, dtype=dtype)
    return Ragged(feat, coord, offsets).to(device)


def tiny_backbone(name: str, in_channels: int, num_classes: int, seed: int = 0, **options) -> TapBackbone:
    """A small network of a registered kind for cubes of about 1 m, with weights drawn from `seed`.

    Args:
        name: a key of `BACKBONES`; one without an entry in `TINY` is built with its default options.
        in_channels: features per input point.
        num_classes: logits per input point.
        seed: seed of the weights; torch's global generator is left as it was.
        options: the backbone's options, on top of the tiny ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(name, in_channels, num_classes, **TINY.get(name, {}) | options)
