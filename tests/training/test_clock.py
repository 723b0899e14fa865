"""Where the time goes: wall-clock time on a CPU, marks in the stream of a GPU that hold nothing up."""

import time
from types import SimpleNamespace

import pytest
import torch

from dsp_sparse.training import clock
from dsp_sparse.training.clock import Clock


def timed(device: torch.device, advance) -> Clock:
    """Two parts and the waiting for two items, after three seconds of an earlier part."""
    clock = Clock(device, {"first": 3.0})
    with clock("first"):
        advance(1)
    advance(10)  # counts nowhere
    for item in clock.each("items", (advance(4) or number for number in (1, 2))):
        with clock("second"):
            advance(item)
    return clock


def test_seconds_add_up_by_name(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    timed_clock = timed(torch.device("cpu"), lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(2):  # reading changes nothing
        assert timed_clock.read() == {"first": 4, "items": 8, "second": 3}


def test_a_gpu_is_asked_for_its_own_time_and_not_waited_for(monkeypatch):
    """Of a stream that is behind the program nothing is read before the end."""
    now, done = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream of cuda:1" and not done
            self.at = now[0]

        def elapsed_time(self, end):
            assert done == ["cuda:1"]
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append(str(device)))
    timed_clock = timed(torch.device("cuda", 1), lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert timed_clock.read() == {"first": 4, "items": 8, "second": 3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_work_on_a_gpu_counts_where_it_was_asked_for():
    """The program is through with a part at once, the device is not."""
    clock, matrix = Clock(torch.device("cuda"), {}), torch.rand(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with clock("work"):
        for _ in range(100):
            matrix @ matrix
    asked = time.perf_counter() - begin
    with clock("nothing"):
        pass
    seconds = clock.read()
    assert asked < seconds["work"] <= time.perf_counter() - begin and seconds["nothing"] < seconds["work"] / 10
