"""Peak memory of one CPU implementation, in a process of its own.

A small call of the same kind comes first, so that loading libraries and starting threads is not counted.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from . import suites
from .measure import peak_bytes
from .row import Contender

SMALL = 2000  # raw points of the small call


def measured_apart(suite: str, row: str, contender: str, inputs: Path, with_peers: bool) -> int:
    """Peak memory in bytes of the contender of that name. `inputs`: the suite's inputs, written by torch.save.

    Raises:
        RuntimeError: the process ended early, as for want of memory.
    """
    context = multiprocessing.get_context("forkserver")  # a server forks off processes that have used no thread yet
    context.set_forkserver_preload([f"{suites.__name__}.{suite}"])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_measure, suite, row, contender, inputs, with_peers, torch.get_num_threads()).result()


def _measure(suite: str, row: str, contender: str, inputs: Path, with_peers: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    module = suites.load(suite)

    def setup(inputs: dict):
        chosen: Contender = next(
            each
            for found in module.rows(inputs, "cpu", with_peers)
            if found.name == row
            for each in found.contenders
            if each.name == contender
        )
        return chosen.setup()

    setup(module.inputs(SMALL))()
    return peak_bytes(setup(torch.load(inputs, weights_only=True)), "cpu")
