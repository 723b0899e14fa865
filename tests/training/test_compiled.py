"""Compiled layers: the same losses and running statistics, and no new graph for every number of points."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import batch_of, tiny_net

from dsp_sparse.config import ComputeConfig, LossConfig
from dsp_sparse.training.stages import Objective
from dsp_sparse.training.step import Clock, Stepper

pytestmark = pytest.mark.slow


def losses_of(compiled: bool, backbone: str, batches) -> tuple[list[dict], list[int]]:
    """Those of a few steps, with the sums of the running statistics; and how many graphs there were after each."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    objective = Objective(tiny_net(backbone), "isfr", LossConfig(), compiled)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    stepper, losses, graphs = Stepper(objective, optimizer, 100.0, ComputeConfig()), [], []
    for batch in batches:
        losses.append(stepper([batch], Clock(stepper.device), lambda: False)[0])
        for name in ("running_var", "num_batches_tracked"):  # which the second decoding must not move
            losses[-1][name] = sum(b.sum().item() for n, b in objective.named_buffers() if n.endswith(name))
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, graphs


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_give_the_same_losses(backend, backbone, store, settings, monkeypatch):
    """Batches of other sizes are served by the graphs of the first two; inductor rounds a little differently."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    samples = [replace(settings, data=replace(settings.data, batch_size=size)) for size in (4, 2, 6)]
    batches = [batch_of(store, each, pairs=True, epoch=epoch) for epoch, each in enumerate(samples)]
    expected, _ = losses_of(False, backbone, batches)
    losses, graphs = losses_of(True, backbone, batches)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3 if backend == "inductor" else 1e-4)
    assert graphs[0] > 0 and graphs[1] == graphs[-1]
