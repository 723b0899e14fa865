"""The same work on many things, by several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from .errors import UserError


def run_all(work: Callable, jobs: Sequence[tuple], workers: int, done: Callable[[Any], None], advice: str) -> None:
    """Call `work(*job)` for every job, in this process or, of more than one worker, in processes of their own.

    When a job fails or this process is interrupted, no other one is begun, and those under way end at their next
    `go_on`. The workers end with this process, however that ends.

    Args:
        work: picklable as an argument of a new process: it may hold shared memory.
        jobs: its arguments.
        workers: number of processes, at least 1; no more than jobs are started.
        done: called here with what a job returned, whenever one is done.
        advice: what to try when a worker was killed.

    Raises:
        UserError: a worker was killed. And what `work` raises.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            done(work(*job))
        return
    # Fresh processes: forked ones would inherit the locks of torch's threads.
    fresh = multiprocessing.get_context("spawn")
    ended = fresh.RawValue("b")  # without a lock: a process that is killed while it holds one stops all others
    with ProcessPoolExecutor(workers, fresh, _begin, (work, ended)) as pool:
        try:
            for job in as_completed([pool.submit(_run, *job) for job in jobs]):
                done(job.result())
        except BrokenProcessPool as error:
            raise UserError(f"a worker was killed (out of memory?); try {advice}") from error
        except BaseException:
            ended.value = 1
            pool.shutdown(cancel_futures=True)
            raise


def go_on() -> None:
    """To be called now and then by `work`: ends a job whose result nobody waits for any more."""
    if _ended is not None and _ended.value:
        raise CancelledError


_work, _ended = None, None  # of a worker


def _begin(work: Callable, ended: object) -> None:
    """Set up a worker: one thread, and it ends with its parent."""
    global _work, _ended
    _work, _ended = work, ended
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and tells its workers

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run(*job: object) -> Any:
    return _work(*job)
