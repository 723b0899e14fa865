"""KPFCNN on a ball: a forward pass and a training step, on our operators and on the textbook's.

Both networks have the same weights, see the same neighbours and differ in nothing but the operators and the published
order of upsampling and multiplying. The pyramid is
made beforehand, for the pyramid suite measures that; the neighbours of each level are cut to the number that nine in
ten points stay below, as KPConv calibrates it, since a padded matrix is as wide as its fullest row.
"""

import contextlib
from dataclasses import replace
from operator import attrgetter
from unittest import mock

import torch
from torch import nn

from dsp_sparse.backbones import build_backbone, kpfcnn, kpfcnn_blocks
from dsp_sparse.losses import segmentation_loss
from dsp_sparse.ragged import Ragged
from kpconv_ops import Neighbors, Pyramid

from .. import inputs as made
from .. import textbook
from ..row import OURS, Contender, Row, Work

CLASSES = 13
UNTOUCHED = 0.9  # share of the points that keep all their neighbours


def inputs(points: int) -> dict:
    return made.balls(made.room(points))[0]


def describe(inputs: dict) -> dict:
    return {"points": len(inputs["points"]), "cell": made.BALL_CELL, "classes": CLASSES}


def rows(inputs: dict, device: str, with_peers: bool) -> list[Row]:
    points, colours, labels = (inputs[name].to(device) for name in ("points", "colours", "labels"))
    height = points[:, 2:] - points[:, 2].min()
    features = torch.cat([torch.ones_like(height), colours, height], dim=1)
    batch = Ragged(features, points, torch.tensor([0, len(points)], device=device))
    made_rows = []
    for name, levels in (("KPFCNN", ()), ("deformable KPFCNN", (3, 4))):
        task = Task(batch, labels, levels)
        made_rows.append(task.row(f"{name} forward", task.forward, passes=1, tolerance=1e-3))
        made_rows.append(task.row(f"{name} forward + loss + backward", task.step, passes=3, tolerance=1e-2))
        if device == "cuda":
            autocast = torch.autocast("cuda", torch.bfloat16)
            made_rows.append(
                task.row(f"{name} forward + loss + backward, bfloat16", autocast(task.step), 3, 0.1, "bfloat16")
            )
    return made_rows


class Task:
    """A network with its batch.

    Args:
        batch: points and features.
        labels: `[N]` int64.
        deformable_levels: as in the network's settings.
    """

    def __init__(self, batch: Ragged, labels: torch.Tensor, deformable_levels: tuple[int, ...]):
        torch.manual_seed(made.SEED)
        self.network = build_backbone("kpfcnn", 5, CLASSES, deformable_levels=deformable_levels).to(labels.device)
        self.batch, self.labels = batch, labels
        self.geometry = converted(self.network.geometry(batch), calibrated)

    def row(self, name: str, run, passes: int, tolerance: float, dtype: str = "float32") -> Row:
        def work():
            flops, moved = layer_work(self.network, self.batch, self.geometry)
            return Work(passes * flops, passes * moved, dtype)

        contenders = [Contender(OURS, lambda: self.ours(run)), Contender("textbook", lambda: self.textbook(run))]
        return Row(name, work, contenders, tolerance)

    def ours(self, run):
        # A geometry of its own for each call, as in training: its transposes are part of the step.
        return lambda: run(converted(self.geometry, replace))

    def textbook(self, run):
        geometry = converted(
            self.geometry, lambda nb: textbook.padded(nb.indices, nb.splits, nb.num_supports), attrgetter("rows")
        )

        def call():
            with textbook_operators(self.network):
                return run(geometry)

        return call

    def forward(self, geometry: Pyramid):
        self.network.eval()
        with torch.no_grad():
            return (self.network(self.batch, geometry),)

    def step(self, geometry: Pyramid):
        """Logits, loss, and the gradient of the first convolution: all others had to be computed for it."""
        self.network.train()
        self.network.zero_grad()
        logits = self.network(self.batch, geometry)
        loss = segmentation_loss(logits, self.labels)
        loss.backward()
        return logits.detach(), loss.detach(), self.network.encoder[0].entry.conv.weights.grad


@contextlib.contextmanager
def textbook_operators(network: nn.Module):
    """Inside, KPFCNN runs on the textbook's operators, and neighbourhoods are padded matrices."""
    with contextlib.ExitStack() as stack:
        for module in (kpfcnn, kpfcnn_blocks):
            for name in ("kpconv", "deformable_kpconv", "upsample"):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, getattr(textbook, name)))
        for block in network.modules():
            if isinstance(block, kpfcnn_blocks.ResidualBlock):
                stack.enter_context(mock.patch.object(block, "pool", textbook.max_pool))
        stack.enter_context(mock.patch.object(kpfcnn_blocks.Fusion, "forward", published_fusion))
        yield


def published_fusion(fusion: kpfcnn_blocks.Fusion, coarse, rows, skip):
    """Upsampling, concatenation, unary layer, one after the other as in KPConv."""
    return fusion.norm(fusion.linear(torch.cat([textbook.upsample(coarse, rows), skip], dim=1)))


def converted(geometry: Pyramid, neighbors, upsampling=replace) -> Pyramid:
    """The pyramid with all neighbourhoods and upsamplings converted."""
    levels = [
        replace(
            level,
            neighbors=neighbors(level.neighbors),
            pools=level.pools and neighbors(level.pools),
            upsamples=level.upsamples and upsampling(level.upsamples),
        )
        for level in geometry.levels
    ]
    return replace(geometry, levels=levels)


def calibrated(nb: Neighbors) -> Neighbors:
    """The nearest neighbours only, as many as leave nine in ten neighbourhoods whole."""
    counts = nb.splits.diff()
    kept = counts.clamp(max=int(counts.float().quantile(UNTOUCHED)))
    place = torch.arange(len(nb.indices), device=counts.device) - nb.splits[:-1].repeat_interleave(counts)
    splits = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    return Neighbors(nb.indices[place < kept.repeat_interleave(counts)], splits, nb.num_supports)


def layer_work(network: nn.Module, batch: Ragged, geometry: Pyramid) -> tuple[float, float]:
    """Dense products in FLOP, and inputs and results of the layers that have them in bytes, of a forward pass."""
    flops = moved = 0

    def note(module, inputs, output):
        nonlocal flops, moved
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        if isinstance(module, kpfcnn_blocks.Fusion):
            weight = module.linear.weight
            flops += sum(2 * each.numel() * len(weight) for each in tensors)
        else:
            weight = module.weight if isinstance(module, nn.Linear) else module.weights
            flops += 2 * len(output) * weight.numel()
        moved += sum(each.nbytes for each in (*tensors, weight, output))

    kinds = (nn.Linear, kpfcnn_blocks.KPConv, kpfcnn_blocks.Fusion)  # a fusion does not call its linear layer
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    network.eval()
    with torch.no_grad():
        network(batch, geometry)
    for hook in hooks:
        hook.remove()
    return flops, moved
