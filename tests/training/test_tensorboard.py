"""Events for TensorBoard: the numbers of metrics.jsonl, once each."""

import importlib.util
import sys
from dataclasses import replace

import pytest
from tiny import with_optim

from dsp_sparse.errors import UserError
from dsp_sparse.training.checkpoint import TrainingState
from dsp_sparse.training.loop import train
from dsp_sparse.training.run import Run, read_metrics
from dsp_sparse.training.tensorboard import scalars

installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed (extra `tensorboard`)"
)


def events_of(folder) -> dict[str, list[tuple[int, float]]]:
    """The points of every curve that TensorBoard shows: (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@installed
def test_events_are_the_numbers_of_the_metrics(settings, tmp_path):
    """Every number of every line, at the number of its epoch over both stages."""
    config = with_optim(replace(settings, method="csfr-isfr", tensorboard=True), epochs=2, steps_per_epoch=1)
    train(config, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    expected: dict[str, list] = {}
    for step, line in enumerate(lines, 1):
        assert step == line["stage"] * 2 + line["epoch"]
        for name in ("losses", "seconds", "labelled", "pairs"):
            for key, value in line[name].items():
                expected.setdefault(f"{name}/{key}", []).append((step, pytest.approx(value, rel=1e-6)))
        for name in ("lr", "points"):
            expected.setdefault(name, []).append((step, pytest.approx(line[name], rel=1e-6)))
    assert {"losses/cr", "losses/sr", "losses/total", "seconds/forward"} <= expected.keys()
    assert events_of(tmp_path) == expected


@installed
def test_a_resumed_run_shows_no_epoch_twice(settings, tmp_path):
    """Three epochs were logged, the checkpoint is of the first: the second and third are those of the resumed run."""
    config = with_optim(replace(settings, method="baseline", tensorboard=True), epochs=4)

    def log(run: Run, epoch: int, loss: float) -> None:
        run.log({"stage": 0, "epoch": epoch, "losses": {"total": loss}, "seconds": {"total": 1.0}})

    run = Run(tmp_path, config)
    run.start()
    for epoch in (1, 2, 3):
        log(run, epoch, 10.0 + epoch)
    run.save(TrainingState(net={}, epoch=1))
    run = Run(tmp_path, config)
    assert run.start().epoch == 1
    for epoch in (2, 3, 4):
        log(run, epoch, 20.0 + epoch)
    assert events_of(tmp_path)["losses/total"] == [(1, 11.0), (2, 22.0), (3, 23.0), (4, 24.0)]


def test_without_the_package_nothing_is_begun(settings, tmp_path, monkeypatch):
    """A finished run, though, can be read."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = replace(settings, tensorboard=True)
    with pytest.raises(UserError, match=r"tensorboard true needs .* pip install 'dsp-sparse\[tensorboard\]'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = Run(tmp_path / "done", replace(settings, tensorboard=False))
    run.start()
    run.finish({})
    Run(tmp_path / "done", config)


@installed
def test_with_a_broken_package_nothing_is_begun(settings, tmp_path, monkeypatch):
    """An installation whose parts do not fit together raises whatever it does."""
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr("tensorboard.__version__", "broken")  # what torch reads first
    with pytest.raises(UserError, match=r"tensorboard true needs a package tensorboard that can be imported, got "):
        train(replace(settings, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_numbers_are_drawn():
    line = {"stage": 1, "epoch": 2, "objective": "csfr", "lr": 0.5, "losses": {"seg": 1, "deep": {"epoch": 2.0}}}
    assert dict(scalars(line)) == {"lr": 0.5, "losses/seg": 1, "losses/deep/epoch": 2.0}
