"""Several processes, as torchrun starts them: the same result, and an end when one of them fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dsp_sparse import distributed
from dsp_sparse.distributed import pick_device, share
from dsp_sparse.errors import UserError

# As many threads in one process as torchrun gives each of several: the same rounding.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Seconds for what takes some; a process that waits for one that is gone would wait for days.
TIME_LIMIT = 600
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(*arguments, processes=1):
    """`python -m dsp_sparse ARGUMENTS` in so many processes."""
    launcher = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    command = [*launcher, "-m", "dsp_sparse", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=TIME_LIMIT)


def evaluation(run) -> dict:
    return {**json.loads((run / "evaluation-basic.json").read_text()), "seconds": None}


def test_two_processes_score_like_one_and_three_when_there_are_two_scenes(make_run, rooms_store):
    """The scores are equal to the last digit, and one process alone prints and writes."""
    run = make_run(rooms_store)
    assert start("evaluate", run).returncode == 0
    alone = evaluation(run)
    assert alone["scenes"] == 2
    for processes in (2, 3):
        (run / "evaluation-basic.json").unlink()
        done = start("evaluate", run, processes=processes)
        assert done.returncode == 0, done.stderr
        assert evaluation(run) == alone
        assert done.stdout.count("overall accuracy") == 1


def test_a_process_that_fails_ends_all(make_run, rooms_store, tmp_path):
    """The file that one of them cannot read is named, nothing is written, and nobody waits for it."""
    shutil.copytree(rooms_store.path, tmp_path / "store")
    scene = rooms_store.group(["Area_2"])[1]
    (tmp_path / "store" / scene.folder.relative_to(rooms_store.path) / "features.npy").unlink()
    run = make_run(rooms_store)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["store"] = str(tmp_path / "store")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    done = start("evaluate", run, processes=2)
    assert done.returncode != 0
    assert "features.npy: " in done.stderr
    assert not list(run.glob("evaluation*"))


def test_another_process_that_is_gone_is_an_error(tmp_path):
    """Who waits for the sum is told, in one line."""
    program = """
import os, numpy as np
from dsp_sparse.distributed import join, leave, rank, sum_over_ranks
join()
sum_over_ranks(np.ones(1, np.int64))
if rank() == 1:
    os._exit(0)
try:
    sum_over_ranks(np.ones(1, np.int64))
except ConnectionError as error:
    print("told:", error)
leave(0)
"""
    (tmp_path / "program.py").write_text(program)
    command = [*TORCHRUN, "2", str(tmp_path / "program.py")]
    package = {"PYTHONPATH": str(Path(distributed.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | package, timeout=TIME_LIMIT)
    assert "told: another process of the job ended" in done.stdout


def test_without_torchrun_there_is_one_process(monkeypatch):
    """Rank 0 of 1 takes everything, and a sum is what it was."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.join()
    assert (distributed.rank(), distributed.world()) == (0, 1)
    counts = np.arange(3)
    assert distributed.sum_over_ranks(counts).tolist() == [0, 1, 2]
    assert sorted(share([3, 1, 2], float)) == [1, 2, 3]
    with pytest.raises(SystemExit, match="3"):
        distributed.leave(3)


@pytest.mark.parametrize("world", ["2", "abc"])
def test_half_an_environment_of_torchrun_is_named(world, tmp_path):
    """No word of where the processes meet, or a number of them that is none. In a process of its own: torch counts the
    groups that it begins, the failed ones too, and later processes would meet under different names."""
    environment = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    command = [sys.executable, "-m", "dsp_sparse", "evaluate", str(tmp_path)]
    environment["WORLD_SIZE"] = world
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "WORLD_SIZE is set, but the job cannot be joined" in done.stderr


def test_a_mistake_that_all_processes_meet_is_told_once(make_run, rooms_store):
    """By one of them; the others end in silence."""
    done = start("evaluate", make_run(rooms_store), "--groups", "[Area_9]", processes=3)
    assert done.returncode != 0 and done.stderr.count("no group 'Area_9'") == 1


@pytest.mark.parametrize(
    ("number", "others", "problem", "told"),
    [
        (0, (0, 0), "mine", UserError),
        (0, (1, 0), None, SystemExit),
        (1, (1, 1), "mine", SystemExit),
        (1, (1, 1), None, SystemExit),
        (1, (0, 0), "mine", UserError),
        (1, (1, 0), "mine", UserError),
    ],
)
def test_who_tells_of_a_mistake(number, others, problem, told, monkeypatch):
    """Rank 0 if it met it; else everyone who did. No rank goes on. `others`: how many of them did, is rank 0 one."""
    monkeypatch.setattr(distributed, "rank", lambda: number)
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda counts: counts + np.array(others))
    with pytest.raises(told), distributed.together():
        if problem:
            raise UserError(problem)


def test_costly_items_are_not_counted_but_weighed(monkeypatch):
    """One that costs as much as ten others stands against them."""
    monkeypatch.setattr(distributed, "world", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(share([1.0] * 5 + [10.0] + [1.0] * 5, float))
    assert shares == [[10.0], [1.0] * 10]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_are_all_items_once_and_about_as_costly(ranks, monkeypatch):
    """Every item has one rank; no rank has more to do than another by more than one item."""
    costs = np.random.default_rng(0).integers(1, 100, 20).tolist()
    monkeypatch.setattr(distributed, "world", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(share(list(enumerate(costs)), lambda item: item[1]))
    assert sorted(item for part in shares for item in part) == list(enumerate(costs))
    loads = [sum(cost for _, cost in part) for part in shares]
    assert max(loads) - min(loads) <= max(costs)


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    """auto and cuda are the GPU of the number of the process; a device with a number is that one."""
    asked = []
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: asked.append(device) or empty(*shape))
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name in ("auto", "cuda", "cuda:1", "cpu"):
        pick_device(name)
    monkeypatch.delenv("LOCAL_RANK")
    pick_device("auto")
    assert asked == ["cuda:3", "cuda:3", "cuda:1", "cpu", "cuda:0"]


def test_a_device_that_is_not_there_is_named():
    """The setting is named with its value."""
    for name in ("cuda:77", "abacus"):
        with pytest.raises(UserError, match=f"device '{name}' cannot be used"):
            pick_device(name)
