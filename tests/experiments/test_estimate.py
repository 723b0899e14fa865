"""Estimates: what is left of a comparison, times paces that are measured on real batches."""

import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import yaml

from dsp_sparse.cli import main
from dsp_sparse.config import CompareConfig, DataConfig, EvalConfig, KPFCNNConfig, OptimConfig, TrainConfig, Variant
from dsp_sparse.errors import UserError
from dsp_sparse.experiments import estimate as module
from dsp_sparse.experiments import pace
from dsp_sparse.experiments.estimate import Kind, estimate, estimate_table
from dsp_sparse.experiments.matrix import cell_config, cells
from dsp_sparse.experiments.pace import Pace, step_pace
from dsp_sparse.training.run import Run

SCORES = {"miou": 0.5, "overall_accuracy": 0.6, "mean_accuracy": 0.7, "steps": 4, "train_seconds": 1.0, "seconds": 9.0}


@pytest.fixture
def config(rooms_store):
    """Two methods and a variant, one seed: three epochs a stage of five steps."""
    data = DataConfig(
        store=str(rooms_store.path), train_groups=["Area_1"], test_groups=["Area_2"], radius=1.5, batch_size=2
    )
    train = TrainConfig(
        data=data,
        device="cpu",
        kpfcnn=KPFCNNConfig(grid_size=0.1, first_width=8, blocks=(1, 1, 1)),
        optim=OptimConfig(epochs=3, steps_per_epoch=5),
        eval=EvalConfig(votes=1),
    )
    return CompareConfig(
        train=train,
        backbones=["kpfcnn"],
        methods=["baseline", "csfr-isfr"],
        variants=[Variant(name="isfr-no-seg_s", method="isfr", settings={"loss.seg_s": False})],
        label_rates=[0.1],
        seeds=[0],
        branches=["cross", "intra"],
        equal_updates=False,
    )


@pytest.fixture
def paces(monkeypatch):
    """Paces as they would be measured: 10 s a step, but 100 s of csfr; 1 s a point. A list of what was measured."""
    asked = []

    def step(config, steps):
        asked.append((config.method, config.loss.seg_s))
        return Pace(100.0 if config.method == "csfr" else 10.0, 1.0, 2000.0)

    def evaluation(config, branch):
        asked.append(branch)
        return Pace(1.0, 0.0, 500.0)

    monkeypatch.setattr(module, "step_pace", step)
    monkeypatch.setattr(module, "evaluation_pace", evaluation)
    return asked


def test_time_of_everything(config, paces, rooms_store, tmp_path):
    """Every kind is measured once; seconds a step times steps, seconds a point times test points, of every branch."""
    found = estimate(config, tmp_path)
    points = sum(scene.num_points for scene in rooms_store.group(["Area_2"]))
    expected = {
        "baseline": (15 * 10, points),
        "csfr-isfr": (15 * 100 + 15 * 10, 3 * points),
        "isfr-no-seg_s": (15 * 10, 2 * points),
    }
    for run in found.left:
        assert found.seconds([run]) == pytest.approx(expected[run.cell.variant or run.cell.method])
    # Those of the variant are its own: its settings may make them slower.
    stages = [("baseline", True), ("csfr", True), ("isfr", True), ("isfr", False)]
    assert sorted(map(str, paces)) == sorted(map(str, [*stages, "basic", "cross", "intra", "basic", "intra"]))
    total = sum(map(sum, expected.values()))
    assert total > 7200 and estimate_table(found).endswith(f"left in all: {total / 3600:,.1f} h on this device")
    assert not any(tmp_path.iterdir())


def test_seeds_and_rates_multiply_time_not_measurements(config, paces, tmp_path):
    once = estimate(config, tmp_path)
    measured = len(paces)
    more = estimate(replace(config, seeds=[0, 1, 2], label_rates=[0.1, 0.01]), tmp_path)
    assert len(paces) == 2 * measured
    assert more.seconds(more.left) == pytest.approx([6 * part for part in once.seconds(once.left)])


