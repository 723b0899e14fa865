"""What a run folder says of where it was computed."""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

import dsp_sparse
from dsp_sparse.errors import UserError
from dsp_sparse.training import environment as module
from dsp_sparse.training.environment import command_line, environment, read_environment, source_version
from dsp_sparse.training.run import Run


def test_every_start_adds_an_entry(settings, tmp_path):
    """What the first start said stands; the machine is not named."""
    begin = datetime.now(timezone.utc).replace(microsecond=0)
    for start in (1, 2):
        Run(tmp_path, settings).start()
        starts = read_environment(tmp_path / "environment.json")
        assert len(starts) == start
    first, second = starts
    assert first.keys() == second.keys()
    assert begin <= datetime.fromisoformat(second["started"]) <= datetime.now(timezone.utc)
    assert second["version"] == dsp_sparse.__version__
    assert (second["torch"], second["numpy"]) == (torch.__version__, np.__version__)
    assert second["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (second["processes"], second["threads"]) == (1, torch.get_num_threads())
    assert (second["seed"], second["label_seed"]) == (settings.seed, settings.data.label_seed)
    assert second["device"] == "cpu" and second["cpu"]
    assert os.uname().nodename not in "".join(str(v) for k, v in second.items() if k != "command").split()


@pytest.mark.parametrize("content", ["{", "{}", "[1]"])
def test_a_spoilt_file_is_named(content, settings, tmp_path):
    Run(tmp_path, settings).start()
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"environment\.json: .*put a whole copy in its place, or write \[\] into it"):
        Run(tmp_path, settings).start()
    (tmp_path / "environment.json").write_text("[]")
    assert Run(tmp_path, settings).start() is None


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_source_is_its_own_repository(tmp_path, monkeypatch):
    """The commit and whether it was changed since; not that of a repository the package happens to lie in."""
    source = tmp_path / "source"
    inside = source / "lib" / "site-packages"
    inside.mkdir(parents=True)
    (source / "pyproject.toml").write_text("[project]\n")
    assert source_version(source) is None, "no repository"
    git(source, "init", "-q")
    git(source, "add", "pyproject.toml")
    git(source, "commit", "-qm", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook of another repository
    commit = source_version(source)
    monkeypatch.delenv("GIT_DIR")
    assert git(source, "rev-parse", "HEAD").startswith(commit)
    (source / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert source_version(source) == f"{commit}-dirty"
    (inside / "pyproject.toml").touch()
    assert source_version(inside) is None, "within another repository"
    (inside / ".git").mkdir()
    assert source_version(inside) is None, "a repository that is none leads to another one"


def test_git_may_be_missing(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setenv("PATH", "")
    assert source_version(tmp_path) is None


@pytest.mark.parametrize(
    "program, expected",
    [
        ("/home/me/venv/bin/dsp-sparse", "dsp-sparse train 'my run.yaml'"),
        ("/home/me/dsp_sparse/__main__.py", "python -m dsp_sparse train 'my run.yaml'"),
    ],
)
def test_the_command_can_be_typed_again(program, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "train", "my run.yaml"])
    assert command_line() == expected


def test_the_gpu_is_named(settings, monkeypatch):
    """And the version of cuDNN, which the numbers depend on."""
    monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    found = json.loads(json.dumps(environment(settings)))
    assert (found["device"], found["cudnn"]) == ("GPU of cuda:1", 91002)
