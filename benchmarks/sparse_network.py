"""All of MinkUNet34C on a room of voxels: ours, on the textbook's engine, and made of MinkowskiEngine's modules."""

from collections.abc import Callable
from functools import cached_property
from unittest import mock

import torch
from torch import Tensor, nn

from dsp_sparse.backbones import build_backbone
from dsp_sparse.backbones.engines import ENGINES
from dsp_sparse.backbones.minkunet_blocks import PointwiseConv, SparseConv
from dsp_sparse.backbones.minkunet_config import LAYERS, PLANES
from dsp_sparse.losses import segmentation_loss
from dsp_sparse.ragged import Ragged

from . import inputs as made
from . import minkowski
from . import textbook_sparse as textbook
from .row import OURS, Contender, Row, Work

VARIANT = "34C"
IN_CHANNELS, CLASSES = 5, 13


def network_rows(cloud: dict[str, Tensor], voxel_size: float, device: str, with_peers: bool) -> list[Row]:
    task = Task(cloud, voxel_size)
    made_rows = [
        task.row(f"MinkUNet{VARIANT} forward", inference, 1, with_peers, 1e-3),
        task.row(f"MinkUNet{VARIANT} forward + loss + backward", training_step, 3, with_peers, 1e-2),
    ]
    if device == "cuda":
        step = torch.autocast("cuda", torch.bfloat16)(training_step)
        name = f"MinkUNet{VARIANT} forward + loss + backward, bfloat16"
        made_rows.append(task.row(name, step, 3, False, 0.1, "bfloat16"))
    return made_rows


class Task:
    """A room for the network, a point in the middle of each voxel. Every implementation has the same weights."""

    def __init__(self, cloud: dict[str, Tensor], voxel_size: float):
        self.voxel_size = voxel_size
        self.coords, self.labels = cloud["coords"], cloud["labels"]
        height = voxel_size * (self.coords[:, 2:] - self.coords[:, 2].min())
        self.features = torch.cat([torch.ones_like(height), cloud["colours"], height], dim=1)
        offsets = torch.tensor([0, len(self.coords)], device=self.coords.device)
        self.batch = Ragged(self.features, voxel_size * (self.coords + 0.5), offsets)

    def network(self, engine: str = "native") -> nn.Module:
        torch.manual_seed(made.SEED)
        options = {"variant": VARIANT, "voxel_size": self.voxel_size, "engine": engine}
        return build_backbone("minkunet", IN_CHANNELS, CLASSES, **options).to(self.coords.device)

    def row(
        self, name: str, run: Callable, passes: int, with_peers: bool, tolerance: float, dtype: str = "float32"
    ) -> Row:
        def ours():
            network = self.network()
            return lambda: run(network, self.labels, self.batch)

        def book():
            with mock.patch.dict(ENGINES, textbook=textbook.TextbookEngine):
                network = self.network("textbook")
            return lambda: run(network, self.labels, self.batch)

        def mink(order=slice(None)):
            network = minkowski.MinkUNet(IN_CHANNELS, CLASSES, PLANES[VARIANT], LAYERS[VARIANT[:-1]])
            network.to(self.coords.device).load_state_dict(self.network().state_dict())
            features, coordinates = self.features[order], minkowski.with_sample(self.coords[order])
            return lambda: run(network, self.labels[order], features, coordinates)

        contenders = [Contender(OURS, ours), Contender("textbook", book)]
        if with_peers:
            contenders.append(Contender(minkowski.NAME, mink))
        if with_peers and run is inference:  # one row tells what the order is worth
            order = textbook.keys(self.coords).argsort()
            contenders.append(
                Contender(f"{minkowski.NAME}, sorted", lambda: mink(order), lambda found: (found[0][order.argsort()],))
            )

        def work():
            flops, moved = self.work
            return Work(passes * flops, passes * moved, dtype)

        return Row(name, work, contenders, tolerance, whole_process=True)

    @cached_property
    def work(self) -> tuple[float, float]:
        """Products of all pairs in FLOP, and inputs, results and weights in bytes, of the layers of a forward pass."""
        network = self.network()
        flops = moved = 0

        def note(module, inputs, output):
            nonlocal flops, moved
            features, *maps = inputs
            pairs = int((maps[0].rows >= 0).sum()) if maps else len(features)
            flops += 2 * pairs * features.shape[1] * output.shape[1]
            moved += features.nbytes + output.nbytes + module.kernel.nbytes

        layers = [module for module in network.modules() if isinstance(module, (SparseConv, PointwiseConv))]
        for layer in layers:
            layer.register_forward_hook(note)
        network.eval()
        with torch.no_grad():
            network(self.batch)
        return flops, moved


def inference(network: nn.Module, labels: Tensor, *arguments) -> tuple[Tensor]:
    network.eval()
    with torch.no_grad():
        return (network(*arguments),)


def training_step(network: nn.Module, labels: Tensor, *arguments) -> tuple[Tensor, ...]:
    """Logits, loss, and the gradient of the first convolution: all others had to be computed for it."""
    network.train()
    network.zero_grad()
    logits = network(*arguments)
    loss = segmentation_loss(logits, labels)
    loss.backward()
    return logits.detach(), loss.detach(), network.conv0p1s1.kernel.grad
