"""Peak memory of one CPU implementation, in a process of its own.

A small call of the same kind comes first, so that loading libraries and starting threads is not counted.
"""

import contextlib
import multiprocessing
import signal
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from . import suites
from .inputs import SMALL
from .measure import Peak, peak_memory
from .row import Contender

PATIENCE = 10  # seconds that a process may take to tidy up


def measured_apart(suite: str, row: str, contender: str, inputs: Path, with_peers: bool) -> Peak:
    """Peak memory of the contender of that name. `inputs`: the suite's inputs, written by torch.save.

    Raises:
        RuntimeError: the implementation failed, or the process ended early, as for want of memory.
    """
    context = multiprocessing.get_context("forkserver")  # a server forks off processes that have used no thread yet
    context.set_forkserver_preload([f"{suites.__name__}.{suite}"])
    _start_server()
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, suite, row, contender, inputs, with_peers, torch.get_num_threads())
    process = context.Process(target=_answer, args=arguments)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
        process.join(PATIENCE)
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended early, with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def _start_server() -> None:
    """Start the server, and with it the processes it forks, deaf to Ctrl-C: this process ends them."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def _answer(sender: Connection, *arguments) -> None:
    try:
        answer = _measure(*arguments)
    except Exception as error:  # as text, for not every exception can be sent
        answer = RuntimeError(f"{type(error).__name__}: {error}")
    with contextlib.suppress(BrokenPipeError):  # interrupted meanwhile: nobody waits for it
        sender.send(answer)


def _measure(suite: str, row: str, contender: str, inputs: Path, with_peers: bool, threads: int) -> Peak:
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
    return peak_memory(setup(torch.load(inputs, weights_only=True)), "cpu")
