"""Stop signals: noted at first, obeyed when the work says so, and no patience tried."""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dsp_sparse.training import stop as stop_module
from dsp_sparse.training.stop import STOPS, Interrupted, catch_stops, terminate_as_interrupt


def send(signum: int) -> None:
    """A signal to this process; its handler has run when this returns."""
    os.kill(os.getpid(), signum)
    time.sleep(0)


def handlers() -> list:
    return [signal.getsignal(signum) for signum in STOPS]


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_the_work_says_when_it_ends(signum, code, monkeypatch):
    monkeypatch.setattr(stop_module, "ECHO_SECONDS", math.inf)  # the test may be held up between two signals
    before = handlers()
    with pytest.raises(Interrupted) as end, catch_stops() as stop:
        assert not stop
        send(signum)
        assert stop and stop.signal == signum
        send(signal.SIGTERM)  # the process's parent, a moment later
        send(signal.SIGINT)
        raise Interrupted(stop.signal)
    assert end.value.code == code and isinstance(end.value, KeyboardInterrupt)
    assert handlers() == before


def test_a_signal_that_came_too_late_acts_after_the_block():
    done = []
    with pytest.raises(Interrupted), catch_stops():
        send(signal.SIGTERM)
        done.append(True)
    assert done


def test_another_error_is_not_hidden_by_a_signal():
    with pytest.raises(ZeroDivisionError), catch_stops():
        send(signal.SIGTERM)
        raise ZeroDivisionError


@pytest.mark.parametrize("first", STOPS)
def test_a_second_ctrl_c_kills_at_once(first):
    """After the time in which one press may arrive twice; nothing that the process still does can delay it."""
    program = (
        "import os, signal, types\n"
        "from dsp_sparse.training import stop\n"
        "now = [0.0]\n"
        "stop.time = types.SimpleNamespace(monotonic=lambda: now[0])\n"
        "with stop.catch_stops():\n"
        f"    os.kill(os.getpid(), {int(first)})\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('one press', flush=True)\n"
        "    now[0] += 2\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('patient', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "one press\npatient\n", "")


def test_rank_0_alone_may_have_been_told():
    """A rank that stops with the others ends with the code of SIGTERM."""
    assert Interrupted(None).code == 143


def test_sigterm_is_an_interrupt_like_ctrl_c():
    """Files are cleared up on the way; afterwards a signal acts as before."""
    before, cleared = handlers(), []
    with pytest.raises(Interrupted) as end, terminate_as_interrupt():
        try:
            send(signal.SIGTERM)
        finally:
            cleared.append(True)
    assert end.value.code == 143 and cleared
    assert handlers() == before


def test_other_threads_train_without_signals():
    """Python lets only the main thread set handlers: elsewhere a training runs, and nothing asks it to stop."""
    found = []

    def work() -> None:
        with terminate_as_interrupt(), catch_stops() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
