"""A second process that trains beside the one of the tests."""

import os
import pickle
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor

from dsp_sparse.training import loop
from dsp_sparse.training.run import Run


@contextmanager
def job(rank: int, meeting):
    """Inside, this process is one of two that meet in a file."""
    where = {"init_method": f"file://{meeting}", "rank": rank, "world_size": 2, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", **where)
    try:
        yield
    finally:
        dist.destroy_process_group()


def serve(connection) -> None:
    """The second process: is rank 1 of every job it is told of, as `(meeting, function, arguments)`."""
    torch.set_num_threads(1)
    while task := connection.recv():
        meeting, function, arguments = task
        try:
            with job(1, meeting):
                result = function(*arguments)
        except BaseException as error:  # for the first process to look at
            result = error
        connection.send_bytes(pickle.dumps(result))


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
