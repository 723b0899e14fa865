"""Twenty million points through the program, as a user types it, in 4 GB of memory."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

GIGABYTE = 10**9
LIMIT = 4 * GIGABYTE
ROOMS, POINTS = 40, 500_000
SETTINGS = {
    "data": {"train_groups": ["Area_1", "Area_2"], "test_groups": ["Area_3"], "batch_size": 4, "workers": 2},
    "kpfcnn": {"grid_size": 0.04, "first_width": 16, "blocks": [1, 1, 1, 1, 1]},
    "method": "csfr",
    "optim": {"epochs": 2, "steps_per_epoch": 10},
    "eval": {"votes": 1},
}


def family(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [pid]
    for each in found:  # grows
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def memory(pid: int) -> int:
    """Bytes of memory of a process: pages that it shares count in parts (PSS). 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def run(log: Path, *arguments) -> tuple[float, int]:
    """Seconds that `dsp-sparse ARGUMENTS` takes, and the most memory that it and its processes have at a time."""
    started, peak = time.monotonic(), 0
    with log.open("w") as output:
        command = [sys.executable, "-m", "dsp_sparse", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                peak = max(peak, sum(map(memory, family(process.pid))))
            except OSError:
                continue  # a process ended while it was looked at
            time.sleep(0.05)
    assert process.returncode == 0, log.read_text()[-2000:]
    assert peak > 10**8, "a process with torch takes more: it was not measured"
    return time.monotonic() - started, peak


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="measures memory as Linux counts it")
def test_twenty_million_points_fit_into_four_gigabytes(tmp_path, capsys):
    """No step from making rooms to scores needs more than 4 GB, all its processes together."""
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "store": str(tmp_path / "store")}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    rooms, store, trained = tmp_path / "rooms", tmp_path / "store", tmp_path / "run"
    steps = {
        "rooms": (rooms, "--rooms", ROOMS, "--points", POINTS, "--seed", 1, "--workers", 2),
        "prepare": ("s3dis", rooms, store, "--grid", 0.04, "--workers", 2),
        "check": (store,),
        "label": (store, "--rate", 0.1),
        "train": (tmp_path / "train.yaml", "--out", trained),
        "evaluate": (trained,),
    }
    with capsys.disabled():
        print(f"\n{ROOMS * POINTS:,} points")
        for step, arguments in steps.items():
            seconds, peak = run(tmp_path / f"{step}.txt", step, *arguments)
            print(f"{step:10} {seconds:6.1f} s  {peak / GIGABYTE:5.2f} GB", flush=True)
            assert peak < LIMIT, step
    assert "mIoU" in (tmp_path / "evaluate.txt").read_text()
