"""Where something is to be written is looked at before the work that it needs."""

import os

import pytest

from dsp_sparse.errors import UserError
from dsp_sparse.files import require_writable


def test_places_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "new", tmp_path / "new" / "er"):
        require_writable("out", place, folder=True)
    for place in (tmp_path / "file", tmp_path / "new", tmp_path / "new" / "er"):
        require_writable("out", place, folder=False)
    require_writable("out", "new", folder=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "place, folder, problem",
    [
        ("file", True, "out must be a folder to write, got {p}, which is a file"),
        (".", False, "out must be a file to write, got {p}, which is a folder"),
        ("file/a/b", True, "out must be a folder to write, got {p}; {t}/file is a file"),
        ("file/a", False, "out must be a file to write, got {p}; {t}/file is a file"),
    ],
)
def test_places_that_cannot(place, folder, problem, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        require_writable("out", tmp_path / place, folder=folder)
    assert str(error.value) == problem.format(p=tmp_path / place, t=tmp_path)


def test_a_place_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"got {tmp_path}/a/b; nothing can be written into {tmp_path}$"):
        require_writable("out", tmp_path / "a" / "b", folder=True)
