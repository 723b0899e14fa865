"""One epoch of optimisation, and where its time went."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from ..data import Batch
from .stages import Objective


def train_epoch(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    classes: Sequence[str],
    clip_value: float,
    bar: tqdm,
) -> dict:
    """Take one optimiser step a batch.

    Args:
        objective: the losses of the stage, on the device to train on.
        optimizer: the optimiser of its parameters.
        batches: the batches of the epoch, at least one.
        classes: class names.
        clip_value: gradients are clipped to ±clip_value, element by element.
        bar: progress bar, advanced by one a step.

    Returns:
        The means over the steps of the `losses` by name and of the `points` a batch; how many `labelled` points of each
        class were drawn, and for how many `pairs` each class was chosen (none without pairs); and the `seconds` spent
        on waiting for `data`, on `geometry` (neighbourhoods, kernel maps), `forward`, `backward` and in `total`.

    Raises:
        FloatingPointError: the loss, or after the last step a weight, is not finite.
    """
    clock = Clock(next(objective.parameters()).device)
    sums: dict[str, float] = defaultdict(float)
    labelled, pairs = torch.zeros(len(classes), dtype=torch.int64), Counter()
    start, points, steps = time.perf_counter(), 0, 0
    for batch in clock.each("data", batches):
        labelled += batch.labels[batch.labels >= 0].bincount(minlength=len(classes))
        pairs.update(batch.pair_classes)
        with clock("geometry"):
            batch = batch.to(clock.device)
            geometry = objective.net.geometry(batch.input)
        with clock("forward"):
            losses = objective(batch, geometry)
        with clock("backward"):
            optimizer.zero_grad()
            losses["total"].backward()
            nn.utils.clip_grad_value_(objective.parameters(), clip_value)
            optimizer.step()
        steps += 1
        points += len(batch.labels)
        for key, loss in losses.items():
            sums[key] += loss.item()
        if not math.isfinite(sums["total"]):
            raise FloatingPointError(f"the loss is {losses['total'].item()} in step {steps}")
        bar.set_postfix(loss=f"{sums['total'] / steps:.4g}", refresh=False)
        bar.update()
    if not all(p.isfinite().all() for p in objective.parameters()):
        raise FloatingPointError("the weights are not finite after the last step")
    return {
        "losses": {key: total / steps for key, total in sums.items()},
        "points": points / steps,
        "labelled": dict(zip(classes, labelled.tolist(), strict=True)),
        "pairs": {name: pairs[label] for label, name in enumerate(classes)} if pairs else {},
        "seconds": {**clock.seconds, "total": time.perf_counter() - start},
    }


class Clock:
    """Adds up wall-clock seconds by name; waits for the device, so that its work counts where it was asked for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    def each(self, name: str, items: Iterable) -> Iterator:
        """The items, while the waiting for each one is counted."""
        iterator = iter(items)
        while True:
            with self(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item
