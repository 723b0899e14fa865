"""What befalls a long training: kill -9, signals, a full disk, numbers that run away. Real processes, real signals."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tiny import with_optim

from dsp_sparse.files import locked
from dsp_sparse.training.checkpoint import load_model, load_modules, load_state, save_state
from dsp_sparse.training.run import read_metrics

STAGES, EPOCHS, STEPS = 2, 3, 20
# Seconds for what takes some. A machine may be busy; one on which it takes longer has a process that hangs.
TIME_LIMIT = 600


@pytest.fixture(scope="module")
def settings_file(settings, tmp_path_factory):
    """Settings of a training of two stages that takes some seconds."""
    config = with_optim(replace(settings, backbone="kpfcnn", method="csfr-isfr"), epochs=EPOCHS, steps_per_epoch=STEPS)
    path = tmp_path_factory.mktemp("settings") / "train.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    return path


@pytest.fixture(scope="module")
def straight(settings_file, tmp_path_factory):
    """The run folder of that training, never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    finish(settings_file, folder)
    return folder


def command(settings_file: Path, folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "dsp_sparse", "train", str(settings_file), "--out", str(folder), *flags]


def run(settings_file: Path, folder: Path, *flags: str, **options) -> subprocess.CompletedProcess:
    """Run the command to its end."""
    arguments = command(settings_file, folder, *flags)
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=TIME_LIMIT, **options)


def finish(settings_file: Path, folder: Path, *flags: str) -> None:
    done = run(settings_file, folder, *flags)
    assert done.returncode == 0, done.stderr


def environment() -> dict[str, str]:
    """One thread, so that all processes add in the same order."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class Training:
    """A training in a process group of its own, as a shell starts it."""

    def __init__(self, settings_file: Path, folder: Path, *flags: str):
        self.folder, self.screen = folder, folder.with_name(f"{folder.name}.screen")
        before = self.starts()
        arguments = command(settings_file, folder, *flags)
        with self.screen.open("w") as screen:
            self.process = subprocess.Popen(
                arguments, stdout=screen, stderr=screen, env=environment(), start_new_session=True
            )
        self.wait(lambda: self.starts() > before)

    def starts(self) -> int:
        """How often a training was begun in the folder."""
        path = self.folder / "environment.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    def steps_shown(self) -> int:
        """The steps that the progress bars have shown as done, over all stages."""
        bars = re.findall(r"([\w-]+) \d+/\d+:[^|]*\|[^|]*\| (\d+)/\d+ \[", self.screen.read_text())
        latest = {stage: int(steps) for stage, steps in bars}
        return sum(latest.values())

    def wait(self, until) -> None:
        """Wait for a condition; the training must not end before it holds."""
        end = time.monotonic() + TIME_LIMIT
        while not until():
            assert self.process.poll() is None, self.screen.read_text()
            assert time.monotonic() < end, self.screen.read_text()
            time.sleep(0.02)

    def signal(self, signum: int) -> int:
        """Send a signal to the whole group, as a terminal does; the exit code as a shell tells it."""
        os.killpg(self.process.pid, signum)
        code = self.process.wait(timeout=TIME_LIMIT)
        return code if code >= 0 else 128 - code


def steps_done(folder: Path) -> int:
    """The optimiser steps behind the checkpoint."""
    state = load_state(folder / "checkpoint.pt")
    return (state.stage * EPOCHS + state.epoch) * STEPS + state.step


def numbers(folder: Path) -> tuple[dict, list[dict], dict]:
    """Weights, metrics and scores of a finished run; everything but the seconds."""
    modules = {f"{k}.{n}": v for k, m in load_modules(folder / "modules.pt").items() for n, v in m.state_dict().items()}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder / "metrics.jsonl")]
    results = json.loads((folder / "results.json").read_text())
    scores = {key: value for key, value in results.items() if "seconds" not in key}
    return {**load_model(folder).net.state_dict(), **modules}, lines, scores


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs ended with the same numbers, bit for bit, and with the same files."""
    (weights, lines, scores), (others, other_lines, other_scores) = numbers(first), numbers(second)
    assert list(weights) == list(others)
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    assert len(lines) == STAGES * EPOCHS and lines == other_lines
    assert scores == other_scores
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())


def error_of(failed: subprocess.CompletedProcess) -> str:
    """The one line that a failed command ends with; no traceback stands before it."""
    start = "dsp-sparse train: error: "
    errors = [line for line in failed.stderr.splitlines() if start in line]
    assert len(errors) == 1 and "Traceback" not in failed.stderr, failed.stderr
    return errors[0].partition(start)[2]


