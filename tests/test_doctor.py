"""`dsp-sparse doctor` says what to do about what it does not find."""

import importlib.metadata

from dsp_sparse import doctor


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
