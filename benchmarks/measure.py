"""Time, peak memory, and how fast the machine could be at best."""

import contextlib
import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

Call = Callable[[], object]

ROUNDS = 2
BUDGET = 4.0  # seconds that a call is repeated for in a round, once it was measured twice
LEAST = 2


def seconds(calls: dict[str, Call], repeats: int, device: str) -> dict[str, list[float]]:
    """Durations of every call, measured in turns, two rounds, so that a slow moment of the machine does not hit one.

    A turn begins with a call that is not counted: it takes caches and memory back from the others. CUDA calls are timed
    with events on the current stream, so the time is that of the device, launches included where it waits for them.
    """
    measure = _cuda_seconds if device == "cuda" else _cpu_seconds
    durations = {name: [] for name in calls}
    for turn in range(ROUNDS):
        for name, call in calls.items():
            call()
            done = []
            while len(done) < share(repeats, turn) and (len(done) < LEAST or sum(done) < BUDGET):
                done.append(measure(call))
            durations[name] += done
    return durations


def share(repeats: int, turn: int) -> int:
    """How many of the repeats a round takes."""
    return (repeats + ROUNDS - 1 - turn) // ROUNDS


def _cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    stop = time.perf_counter()
    del result  # after the clock: freeing is not the operation
    return stop - start


def _cuda_seconds(call: Call) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    result = call()
    stop.record()
    stop.synchronize()
    del result
    return start.elapsed_time(stop) / 1000


class Peak(NamedTuple):
    """Memory at the worst moment of a call, in bytes.

    Args:
        extra: beyond what was there before the call, its result included.
        process: of the whole process; None on CUDA, where the allocator has nothing to say of the rest.
    """

    extra: int
    process: int | None


def peak_memory(call: Call, device: str) -> Peak:
    """Memory at the worst moment of a call.

    On CUDA: the allocator's own count, exact. On the CPU: how far the resident memory of the process rises during the
    call. For that the C library first returns what earlier work freed, so that none of it can be reused unseen, and
    the kernel's record of the peak (VmHWM) is reset; where that is not allowed, the peak of the process so far counts
    as the start, which makes the figure a lower bound. Good to about one MiB. Run it in a fresh process, after a small
    call of the same kind has loaded libraries and started threads (benchmarks.memory does).
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak, process = torch.cuda.max_memory_allocated(), None
    else:
        before = _reset_resident_peak()
        result = call()
        peak = process = _resident_peak()
    del result
    return Peak(max(peak - before, 0), process)


def _reset_resident_peak() -> int:
    """Forget the highest resident memory so far; returns where counting starts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return _resident_peak()


def _resident_peak() -> int:
    if sys.platform == "linux":
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- the floor


def machine(device: str) -> dict:
    """Matrix product rates in FLOP/s (`float32`, on CUDA also `bfloat16`) and copy bandwidth in bytes/s (`copy`).

    The rates are the best of several runs, since the floor is what the machine could do.
    """
    rates = {"float32": _product_rate(device, torch.float32), "copy": _copy_bandwidth(device)}
    if device == "cuda":
        rates["bfloat16"] = _product_rate(device, torch.bfloat16)
    return rates


def _product_rate(device: str, dtype: torch.dtype) -> float:
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products = {"torch.mm": lambda: a @ b}
    if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        # oneDNN's, which torch.mm does not use for float32 and which may be faster.
        products["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return 2 * size**3 / _best(products, device)


def _copy_bandwidth(device: str) -> float:
    source = torch.empty(64 << 20 if device == "cpu" else 256 << 20, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best({"copy": lambda: target.copy_(source)}, device)


def _best(calls: dict[str, Call], device: str) -> float:
    return min(min(durations) for durations in seconds(calls, 8, device).values())


def summary(durations: list[float]) -> dict:
    return {
        "median": statistics.median(durations),
        "min": min(durations),
        "max": max(durations),
        "repeats": len(durations),
    }
