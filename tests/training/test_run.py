"""The run folder: whose it is, what a start keeps and forgets, and what is wrong with a spoilt file."""

import json
import os
from dataclasses import replace

import pytest
import yaml
from tiny import with_optim

from dsp_sparse.cli import main
from dsp_sparse.errors import UserError
from dsp_sparse.training.checkpoint import TrainingState
from dsp_sparse.training.environment import read_environment
from dsp_sparse.training.run import Run, load_config, read_metrics


def line_of(epoch: int, stage: int = 0) -> dict:
    """A line of the metrics."""
    return {"stage": stage, "epoch": epoch, "losses": {"total": epoch / 7}, "seconds": {"total": 1.0}}


@pytest.fixture
def config(settings):
    """The settings of two stages of three epochs."""
    return with_optim(replace(settings, method="csfr-isfr"), epochs=3)


@pytest.fixture
def begun(config, tmp_path):
    """A run folder with five epochs in its metrics and a checkpoint after the fourth, the first of stage 2."""
    run = Run(tmp_path / "run", config)
    assert run.start() is None
    for stage, epoch in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2)):
        run.log(line_of(epoch, stage))
    run.save(TrainingState(net={}, stage=1, epoch=1))
    return run.folder


def places(folder) -> list[tuple[int, int]]:
    return [(line["stage"], line["epoch"]) for line in read_metrics(folder / "metrics.jsonl")]


def test_a_start_forgets_epochs_that_will_be_repeated(begun, config):
    state = Run(begun, config).start()
    assert (state.stage, state.epoch) == (1, 1)
    assert places(begun) == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert load_config(begun) == config


def test_without_a_checkpoint_all_epochs_are_repeated(begun, config):
    """Whatever the metrics are then."""
    for more in ("", "nonsense\n" * 2):
        (begun / "checkpoint.pt").unlink(missing_ok=True)
        with (begun / "metrics.jsonl").open("a") as file:
            file.write(more)
        assert Run(begun, config).start() is None
        assert places(begun) == []


def test_what_was_measured_on_earlier_weights_goes_with_them(begun, config):
    """A training that begins anew has not been evaluated; one that goes on keeps what is there."""
    names = ["model.pt", "modules.pt", "evaluation-cross.json", "evaluation-basic-native.json"]
    for name in names:
        (begun / name).write_text("old")
    Run(begun, config).start()
    assert all((begun / name).exists() for name in names)
    (begun / "checkpoint.pt").unlink()
    Run(begun, config).start()
    assert not any((begun / name).exists() for name in names)


@pytest.mark.parametrize("rest", ['{"stage": 1, "ep', "\0\0\0\0\n", "half a line\n"])
def test_a_last_line_that_was_cut_short_is_forgotten(begun, config, rest):
    """Cut by a kill, or what a power cut leaves of it."""
    with (begun / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert places(begun)[-1] == (1, 2)
    run = Run(begun, config)
    run.start()
    run.log(line_of(2, stage=1))
    assert places(begun) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]


@pytest.mark.parametrize("spoilt", ["nonsense", "[]", "3", '{"stage": 0}', '{"stage": 0, "epoch": 2, "losses": 1}'])
def test_a_spoilt_line_is_named(begun, config, spoilt):
    """Nothing is written before the metrics are in order, and they are not where the line is missing."""
    path = begun / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], spoilt, *lines[2:]]) + "\n")
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: line 2 is not the line of an epoch; put a whole copy in its place"
    ):
        Run(begun, config).start()
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: has 3 of the 4 epochs of checkpoint\.pt; put a whole copy"):
        Run(begun, config).start()


def test_a_start_clears_what_a_killed_process_was_writing(begun, config):
    """Halves of the run's own files go; other hidden files are none of its business."""
    for name in (".checkpoint.pt.x1y2.pt", ".results.json.zz.json", ".metrics.jsonl.a.jsonl", ".hidden.file"):
        (begun / name).touch()
    Run(begun, config).start()
    assert [p.name for p in begun.iterdir() if p.name.startswith(".")] == [".hidden.file"]


def test_a_folder_belongs_to_its_settings(begun, config):
    """The first difference is named; what the numbers do not depend on is free, and the folder has it from then on."""
    with pytest.raises(UserError, match=r"config\.yaml: the run has optim\.lr 0\.05, not 0\.1; choose another folder"):
        Run(begun, with_optim(config, lr=0.1))
    other = with_optim(replace(config, data=replace(config.data, workers=3)), checkpoint_every=2)
    Run(begun, other).start()
    assert load_config(begun) == other


