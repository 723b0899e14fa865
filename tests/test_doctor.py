"""`dsp-sparse doctor` says what to do about what it does not find."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dsp_sparse
from dsp_sparse import doctor

REPOSITORY = Path(__file__).resolve().parents[1]


def test_missing_packages(monkeypatch, capsys):
    """Without matplotlib all works but figures: the line says that it is optional and how to get it."""

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert not doctor.attempt("matplotlib", lambda: doctor.find_version("matplotlib"))
    assert not doctor.attempt("pandas", lambda: doctor.find_version("pandas"))
    optional, required = capsys.readouterr().out.splitlines()
    assert optional.startswith("matplotlib") and "not installed, optional: pip install 'dsp-sparse[report]'" in optional
    assert "required" in required


@pytest.mark.parametrize("package", ["torch", "jsonargparse"])
def test_what_the_program_cannot_do_without(package, tmp_path):
    """The doctor still runs and says what is missing or broken; any other command says so in one line."""
    (tmp_path / f"{package}.py").write_text("raise ImportError('a library is\\nmissing')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}

    def program(command: str) -> subprocess.CompletedProcess:
        arguments = [sys.executable, "-m", "dsp_sparse", command]
        return subprocess.run(arguments, capture_output=True, text=True, env=environment)

    train = program("train")
    assert (train.returncode, train.stdout) == (2, "")
    assert train.stderr == "dsp-sparse: error: a library is missing; `dsp-sparse doctor` says what is missing\n"
    diagnosis = program("doctor")
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in diagnosis.stdout.splitlines()}
    assert diagnosis.returncode == 1 and not diagnosis.stderr
    assert lines[package] == ["no", "a library is missing"]
    assert lines["numpy"][0] == "ok" and lines["tensorboard"][0] in ("ok", "no")


def test_names_of_the_package_are_imported_when_they_are_asked_for():
    program = (
        "import sys, dsp_sparse as d; early = 'torch' in sys.modules; d.CSFR; print(early, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "False True\n"
    with pytest.raises(AttributeError, match="module 'dsp_sparse' has no attribute 'nothing'"):
        dsp_sparse.nothing  # noqa: B018
