"""The processes of one job, as torchrun starts them. Without torchrun there is one: rank 0 of 1.

    torchrun --nproc-per-node 2 -m dsp_sparse train SETTINGS.yaml

Evaluation passes nothing but sums of integers between the ranks, so that a score does not depend on how many there are.
What lies on the CPU travels through gloo, what lies on GPUs, the gradients of training, through NCCL.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from .errors import UserError

# A rank that is done waits for the slowest one. One that died is noticed at once: its connection closes.
PATIENCE = timedelta(days=7)

Item = TypeVar("Item")


def rank() -> int:
    """The number of this process among those of the job."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join() -> None:
    """Make the processes that torchrun started one job, until they `leave`; another process is a job of its own.

    Raises:
        UserError: the environment does not say how to reach the other processes.
    """
    if _processes() == "1":
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"WORLD_SIZE is set, but the job cannot be joined ({str(error).splitlines()[0]})") from None


def require_one_process(command: str) -> None:
    """Raise a UserError under torchrun: the processes would all do the same work, in one folder."""
    if (count := _processes()) != "1":
        raise UserError(f"{command} runs in one process, got WORLD_SIZE {count}; start it without torchrun")


def _processes() -> str:
    """How many processes torchrun says that it started."""
    return os.environ.get("WORLD_SIZE", "1")


def leave(code: int) -> NoReturn:
    """End this process.

    One of several ends at once. Were it to take the interpreter and the group down step by step, threads of gloo that
    still run could abort it after all its work. When one fails, torchrun ends the others, which may still have to tell
    why: rank 0 tells for all, so it gets the time to.
    """
    if not dist.is_initialized():
        sys.exit(code)
    if code and rank() > 0:
        time.sleep(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def together() -> Iterator[None]:
    """Inside, every rank does the same, before the work is shared; none goes on before all are through.

    Raises:
        UserError, OSError: what this rank met, unless rank 0 met something, too: then that is told once, by rank 0.
        SystemExit: it is for another rank to tell what went wrong.
    """
    problem = None
    try:
        yield
    except (UserError, OSError) as error:
        problem = error
    anywhere, first = sum_over_ranks(np.array([problem is not None, problem is not None and rank() == 0], np.int64))
    if problem is not None and (rank() == 0 or not first):
        raise problem
    if anywhere:
        raise SystemExit(2)


def pick_device(name: str) -> torch.device:
    """The torch device of a setting, that of this rank where there are several GPUs.

    Args:
        name: `auto` is the GPU when there is one; `auto` and `cuda` are the GPU with the number of the process on its
            machine (LOCAL_RANK of torchrun).

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None


def share(items: Sequence[Item], cost: Callable[[Item], float]) -> list[Item]:
    """The items that this rank takes: each goes, the costly ones first, to the rank that has least to do so far.

    Args:
        items: the same on every rank.
        cost: how long an item takes, in any unit.
    """
    loads, mine = [0.0] * world(), []
    for item in sorted(items, key=cost, reverse=True):
        lowest = loads.index(min(loads))
        loads[lowest] += cost(item)
        if lowest == rank():
            mine.append(item)
    return mine


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """The sum of an array of numbers over all ranks, on every rank. Every rank waits for the others here.

    Raises:
        ConnectionError, SystemExit: as `reaching_others`.
    """
    if world() == 1:
        return values
    total = torch.from_numpy(values.copy())
    with reaching_others():
        dist.all_reduce(total)
    return total.numpy()


@contextmanager
def reaching_others() -> Iterator[None]:
    """Inside, ranks exchange what they have.

    Raises:
        ConnectionError: another rank ended before it came here; this one is rank 0, which tells it.
        SystemExit: the same on another rank.
    """
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if rank() > 0:
            raise SystemExit(2) from None
        raise ConnectionError("another process of the job ended before it was done; its own message says why") from None


def follow_first_rank(module: nn.Module) -> None:
    """Give the buffers of a module the values that they have on rank 0."""
    if world() > 1:
        with reaching_others():
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