def test_killed_at_random_moments(settings_file, straight, tmp_path):
    """kill -9 three times, in an epoch or after it, whatever it was doing: the same command ends with the numbers of an
    unbroken run."""
    folder = tmp_path / "run"
    for _ in range(3):
        training = Training(settings_file, folder)
        epochs = len(read_metrics(folder / "metrics.jsonl")) + random.choice((0, 1))
        training.wait(lambda epochs=epochs: len(read_metrics(folder / "metrics.jsonl")) >= epochs)
        time.sleep(random.uniform(0, 0.2))
        assert training.signal(signal.SIGKILL) == 137, training.screen.read_text()
    finish(settings_file, folder)
    assert_same_run(straight, folder)
    assert len(json.loads((folder / "environment.json").read_text())) == 4


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def stopped(request, settings_file, tmp_path_factory):
    """A run folder whose training was stopped in the middle of an epoch: by Ctrl-C, or as a cluster ends its jobs.

    All processes of the group got the signal, the loader's two workers, too.
    """
    folder = tmp_path_factory.mktemp("stopped") / "run"
    training = Training(settings_file, folder, "--data.workers", "2")
    training.wait(lambda: training.steps_shown() % STEPS)
    shown = training.steps_shown()
    assert training.signal(request.param) == 128 + request.param, training.screen.read_text()
    screen = training.screen.read_text()
    assert screen.endswith("interrupted: the same command goes on where it stopped\n") and "Traceback" not in screen
    assert shown <= steps_done(folder) < STAGES * EPOCHS * STEPS, "steps were lost"
    return folder


def test_stopped_in_the_middle_of_an_epoch(stopped, settings_file, straight, tmp_path):
    """The same command ends with the numbers of an unbroken run; the loader may have another number of workers."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    finish(settings_file, folder, "--resume")
    assert_same_run(straight, folder)


@pytest.mark.parametrize("stopped", [signal.SIGTERM], indirect=True)
def test_a_full_disk(stopped, settings_file, tmp_path):
    """Whichever file it is that does not fit: one line names it, and the last good checkpoint is as it was."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    good = (folder / "checkpoint.pt").read_bytes()
    for limit, file in ((200, "environment.json"), (len(good) // 4, "checkpoint.pt")):
        room = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        failed = run(settings_file, folder, preexec_fn=room)
        assert failed.returncode == 2
        assert error_of(failed).endswith(f"File too large: '{folder / file}'")
        assert (folder / "checkpoint.pt").read_bytes() == good
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("stopped", [signal.SIGTERM], indirect=True)
def test_numbers_that_run_away(stopped, settings_file, tmp_path):
    """One line, which says that the last checkpoint is kept where there is one, and only there."""
    diverged = run(settings_file, tmp_path / "new", "--optim.lr", "1e30")
    error = error_of(diverged)
    assert diverged.returncode == 1
    assert error.startswith("csfr, epoch 1: ") and "optim.lr" in error and "checkpoint" not in error
    assert not (tmp_path / "new" / "checkpoint.pt").exists()

    folder = shutil.copytree(stopped, tmp_path / "old")
    state = load_state(folder / "checkpoint.pt")
    next(iter(state.net.values())).fill_(float("nan"))
    save_state(folder / "checkpoint.pt", state)
    before = (folder / "checkpoint.pt").read_bytes()
    diverged = run(settings_file, folder)
    assert diverged.returncode == 1
    assert f"the last checkpoint in {folder} is kept" in error_of(diverged)
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_a_worker_is_killed(settings_file, tmp_path):
    """As by a system that runs out of memory: one line says what to try. (Another worker, whose partner is gone then,
    may complain below it.)"""
    training = Training(settings_file, tmp_path / "run", "--data.workers", "1")
    tasks = Path(f"/proc/{training.process.pid}/task/{training.process.pid}/children")
    training.wait(lambda: training.steps_shown() and tasks.read_text().split())
    os.kill(int(tasks.read_text().split()[0]), signal.SIGKILL)
    assert training.process.wait(timeout=TIME_LIMIT) == 1
    screen = training.screen.read_text()
    assert "Traceback" not in screen, screen
    assert re.search(
        r"error: DataLoader worker .*(killed|exited|ended).*fewer data\.workers.*; the same command goes on", screen
    )


def test_two_trainings_in_one_folder(settings_file, tmp_path):
    """The second is refused in one line, whatever the first is doing; it goes on."""
    training = Training(settings_file, tmp_path / "run")
    os.killpg(training.process.pid, signal.SIGSTOP)
    second = run(settings_file, tmp_path / "run")
    assert second.returncode == 2
    assert error_of(second) == f"{tmp_path / 'run'}: another process is writing this folder; wait until it is done"
    os.killpg(training.process.pid, signal.SIGCONT)
    assert training.signal(signal.SIGTERM) == 143, training.screen.read_text()


@pytest.mark.parametrize("fork", ["", "if os.fork() == 0: sys.exit(sys.stdin.read())\n"], ids=["alone", "forked"])
def test_a_lock_ends_with_its_process(fork, tmp_path):
    """A process that was killed while it held a folder blocks nobody, and neither do workers that outlive it; one that
    lives does."""
    hold = (
        "import os, sys, time; from dsp_sparse.files import locked\n"
        "held = locked(sys.argv[1]); held.__enter__()\n"
        f"{fork}"
        "print(flush=True); time.sleep(600)"
    )
    program = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # its end ends a fork, too
        holder.stdout.readline()
        with pytest.raises(ValueError, match="another process is writing"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            pass
