"""The same work on many things: how many processes do it."""

import os

import pytest

from dsp_sparse.workers import run_all


def note_process(folder, number) -> int:
    (folder / str(number)).write_text(str(os.getpid()))
    return number


@pytest.mark.parametrize(("jobs", "workers", "most"), [(0, 4, 0), (1, 64, 1), (3, 1, 1), (3, 2, 2)])
def test_no_more_processes_than_jobs_and_none_for_one(tmp_path, jobs, workers, most):
    """Every job is done, and what it returned is told; one worker, or one job, is this process itself."""
    done = []
    run_all(note_process, [(tmp_path, number) for number in range(jobs)], workers, done.append, "less")
    processes = {int(file.read_text()) for file in tmp_path.iterdir()}
    assert sorted(done) == list(range(jobs)) and len(list(tmp_path.iterdir())) == jobs and len(processes) <= most
    assert (os.getpid() in processes) == (most == 1)
