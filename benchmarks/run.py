"""Run a suite: check that all implementations agree, time them in turns, measure their memory, print all of it."""

import datetime
import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from dsp_sparse import __version__

from . import inputs, measure, peers, suites, table
from .memory import measured_apart
from .row import OURS, Row


def run(
    suite: str,
    device: str,
    points: int,
    repeats: int,
    with_peers: bool,
    only: list[str] | None = None,
) -> dict:
    """Print the report of a suite row by row, what is being measured to stderr, and return it as written to JSON.

    Args:
        suite: one of `suites.NAMES`.
        device: "cpu" or "cuda".
        points: raw points of the room.
        repeats: measurements of each implementation; slow ones are measured fewer times, but at least four.
        with_peers: whether other libraries are measured too.
        only: names of the rows to measure, None for all.
    """
    progress("making the inputs and measuring the machine…")
    module = suites.load(suite)
    made = module.inputs(points)
    rows = [row for row in module.rows(made, device, with_peers) if not only or row.name in only]
    machine = measure.machine(device)
    report = {
        "suite": suite,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {"kind": device, "name": device_name(device), "threads": torch.get_num_threads()},
        "machine": machine,
        "versions": versions(),
        "inputs": {"raw points": points, "seed": inputs.SEED, **module.describe(made)},
        "repeats": repeats,
        "rows": [],
    }
    print(table.head(report), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "inputs.pt"
        torch.save(made, saved)
        for number, row in enumerate(rows, start=1):
            progress(f"measuring {row.name}… ({number} of {len(rows)})")

            def peak(name: str, call: measure.Call, row=row) -> measure.Peak:
                if device == "cuda":
                    return measure.peak_memory(call, device)
                return measured_apart(suite, row.name, name, saved, with_peers)

            report["rows"].append(measured(row, device, machine, repeats, peak))
            print(table.plain(report["rows"][-1]), flush=True)
    return report


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(
    row: Row, device: str, machine: dict, repeats: int, peak: Callable[[str, measure.Call], measure.Peak]
) -> dict:
    """The report of a row. `peak(name, call)` gives the peak memory of an implementation."""
    results = {contender.name: {"name": contender.name} for contender in row.contenders}
    on_cpu = {contender.name for contender in row.contenders if contender.on_cpu and device != "cpu"}
    calls, ours = {}, None
    for contender in row.contenders:
        result = results[contender.name]
        try:
            call = contender.setup()
            plain = contender.plain(call())
            ours = plain if contender.name == OURS else ours
            if plain is not None and ours is not None:
                result["difference"] = row.difference(ours, plain)
                if not result["difference"] <= row.tolerance:
                    raise ValueError(f"its result differs by {result['difference']:.2g}")
            calls[contender.name] = call
            result["status"] = "measured"
        except Exception as error:  # whatever another library raises belongs in the report
            result.update(status=_status(error), reason=_one_line(error))
    del ours
    for name, durations in measure.seconds(calls, repeats, device).items():
        results[name]["seconds"] = measure.summary(durations)
        if row.amount:
            results[name]["rate"] = {"value": row.amount / results[name]["seconds"]["median"], "unit": row.unit}
    for name in on_cpu:
        results[name]["name"] += " on the CPU"
    for name, call in calls.items():
        if name in on_cpu:
            continue
        try:
            found = peak(name, call)
        except RuntimeError as error:
            results[name]["reason"] = _one_line(error)
            continue
        results[name]["peak_bytes"] = found.extra
        if row.whole_process and found.process is not None:
            results[name]["process_bytes"] = found.process
    work = row.work()
    floor = {"flops": work.flops, "bytes": work.bytes, "dtype": work.dtype, "seconds": work.seconds(machine)}
    _relate(results, floor["seconds"])
    return {"name": row.name, "floor": floor, "implementations": list(results.values())}


def _relate(results: dict[str, dict], floor: float) -> None:
    """Ratios to ours, and the floor's share of the time. None of memory below one MiB: it is not known well enough."""
    ours = results[OURS]
    for result in results.values():
        if "seconds" in result:
            result["floor_share"] = floor / result["seconds"]["median"]
            if "seconds" in ours:
                result["time_ratio"] = result["seconds"]["median"] / ours["seconds"]["median"]
        if min(result.get("peak_bytes", 0), ours.get("peak_bytes", 0)) >= 1 << 20:
            result["memory_ratio"] = result["peak_bytes"] / ours["peak_bytes"]


def _status(error: Exception) -> str:
    missing = any(isinstance(each, ModuleNotFoundError) for each in (error, error.__cause__))
    return "not installed" if missing else "failed"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python, this package and what it is compared with, as far as installed."""
    found = {"dsp-sparse": __version__, "python": platform.python_version()}
    distributions = importlib.metadata.packages_distributions()
    for package in ("torch", "numpy", *peers.PACKAGES):
        found |= {name: importlib.metadata.version(name) for name in distributions.get(package, [])}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
