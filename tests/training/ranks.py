"""Two processes that train together, beside the one of the tests."""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsp_sparse.training import loop
from dsp_sparse.training.run import Run
from dsp_sparse.training.stop import Interrupted

# For a start or a job that takes seconds. A machine may be busy; one on which it takes longer has a process that hangs.
TIME_LIMIT = 300


class Pair:
    """Two processes that do jobs together. They start when they are first needed, since importing torch takes long, and
    anew after a job in which one failed: torch numbers the groups of a process, and one that failed to begin counts.

    Args:
        folder: for the files in which they meet.
    """

    def __init__(self, folder: Path):
        self._meetings = (folder / str(number) for number in count())
        self._processes, self._connections = [], []

    def __call__(self, function: Callable, *arguments) -> list[tuple[Any, str]]:
        """Of each rank what the function returned or raised, and of one that failed a traceback.

        A rank that ended has raised an EOFError, one that was not done in time a TimeoutError.
        """
        if not self._processes:
            self._start()
        meeting, outcomes = next(self._meetings), {}
        for connection in self._connections:
            connection.send((meeting, function, arguments))
        end = time.monotonic() + TIME_LIMIT
        while len(outcomes) < 2:
            waiting = [connection for connection in self._connections if connection not in outcomes]
            for connection in wait(waiting, max(0, end - time.monotonic())) or waiting:
                outcomes[connection] = self._outcome(connection)
        found = [outcomes[connection] for connection in self._connections]
        if any(report for _, report in found):
            self.close()
        return found

    def _outcome(self, connection) -> tuple[Any, str]:
        """What a rank sent, by now."""
        if not connection.poll():
            problem = TimeoutError(f"not done within {TIME_LIMIT} s")
            return problem, str(problem)
        try:
            return pickle.loads(connection.recv_bytes())
        except EOFError as error:
            return error, "the process ended before it was done"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in (0, 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, rank), daemon=True)
            process.start()
            theirs.close()  # ours alone is left here, and says when the process ends
            self._processes.append(process)
            self._connections.append(ours)
        for connection in self._connections:
            assert connection.poll(TIME_LIMIT), f"a process did not start within {TIME_LIMIT} s"
            connection.recv()

    def close(self) -> None:
        """End both, whatever they do."""
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.kill()
            process.join()
            connection.close()
        self._processes, self._connections = [], []


def serve(connection, rank: int) -> None:
    """Do the jobs that arrive, as `(meeting, function, arguments)`, as one of two ranks."""
    torch.set_num_threads(1)
    connection.send("ready")
    while True:
        meeting, function, arguments = connection.recv()
        where = {"init_method": f"file://{meeting}", "rank": rank, "world_size": 2}
        report = ""
        try:
            with job(timeout=timedelta(seconds=TIME_LIMIT), **where):
                result = function(*arguments)
        except Interrupted as stop:  # no failure
            result = stop
        except BaseException as error:  # for the tests to look at
            result, report = error, traceback.format_exc()
        connection.send_bytes(pickle.dumps((result, report)))


@contextmanager
def job(**where):
    dist.init_process_group("gloo", **where)
    try:
        yield
    finally:
        dist.destroy_process_group()


def trained(config, folder, batches: Callable | None = None, at: dict | None = None) -> dict[str, Tensor]:
    """Train in float64, so that what is the same but for rounding is the same to many digits; no evaluation.

    Args:
        config: the settings.
        folder: the run folder.
        batches: takes the place of `Sources.batches`.
        at: what happens before the batch with that number, counted from 0: `at[1, "stop"]` is batch number on rank 1.

    Returns:
        Everything trained, by name.
    """
    sources = loop.open_sources(config)
    give, numbers = batches or sources.batches, count()

    def doubled(*place):
        for batch in give(*place):
            happen((at or {}).get((loop.rank(), next(numbers))))
            yield replace(batch, input=batch.input.with_feat(batch.input.feat.double()))

    run = Run(folder, config)
    net = loop.first_network(config, sources.store, run).double()
    modules = loop.train_stages(net, config, replace(sources, batches=doubled), run)
    return net.state_dict() | {f"{key}.{n}": value for key, m in modules.items() for n, value in m.items()}


def happen(what: str | None) -> None:
    if what == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "end":
        os._exit(1)
