"""Comparisons: what is trained, what is reported when something fails, and engines on the same weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import OPTIONS

from dsp_sparse.backbones import build_backbone
from dsp_sparse.backbones.engines import ENGINES
from dsp_sparse.backbones.engines.native import NativeEngine
from dsp_sparse.cli import compare as command
from dsp_sparse.config import CompareConfig
from dsp_sparse.errors import UserError
from dsp_sparse.experiments import compare as module
from dsp_sparse.experiments.compare import compare
from dsp_sparse.experiments.evaluation import evaluate_run
from dsp_sparse.experiments.figures import plot_comparison
from dsp_sparse.experiments.matrix import cell_config, cells
from dsp_sparse.experiments.table import comparison_table
from dsp_sparse.files import locked
from dsp_sparse.testing import engines
from dsp_sparse.training.run import Run
from kpconv_ops import reference

SCORES = {"miou": 0.5, "overall_accuracy": 0.6, "mean_accuracy": 0.7, "steps": 4, "train_seconds": 1.0, "seconds": 9.0}


class SlowEngine(NativeEngine):
    """Convolutions by the oracle."""

    def conv(self, features, kernel, kernel_map):
        return reference.sparse_conv(features, kernel, kernel_map)

    def conv_transposed(self, features, kernel, kernel_map):
        return reference.sparse_conv(features, kernel, kernel_map.transposed)


class CountingEngine(NativeEngine):
    """Counts its convolutions."""

    convolutions = 0

    def conv(self, features, kernel, kernel_map):
        CountingEngine.convolutions += 1
        return super().conv(features, kernel, kernel_map)


@pytest.fixture
def config(settings):
    """One minkunet and one kpfcnn run."""
    return CompareConfig(
        train=settings, backbones=["kpfcnn", "minkunet"], methods=["baseline"], label_rates=[0.1], seeds=[0]
    )


@pytest.fixture
def slow_engine(monkeypatch):
    """A second engine, `slow`."""
    monkeypatch.setitem(ENGINES, "slow", SlowEngine)


def reported(out) -> list[dict]:
    return json.loads((out / "results.json").read_text())["runs"]


def test_engines_multiply_minkunet_alone(config):
    """A minkunet run becomes one for each engine, in a folder of its own; other backbones have none."""
    assert [(c.name, c.engine) for c in cells(replace(config, engines=("native", "other")))] == [
        ("kpfcnn-baseline-0.1-seed0", None),
        ("minkunet-native-baseline-0.1-seed0", "native"),
        ("minkunet-other-baseline-0.1-seed0", "other"),
    ]
    assert [c.name for c in cells(config)] == ["kpfcnn-baseline-0.1-seed0", "minkunet-baseline-0.1-seed0"]
    for cell in cells(replace(config, engines=("other",))):
        expected = "other" if cell.backbone == "minkunet" else "native"
        assert cell_config(config, cell).minkunet.engine == expected


@pytest.mark.parametrize(
    "changes, cause",
    [
        ({"engines": ("native", "native")}, "engines must list no value twice"),
        ({"engines": ("native",), "backbones": ["kpfcnn"]}, "engines are those of minkunet"),
        ({"seeds": []}, "seeds must list at least one value"),
        ({"engines": "native"}, "engines must be a list, got 'native'"),
        ({"methods": "csfr"}, "methods must be a list, got 'csfr'"),
        ({"label_rates": []}, "label_rates must list at least one value, or none where train.data.label_points"),
    ],
)
def test_lists_that_make_no_comparison(config, changes, cause):
    with pytest.raises(UserError, match=cause):
        replace(config, **changes)


def test_rates_that_differ_have_folders_of_their_own(config):
    """However little they differ."""
    rates = [0.1, 0.10000001, 0.1 + 1e-12]
    names = {cell.name for cell in cells(replace(config, label_rates=rates))}
    assert len(names) == 3 * len(config.backbones)


def test_a_seed_draws_its_own_labels(config):
    """The same for every run with it."""
    for cell in cells(replace(config, seeds=[3, 4])):
        settings = cell_config(config, cell)
        assert settings.seed == settings.data.label_seed == cell.seed


def test_results_of_something_else_are_not_overwritten(config, tmp_path, monkeypatch):
    """Those of a run, say, whose folder was given by mistake."""
    monkeypatch.setattr(module, "train", None)
    (tmp_path / "results.json").write_text(json.dumps(SCORES))
    with pytest.raises(UserError, match=r"results\.json: not the results of a comparison; choose another folder"):
        compare(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == SCORES


def test_a_folder_that_another_comparison_writes_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", None)
    with locked(tmp_path), pytest.raises(UserError, match="another process is writing this folder"):
        compare(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_methods_can_be_compared_on_so_many_points_or_on_masks(config, tmp_path):
    """Where the settings say which points are labelled there is no rate; the table says what was labelled."""
    data = replace(config.train.data, label_points=20)
    points = replace(config, backbones=["kpfcnn"], label_rates=[], train=replace(config.train, data=data))
    (run,) = compare(points, tmp_path)["runs"]
    assert run["label_points"] == 20 and "label_rate" not in run and run["results"]["miou"] > 0
    assert (tmp_path / "runs" / "kpfcnn-baseline-20points-seed0" / "results.json").exists()
    assert "| 20 points a cloud | kpfcnn | baseline |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figure.png").exists()
    with pytest.raises(UserError, match=r"or none where .* is given, got \[0.1\]"):
        replace(points, label_rates=[0.1])
    mask = replace(data, label_points=None, label_mask="masks")
    masks = replace(points, train=replace(config.train, data=mask))
    assert [(c.name, cell_config(masks, c).data.label_mask) for c in cells(masks)] == [
        ("kpfcnn-baseline-mask-seed0", "masks")
    ]


def missing_engine():
    raise UserError("engine missing: not installed")


@pytest.mark.parametrize(
    "engine, cause", [("abacus", "engine must be one of .*abacus"), ("missing", "engine missing: not installed")]
)
def test_engines_that_cannot_be_compared_stop_it_at_once(engine, cause, config, tmp_path, monkeypatch):
    """An engine that is unknown or not installed is an error before anything is trained or written."""
    monkeypatch.setitem(ENGINES, "missing", missing_engine)
    with pytest.raises(UserError, match=cause):
        compare(replace(config, engines=("native", engine)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def changed_train(config, **changes):
    return replace(config, train=replace(config.train, **changes))


def changed_data(config, **changes):
    return changed_train(config, data=replace(config.train.data, **changes))


def test_what_cannot_be_trained_stops_it_at_once(config, tmp_path):
    """A store, a device or weights to start from that do not do are an error before anything is trained or written."""
    weights, gone = tmp_path / "kpfcnn.pt", tmp_path / "gone.pt"
    torch.save(build_backbone("kpfcnn", 5, 3, **OPTIONS["kpfcnn"]).state_dict(), weights)
    for changed, cause in (
        (changed_data(config, store=str(tmp_path)), "not a scene store"),
        (changed_data(config, test_groups=["attic"]), "no group 'attic'"),
        (changed_train(config, device="cuda:99"), "device 'cuda:99' cannot be used"),
        (changed_train(config, init=str(gone)), r"gone\.pt: not a readable file"),
        # kpfcnn, which would be trained first, takes them.
        (changed_train(config, init=str(weights)), r"kpfcnn\.pt: weights of another architecture than this MinkUNet"),
    ):
        with pytest.raises(UserError, match=cause):
            compare(changed, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_run_with_a_checkpoint_does_not_need_the_weights_it_started_from(config, tmp_path):
    """A comparison goes on without the file of `init` where every run has begun."""
    config, weights = replace(config, backbones=["kpfcnn"]), tmp_path / "weights.pt"
    torch.save(build_backbone("kpfcnn", 5, 3, **OPTIONS["kpfcnn"]).state_dict(), weights)
    config = changed_train(config, init=str(weights))
    before = compare(config, tmp_path)["runs"][0]["results"]
    weights.unlink()
    (tmp_path / "runs" / "kpfcnn-baseline-0.1-seed0" / "results.json").unlink()
    assert compare(config, tmp_path)["runs"][0]["results"]["confusion"] == before["confusion"]


def test_engines_are_compared_on_the_same_weights(config, slow_engine, tmp_path):
    """Every engine trains its own run, and scores the weights of the first engine's run as the first engine does."""
    config, out = replace(config, engines=("native", "slow")), tmp_path / "out"
    report = compare(config, out)
    kpfcnn, native, slow = report["runs"]
    assert "engine" not in kpfcnn and "first_engine" not in kpfcnn
    assert [run["engine"] for run in (native, slow)] == ["native", "slow"]
    assert native["first_engine"]["results"]["miou"] == native["results"]["miou"]
    assert slow["first_engine"]["results"]["confusion"] == native["results"]["confusion"]
    for run in ("minkunet-native", "minkunet-slow"):
        assert (out / "runs" / f"{run}-baseline-0.1-seed0" / "results.json").exists()

    head, _, *rows = (out / "table.md").read_text().splitlines()[:5]
    titles = [title.strip() for title in head.strip("|").split("|")]
    rows = [dict(zip(titles, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in rows]
    same = [row["mIoU % with the first engine's weights"] for row in rows]
    assert [row["engine"] for row in rows] == ["-", "native", "slow"]
    assert same == ["-", *[f"{100 * native['results']['miou']:.1f}"] * 2]
    assert all(float(row["evaluation s"]) > 0 and row["training s"].isdigit() for row in rows[1:])

    before = (out / "results.json").read_bytes()
    compare(config, out)
    assert (out / "results.json").read_bytes() == before, "nothing is trained or evaluated twice"


def test_the_first_engines_weights_are_evaluated_under_the_engine(config, tmp_path, monkeypatch):
    """By the engine that it names, on the comparison's own test scenes, once: an evaluation of others is another."""
    monkeypatch.setitem(ENGINES, "counting", CountingEngine)
    config = replace(config, backbones=["minkunet"], engines=("native", "counting"))
    CountingEngine.convolutions = 0
    first = compare(config, tmp_path)["runs"][1]["first_engine"]["results"]
    assert CountingEngine.convolutions > 0
    run = tmp_path / "runs" / "minkunet-native-baseline-0.1-seed0"
    other_store = shutil.copytree(config.train.data.store, tmp_path / "store")
    for others in ({"groups": ["train"]}, {"store": other_store}, {"votes": 2}):
        evaluate_run(run, engine="counting", **others)
        CountingEngine.convolutions = 0
        assert compare(config, tmp_path)["runs"][1]["first_engine"]["results"] == first
        assert CountingEngine.convolutions == 0
    for name in ("results.json", "checkpoint.pt"):  # of weights that are trained anew nothing is known
        (run / name).unlink()
    compare(config, tmp_path)
    assert CountingEngine.convolutions > 0


@pytest.mark.parametrize("content", ['{"miou": 0.', "[]", "{}", '{"miou": "high"}', b"\xff"])
@pytest.mark.parametrize("name", ["results.json", "evaluation-basic-native.json"])
def test_a_broken_file_in_a_run_folder_stops_it_at_once(name, content, config, tmp_path, monkeypatch):
    """Results that cannot be read are an error that names their file, before anything is trained."""
    config = replace(config, backbones=["minkunet"], engines=("native",))
    for key, value in (("train", lambda *_: SCORES), ("evaluation", lambda *_: SCORES), ("plot_comparison", print)):
        monkeypatch.setattr(module, key, value)
    run = tmp_path / "runs" / "minkunet-native-baseline-0.1-seed0"
    Run(run, cell_config(config, next(cells(config)))).start()
    for each in ("results.json", name):
        broken = content if each == name else json.dumps(SCORES)
        (run / each).write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    with pytest.raises(UserError, match=f"{name}: not readable as results .*; delete it to evaluate again"):
        compare(config, tmp_path)


def test_results_that_are_known_stay_in_the_report(config, tmp_path, monkeypatch):
    """A comparison that is run again, as with more seeds, reports finished runs from its first writing on."""
    compare(replace(config, backbones=["minkunet"]), tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path)
    assert [run["backbone"] for run in reported(tmp_path)] == ["minkunet"], "the old report is not touched yet"

    def failing(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(module, "train", failing)
    monkeypatch.setattr(module, "plot_comparison", interrupted)  # ends it when the first run has been written
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path)
    failed, known = reported(tmp_path)
    assert failed["error"] == "RuntimeError: no luck" and known["results"]["miou"] > 0


def test_a_folder_with_another_run_stops_it_at_once(config, tmp_path):
    """Settings other than those of the folder are an error; the results that are there stay."""
    config = replace(config, backbones=["minkunet"])
    compare(config, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    changed = replace(config, train=replace(config.train, optim=replace(config.train.optim, lr=0.5)))
    with pytest.raises(UserError, match=r"optim\.lr"):
        compare(changed, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_run_that_cannot_go_on_is_reported_and_leaves_the_others_alone(config, tmp_path):
    """A broken checkpoint fails its run, with the reason in the table; the runs after it are trained."""
    compare(replace(config, backbones=["kpfcnn"]), tmp_path)
    folder = tmp_path / "runs" / "kpfcnn-baseline-0.1-seed0"
    (folder / "results.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"half")
    broken, whole = compare(config, tmp_path)["runs"]
    assert str(folder / "checkpoint.pt") in broken["error"] and whole["results"]["miou"] > 0
    table = (tmp_path / "table.md").read_text()
    assert "| 0 of 1, 1 failed |" in table and f"* kpfcnn baseline, 10 % labelled, seed 0: {folder}" in table


def test_a_training_that_diverges_is_told_in_one_line(config, tmp_path, capsys):
    """As by `train`: what diverged, and what may help; no trace of where in the program."""
    config = changed_train(config, optim=replace(config.train.optim, lr=1e30))
    (run,) = compare(replace(config, backbones=["kpfcnn"]), tmp_path)["runs"]
    assert run["error"].startswith("baseline, epoch 1: the loss is ") and "a lower optim.lr may help" in run["error"]
    printed = capsys.readouterr()
    assert f"failed: {run['error']}\n" in printed.out and "Traceback" not in printed.err


def test_what_failed_earlier_stays_in_the_report_until_it_is_tried_again(config, tmp_path, monkeypatch):
    """Of a run that an interrupted second call does not come to, and of an evaluation beside one."""

    def failing(*_):
        raise UserError("no luck")

    monkeypatch.setattr(module, "plot_comparison", lambda *_: None)
    monkeypatch.setattr(module, "train", failing)
    config = replace(config, seeds=[0, 1], backbones=["kpfcnn"])
    compare(config, tmp_path)
    assert [run["error"] for run in reported(tmp_path)] == ["no luck"] * 2
    tried = []

    def interrupted(settings, folder):
        tried.append(settings.seed)
        if settings.seed == 1:
            raise KeyboardInterrupt
        return SCORES

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path)
    first, second = reported(tmp_path)
    assert tried == [0, 1] and first["results"] == SCORES and "error" not in first and second["error"] == "no luck"

    with pytest.raises(KeyboardInterrupt):  # the first has no folder here, and is tried again, too
        compare(changed_train(config, tensorboard=False, optim=replace(config.train.optim, lr=0.01)), tmp_path)
    assert [run["seed"] for run in reported(tmp_path)] == [0], "what failed with other settings says nothing here"


def test_runs_that_cannot_stand_where_they_should_stop_it_at_once(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"runs must be a folder to write, got .*/file, which is a file"):
        command(replace(config, runs=str(tmp_path / "file")), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_the_first_engines_weights_there_is_nothing_to_compare(config, slow_engine, tmp_path, monkeypatch):
    """Where the first engine's run failed the other engine's run is reported alone."""

    def train(settings, folder):
        if settings.minkunet.engine == "native":
            raise FloatingPointError("diverged")
        return SCORES

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "plot_comparison", lambda *_: None)
    config = replace(config, backbones=["minkunet"], engines=("native", "slow"))
    native, slow = compare(config, tmp_path)["runs"]
    assert native["error"] == "diverged" and slow["results"] == SCORES
    assert not any("first_engine" in run for run in (native, slow))


def test_the_last_columns_are_of_the_first_engines_weights():
    """Time and scores there are those of the first engine's weights; what fails there is listed below the table."""
    under = {"results": {**SCORES, "miou": 0.25, "seconds": 3.5}}
    runs = [
        {"backbone": "minkunet", "method": "baseline", "label_rate": 0.1, "seed": 0, "results": SCORES, **changes}
        for changes in (
            {"engine": "native", "first_engine": under},
            {"engine": "slow", "first_engine": {"error": "too slow"}},
        )
    ]
    table = comparison_table(runs)
    native, slow = table.splitlines()[2:4]
    assert native.strip(" |").split(" | ")[-4:] == ["4", "1", "3.5", "25.0"]
    assert slow.strip(" |").split(" | ")[-4:] == ["4", "1", "-", "-"]
    assert "* first engine's weights under minkunet slow baseline, 10 % labelled, seed 0: too slow" in table


@pytest.mark.parametrize("failing", [None, "train", "evaluation"])
def test_the_exit_code_tells_of_failures(failing, config, tmp_path, monkeypatch):
    """0 only if every run and every evaluation under another engine succeeded."""

    def action(name):
        def act(*_):
            if name == failing:
                raise UserError("no luck")
            return SCORES

        return act

    for name in ("train", "evaluation"):
        monkeypatch.setattr(module, name, action(name))
    config = replace(config, backbones=["minkunet"], engines=("native",))
    assert command(config, str(tmp_path)) == (failing is not None)


def test_a_score_of_none_is_left_out(tmp_path):
    """A run without mIoU has a row and no bar, and takes no part in means and differences."""
    runs = [
        {"backbone": "kpfcnn", "method": method, "label_rate": 0.1, "seed": seed, "results": {**SCORES, "miou": miou}}
        for method, seed, miou in (("baseline", 0, None), ("baseline", 1, 0.5), ("csfr", 0, 0.5), ("csfr", 1, None))
    ]
    _, _, baseline, csfr = comparison_table(runs).splitlines()[:4]
    assert baseline.split(" | ")[3:6] == ["2", "50.0", ""]
    assert csfr.split(" | ")[3:6] == ["2", "50.0", "-"]
    plot_comparison(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    shutil.rmtree(tmp_path)
    plot_comparison(runs[:1], tmp_path / "figure.png")
    assert not tmp_path.exists()


@pytest.mark.skipif("minkowski" not in engines(), reason="MinkowskiEngine not installed")
def test_minkowski_scores_the_same_weights_like_native(config, tmp_path):
    """The engine of MinkowskiEngine gives the scores of the native one with its weights, to the digit that is shown."""
    config = replace(config, backbones=["minkunet"], engines=("native", "minkowski"))
    native, minkowski = compare(config, tmp_path)["runs"]
    scores = [run["first_engine"]["results"]["miou"] for run in (native, minkowski)]
    assert scores[0] == pytest.approx(scores[1], abs=5e-4)
    assert minkowski["results"]["miou"] > 0