def test_what_is_done_does_not_count(config, paces, tmp_path):
    """A finished run takes no step, one in its second stage what is left of it; nothing left is nothing to measure."""
    baseline, both, _ = cells(config)
    runs = {cell: Run(tmp_path / "runs" / cell.name, cell_config(config, cell)) for cell in (baseline, both)}
    for run in runs.values():
        run.folder.mkdir(parents=True)
        run.start()
    runs[baseline].finish(SCORES)
    for stage, epoch in ((0, 1), (0, 2), (0, 3), (1, 1)):
        runs[both].log({"stage": stage, "epoch": epoch, "losses": {}, "seconds": {"total": 1.0}})
    (anew,) = (run for run in estimate(config, tmp_path).left if run.cell == both)
    assert sum(anew.steps.values()) == 2 * 3 * 5, "without a checkpoint it begins anew"
    runs[both].checkpoint.touch()
    left = {run.cell: run for run in estimate(config, tmp_path).left}
    assert left[baseline].steps == left[baseline].points == {}
    assert left[both].steps == {Kind("kpfcnn", None, None, "isfr"): 2 * 5}
    assert [kind.work for kind in left[both].points] == ["basic", "cross", "intra"]

    runs[both].finish(SCORES)
    alone = replace(config, variants=[], branches=[])
    paces.clear()
    found = estimate(alone, tmp_path)
    assert not paces and found.seconds(found.left) == (0, 0)
    assert "0 of 1" in estimate_table(found)


def test_a_finished_run_of_other_settings_is_refused(config, paces, tmp_path):
    cell = next(cells(config))
    other = replace(cell_config(config, cell), optim=OptimConfig(epochs=9))
    run = Run(tmp_path / "runs" / cell.name, other)
    run.start()
    run.finish(SCORES)
    with pytest.raises(UserError, match=r"optim\.epochs 9, not 3"):
        estimate(config, tmp_path)


def test_a_kind_that_diverges_is_named(config, paces, tmp_path, monkeypatch):
    def step(config, steps):
        if not config.loss.seg_s:
            raise FloatingPointError("isfr, epoch 1: the loss is nan in step 2")
        return Pace(1.0, 0.0, 1.0)

    monkeypatch.setattr(module, "step_pace", step)
    with pytest.raises(FloatingPointError, match=r"^kpfcnn isfr \(isfr-no-seg_s\): isfr, epoch 1: the loss is nan"):
        estimate(config, tmp_path)


def test_too_few_steps(config, tmp_path):
    with pytest.raises(UserError, match="steps must be at least 2, got 1"):
        estimate(config, tmp_path, steps=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_takes_what_passes_between_two_requests(config, monkeypatch, accumulate):
    """The warm-up and what a worker had prepared are left out, and `accumulate` batches are a step."""
    data = replace(config.train.data, workers=1)
    optim = replace(config.train.optim, accumulate=accumulate)
    train = replace(config.train, method="baseline", data=data, optim=optim)
    skipped = {1: 3 + 2, 2: 3 + 1}[accumulate]
    sources, clock = pace.open_sources(train), [0.0]

    def sources_of(settings):
        sizes = range(settings.optim.steps_per_epoch * accumulate)
        return replace(sources, batches=lambda stage, epoch: (SimpleNamespace(labels=range(n)) for n in sizes))

    def train_stages(net, settings, sources, run):
        for number, _ in enumerate(sources.batches(0, 0)):
            clock[0] += 1000 if number < skipped * accumulate else 7

    monkeypatch.setattr(pace, "open_sources", sources_of)
    monkeypatch.setattr(pace, "train_stages", train_stages)
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    measured = step_pace(train, 4)
    assert (measured.seconds, measured.spread) == (7 * accumulate, 0)
    kept = range(skipped * accumulate, (skipped + 4) * accumulate)
    assert measured.points == sum(kept) / 4


def test_the_command_on_a_store(config, tmp_path, capsys):
    """Every stage and branch is measured on real batches, and nothing is written."""
    settings = json.loads(json.dumps(asdict(replace(config, title="rooms"))))
    (tmp_path / "rooms.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as end:
        main(["estimate", str(tmp_path / "rooms.yaml"), "--out", str(tmp_path / "out"), "--steps", "2"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert not end.value.code and not (tmp_path / "out").exists()
    for name in ("kpfcnn baseline", "kpfcnn csfr", "kpfcnn isfr", "kpfcnn isfr (isfr-no-seg_s)"):
        pattern = rf"{re.escape(name)} {{2,}}([\d,]+) +([\d,.]+) ± [\d,.]+"
        (found,) = filter(None, (re.fullmatch(pattern, line) for line in lines))
        assert all(float(number.replace(",", "")) > 0 for number in found.groups())
        assert f"steps of {name}:" in printed.err.splitlines(), "the lines of its training say what they are of"
    for name in ("kpfcnn basic", "kpfcnn cross", "kpfcnn intra", "kpfcnn intra (isfr-no-seg_s)"):
        assert any(re.match(rf"{re.escape(name)} {{2,}}[\d,]+ ", line) for line in lines)
    assert re.fullmatch(r"left in all: [1-9]\d* (s|min) on this device", lines[-1]), "not 0.00 hours"