def test_settings_that_are_newer_than_the_run_have_their_defaults(begun, config):
    """A run of an earlier version goes on."""
    path = begun / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["compute"], old["tensorboard"], old["optim"]["accumulate"]
    path.write_text(yaml.safe_dump(old))
    assert load_config(begun) == config
    assert Run(begun, config).start().epoch == 1


def test_other_settings_before_the_first_checkpoint_begin_anew(begun, config):
    """Nothing was trained that could be lost. What the folder was computed with is told of these settings alone, once
    they are written: of settings that differ only where they are free to, every start."""
    (begun / "checkpoint.pt").unlink()
    Run(begun, replace(config, data=replace(config.data, workers=1))).start()
    starts = read_environment(begun / "environment.json")
    assert len(starts) == 2
    other = replace(config, seed=7)
    run = Run(begun, other)
    assert read_environment(begun / "environment.json") == starts
    run.start()
    assert [start["seed"] for start in read_environment(begun / "environment.json")] == [7]
    assert load_config(begun) == other


def test_resume_needs_a_run_of_the_same_settings(begun, config):
    """Before its first checkpoint, too: a setting that was mistyped does not begin a new run."""
    (begun / "checkpoint.pt").unlink()
    assert Run(begun, config, resume=True).start() is None
    with pytest.raises(UserError, match=r"config\.yaml: the run has seed 0, not 7; choose another folder"):
        Run(begun, replace(config, seed=7), resume=True)


def test_settings_are_compared_again_where_the_folder_is_held(config, tmp_path):
    """Another training may have had the folder since; what it trained is safe."""
    run, other = Run(tmp_path, config), Run(tmp_path, replace(config, seed=7))
    other.start()
    other.save(TrainingState(net={}))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="the run has seed 7, not 0"):
        run.start()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_settings_of_something_else_are_not_overwritten(config, tmp_path):
    """A folder keeps a config.yaml that no run wrote: another program's, or settings that a user typed there."""
    for text in ("name: mine\n", "# mine\ndata: {store: s, test_groups: [a]}\n"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: no run wrote it, it would be lost; choose another folder"):
            Run(tmp_path, config)
        assert (tmp_path / "config.yaml").read_text() == text


@pytest.mark.parametrize("name", ["model.pt", "modules.pt", "metrics.jsonl", "evaluation-basic.json"])
def test_files_of_something_else_are_not_overwritten(name, config, tmp_path):
    """A model that was copied to where a training is to go, for one."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: no run wrote it, it would be lost; choose another folder"):
        Run(tmp_path, config)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_a_start_that_was_killed_between_two_files_is_in_nobodys_way(writes, trained, begun, config, monkeypatch):
    """Neither where the folder was new nor where there was a checkpoint; every start that was written is told."""
    folder, replace_file, done = begun if trained else begun / "new", os.replace, []

    def killed(*names):
        if len(done) == writes:
            raise KeyboardInterrupt
        replace_file(*names)
        done.append(names)

    with monkeypatch.context() as patched:
        patched.setattr("dsp_sparse.files.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Run(folder, config).start()
    state = Run(folder, config).start()
    assert (state is not None) == trained
    assert places(folder) == ([(0, 1), (0, 2), (0, 3), (1, 1)] if trained else [])
    assert len(read_environment(folder / "environment.json")) == trained + min(writes, 1) + 1
    assert load_config(folder) == config


def test_resume_needs_a_run(begun, config, tmp_path, capsys):
    """A folder that was mistyped does not become a new run."""
    with pytest.raises(SystemExit) as exit:
        main(["train", str(begun / "config.yaml"), "--out", str(tmp_path / "rum"), "--resume"])
    assert exit.value.code == 2
    message = f"{tmp_path / 'rum'}: no run to go on with (it would hold config.yaml)"
    assert capsys.readouterr().err == f"dsp-sparse train: error: {message}\n"
    assert not (tmp_path / "rum").exists()


def test_other_ranks_write_nothing(config, tmp_path, monkeypatch):
    """They read the checkpoint that rank 0 writes."""
    first = Run(tmp_path, config)
    first.start()
    first.save(TrainingState(net={}, epoch=2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr("dsp_sparse.training.run.rank", lambda: 1)
    second = Run(tmp_path, config)
    assert second.start().epoch == 2
    second.log(line_of(3))
    second.save(TrainingState(net={}, epoch=3))
    second.finish({"miou": 1.0})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_metrics_say_what_they_were_told(begun):
    assert read_metrics(begun / "metrics.jsonl")[1] == json.loads(json.dumps(line_of(2)))
    assert read_metrics(begun / "none.jsonl") == []
