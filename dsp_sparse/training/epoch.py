"""One epoch of optimisation: what it adds up, and where its time went."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

import torch
from tqdm import tqdm

from ..data import Batch
from .clock import Clock
from .counts import Counts
from .step import Stepper
from .stop import StopRequest

# Where the scaler halves its scale so far, it has skipped every step for long and would go on to do so.
LEAST_SCALE = 1e-6
# What a step spends its time on: the name in the metrics, and what people are told.
PARTS = {
    "data": "data",
    "geometry": "pyramid",
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "wait": "other processes",
}


@dataclass(kw_only=True)
class Progress:
    """An epoch so far, in numbers that a checkpoint can hold.

    Args:
        steps: optimiser steps that are done.
        losses: sums of the losses by name.
        points: sum of the points, of all batches and ranks.
        labelled: labelled points of each class that were drawn.
        pairs: pairs that each class was chosen for.
        seconds: by name, on this rank; see `Clock`.
    """

    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    points: int = 0
    labelled: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, losses: dict[str, float], counts: Counts) -> None:
        """Count one step."""
        self.steps += 1
        self.losses = {name: self.losses.get(name, 0.0) + loss for name, loss in losses.items()}
        self.points += counts.points
        self.labelled = added(self.labelled, counts.labelled.tolist())
        self.pairs = added(self.pairs, counts.pairs.tolist())

    def metrics(self, classes: Sequence[str]) -> dict:
        """The means over the steps of the `losses` by name and of the `points` a step; how many `labelled` points of
        each class were drawn, and for how many `pairs` each class was chosen (none without pairs); the `seconds` spent
        on waiting for `data`, on `geometry` (neighbourhoods, kernel maps), `forward`, `backward`, `optimiser`, under
        torchrun on the `wait` for other ranks, and in `total`.
        """
        return {
            "losses": {name: total / self.steps for name, total in self.losses.items()},
            "points": self.points / self.steps,
            "labelled": dict(zip(classes, self.labelled, strict=True)),
            "pairs": dict(zip(classes, self.pairs, strict=True)) if any(self.pairs) else {},
            "seconds": self.seconds,
        }

    def summary(self) -> str:
        """One line for people: the loss, how long a step took, and on what, in shares that add up to 100 %."""
        loss, total = self.losses["total"] / self.steps, self.seconds["total"]
        names = [name for name in PARTS if name in self.seconds]
        # Rounded are the places where one part ends and the next begins.
        ends = [sum(self.seconds[name] for name in names[:count]) for count in range(len(names) + 1)]
        percents = [round(100 * end / ends[-1]) for end in ends]
        shares = (f"{PARTS[name]} {b - a} %" for name, (a, b) in zip(names, pairwise(percents), strict=True))
        return f"loss {loss:.4g}, {1000 * total / self.steps:.0f} ms a step: {', '.join(shares)}"


def train_epoch(
    stepper: Stepper,
    batches: Iterable[Batch],
    accumulate: int,
    progress: Progress,
    seeds: Callable[[int], int],
    stop: StopRequest,
    bar: tqdm,
) -> bool:
    """Take one optimiser step on every `accumulate` batches, to the end of the epoch or until a rank is asked to stop.

    Args:
        stepper: takes the steps.
        batches: the batches of the epoch that are left, `accumulate` a step.
        accumulate: batches a step.
        progress: the epoch so far; every step is added.
        seeds: `seeds(step)` is what torch's global generator is seeded with before a step, so that a resumed epoch
            draws what the whole one would have drawn.
        stop: whether this rank was asked to stop.
        bar: progress bar, advanced by one a step.

    Returns:
        Whether a rank was asked to stop; the same on every rank.

    Raises:
        FloatingPointError: the loss, or after the last step a weight, is not finite; or no gradient in float16 was for
            long.
    """
    before, stopped = dict(progress.seconds), False
    start = time.perf_counter() - before.pop("total", 0.0)
    clock = Clock(stepper.device, before)
    for group in clock.each("data", groups(batches, accumulate)):
        torch.manual_seed(seeds(progress.steps))
        losses, counts, stopped = stepper(group, clock, lambda: bool(stop))
        progress.add(losses, counts)
        if not math.isfinite(losses["total"]):
            raise FloatingPointError(f"the loss is {losses['total']} in step {progress.steps}")
        bar.set_postfix(loss=f"{progress.losses['total'] / progress.steps:.4g}", refresh=False)
        bar.update()
        if stopped:
            break
    if not all(p.isfinite().all() for p in stepper.objective.parameters()):
        raise FloatingPointError("the weights are not finite after the last step")
    if stepper.scaler.get_scale() < LEAST_SCALE:
        raise FloatingPointError("the gradients in float16 are not finite at any scale: no step is taken")
    progress.seconds = {**clock.read(), "total": time.perf_counter() - start}
    return stopped


def groups(items: Iterable, size: int) -> Iterator[list]:
    """The items, `size` at a time."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def added(sums: Sequence[int], terms: Sequence[int]) -> list[int]:
    """Element-wise sums; no sums yet count as zeros."""
    return [a + b for a, b in zip(sums or [0] * len(terms), terms, strict=True)]
