"""Where the time of training goes."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Clock:
    """Adds up seconds by name: on a CPU of wall-clock time, on a GPU of its stream.

    On a GPU the program runs ahead of the device and is not held up to be measured: marks are put into the stream and
    read in the end. What a part asked for counts until it is done and, where the device waits for the program, so does
    the waiting.

    Args:
        device: where the work is done.
        seconds: what was added up before, by name.
    """

    def __init__(self, device: torch.device, seconds: Mapping[str, float]):
        self._device = device
        self._seconds = defaultdict(float, seconds)
        self._parts: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._mark()
        yield
        self._parts.append((name, begin, self._mark()))

    def each(self, name: str, items: Iterable) -> Iterator:
        """The items, while the waiting for each one is counted."""
        iterator = iter(items)
        while True:
            with self(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def read(self) -> dict[str, float]:
        """The seconds by name so far. Waits for the device."""
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self._device)
        for name, begin, end in self._parts:
            self._seconds[name] += begin.elapsed_time(end) / 1000 if cuda else end - begin  # events tell milliseconds
        self._parts.clear()
        return dict(self._seconds)

    def _mark(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
