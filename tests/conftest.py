"""Fixtures that all tests share."""

import os
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Let processes that tests start take signals as in a terminal: of a script in the background they ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real labelled clouds: `../shared/data` beside the repository, or `DSP_SPARSE_REAL_DATA`."""
    folder = Path(os.environ.get("DSP_SPARSE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real clouds at {folder}; set DSP_SPARSE_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def rooms_folder(tmp_path_factory) -> Path:
    """Four small rooms in two areas, in the layout of S3DIS."""
    from dsp_sparse.data import generate_rooms

    return generate_rooms(tmp_path_factory.mktemp("rooms") / "rooms", rooms=4, points=8000, seed=0, areas=2)


@pytest.fixture(scope="session")
def rooms_store(rooms_folder, tmp_path_factory):
    """The store of `rooms_folder` at a grid of 10 cm (groups Area_1 and Area_2). Tests leave it as it is."""
    from dsp_sparse.data import prepare, s3dis

    return prepare(s3dis.scenes(rooms_folder), tmp_path_factory.mktemp("store") / "rooms", grid=0.1, progress=False)
