"""Stopping where one can go on: a signal is noted, and obeyed when the state can be saved."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)

# One press of Ctrl-C or one `timeout` often reaches a process twice, through its group and through its parent.
ECHO_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """A stop signal ended the work, and what was done is kept.

    Args:
        signum: the signal; None where another process of the job was told.

    Attributes:
        code: the exit code of a process that the signal ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, signum: int | None = None):
        super().__init__()
        self.code = 128 + (signum or signal.SIGTERM)


class StopRequest:
    """Whether this process was asked to stop: false until it was.

    Attributes:
        signal: the first signal that asked for it, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def note(self, signum: int, frame: object = None) -> None:
        """The handler of a stop signal. A SIGINT after a request kills at once: the user will not wait."""
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signum, now
        elif signum == signal.SIGINT and now - self._since > ECHO_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


@contextmanager
def catch_stops() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM end nothing but are noted in the request that is yielded.

    Signals reach the main thread alone: in another one the request stays false. After the block a signal acts as before
    it; one that came too late for the work inside to see acts then.
    """
    stop = StopRequest()
    try:
        before = {signum: signal.signal(signum, stop.note) for signum in STOPS}
    except ValueError:  # not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if stop:
        raise Interrupted(stop.signal)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises `Interrupted`, so that files and processes are cleared up as they are after Ctrl-C."""

    def terminate(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
