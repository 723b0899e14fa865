"""One optimiser step: on several batches in turn, and in step with the other ranks."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn

from ..config import ComputeConfig
from ..data import Batch
from ..distributed import sum_over_ranks, world
from .clock import Clock
from .counts import Counts
from .stages import Objective


class Stepper:
    """Takes the optimiser steps of one stage.

    A step is that of one batch which holds the batches of all ranks, but for the statistics of batch normalisation:
    every loss is a mean over all of them, so the gradients of the parts add up.

    Args:
        objective: the losses of the stage, on the device to train on.
        optimizer: the optimiser of its parameters.
        clip_value: gradients are clipped to ±clip_value, element by element.
        compute: precision.

    Attributes:
        scaler: keeps small gradients from vanishing in float16; idle in another precision.
    """

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, clip_value: float, compute: ComputeConfig
    ):
        self.objective, self.optimizer, self.clip_value = objective, optimizer, clip_value
        self.device = next(objective.parameters()).device
        self.dtype = getattr(torch, compute.precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # Gradients are averaged over the ranks. Before each step all take the running statistics of rank 0.
        self.parallel = nn.parallel.DistributedDataParallel(objective) if world() > 1 else None

    def __call__(
        self, batches: Sequence[Batch], clock: Clock, asked: Callable[[], bool]
    ) -> tuple[dict[str, float], Counts, bool]:
        """Take one step.

        Args:
            batches: this rank's share of the step, at least one batch.
            clock: counts `geometry` (neighbourhoods, kernel maps), `forward`, `backward`, `optimiser`, and `wait` for
                the other ranks.
            asked: whether this rank was asked to stop.

        Returns:
            The losses by name, over all batches and ranks; what they are means over; whether any rank was asked to
            stop. All are the same on every rank.
        """
        net = self.objective.net
        with clock("geometry"):
            moved = [batch.to(self.device, non_blocking=True) for batch in batches]
            geometries = [net.geometry(batch.input) for batch in moved]
        rows = map(net.regularized_rows, geometries)
        parts = [Counts.of(batch, net.tap.out_channels, r) for batch, r in zip(batches, rows, strict=True)]
        with waiting(clock):
            counts = Counts.of_step(parts)
        self.optimizer.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        while moved:  # a batch's memory is free before the next one's turn
            batch, geometry = moved.pop(0), geometries.pop(0)
            # Gradients add up on each rank and travel once, with the last batch.
            alone = self.parallel.no_sync() if self.parallel and moved else nullcontext()
            with alone:
                with clock("forward"), self._autocast():
                    losses = (self.parallel or self.objective)(batch, geometry, counts)
                with clock("backward"):
                    self.scaler.scale(world() * losses["total"]).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach().double()
        with clock("optimiser"):
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_value_(self.objective.parameters(), self.clip_value)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        values = torch.stack(list(sums.values())).tolist()
        with waiting(clock):
            *values, stops = sum_over_ranks(np.array([*values, asked()], np.float64)).tolist()
        return dict(zip(sums, values, strict=True)), counts, stops > 0

    def _autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def waiting(clock: Clock) -> AbstractContextManager:
    """Counts as `wait` where there are other ranks to wait for."""
    return clock("wait") if world() > 1 else nullcontext()
