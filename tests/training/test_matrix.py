"""Comparisons beyond methods: variants, full supervision, other branches, runs in common, the paper's scores."""

import json
from dataclasses import replace

import pytest

from dsp_sparse.config import CompareConfig, PaperScore, Variant
from dsp_sparse.errors import UserError
from dsp_sparse.experiments import compare as module
from dsp_sparse.experiments.compare import compare
from dsp_sparse.experiments.matrix import cell_config, cells
from dsp_sparse.experiments.table import comparison_table

SCORES = {"miou": 0.5, "overall_accuracy": 0.6, "mean_accuracy": 0.7, "steps": 4, "train_seconds": 1.0, "seconds": 9.0}


@pytest.fixture
def config(settings):
    """One kpfcnn run."""
    return CompareConfig(train=settings, backbones=["kpfcnn"], methods=["baseline"], label_rates=[0.1], seeds=[0])


def rows_of(table: str) -> list[dict]:
    """The rows of a Markdown table by column."""
    head, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
    return [dict(zip(split[0], row, strict=True)) for row in split[1:]]


def test_runs_without_a_folder_are_not_those_of_the_default(config):
    with pytest.raises(UserError, match="runs must be a folder or null"):
        replace(config, runs="")


def test_a_variant_differs_in_its_settings_alone(config):
    """It trains its method's stages with what it sets, and everything else as `train` says."""
    variant = Variant(name="csfr+seg_c", method="csfr", settings={"loss.seg_c": True, "loss.lambda_cr": 0.5})
    plain, changed = cells(replace(config, variants=[variant]))
    assert changed.name == "kpfcnn-csfr+seg_c-0.1-seed0" and changed.labels["variant"] == "csfr+seg_c"
    expected = cell_config(config, replace(plain, method="csfr"))
    expected = replace(expected, loss=replace(expected.loss, seg_c=True, lambda_cr=0.5))
    assert cell_config(replace(config, variants=[variant]), changed) == expected


@pytest.mark.parametrize(
    "changes, cause",
    [
        ({"loss.seg_d": True}, "variants.odd sets loss.seg_d, expected a setting of a training"),
        ({"seg_c": True}, "variants.odd sets seg_c, expected"),
        ({3: True}, "variants.odd sets 3, expected"),
        ({"loss.lambda_cr.x": 1}, "variants.odd sets loss.lambda_cr.x, expected"),
        ({"loss": {"lambda_cr": 0.5}}, "variants.odd sets loss, expected a setting of a training such as loss.seg_c"),
        ({"loss.lambda_cr": "much"}, "variants.odd: .*lambda_cr"),
        ({"loss.lambda_cr": -1}, "variants.odd: loss.lambda_cr must be at least 0, got -1"),
        (
            {"data.label_by": "cloud"},
            "variants.odd sets data.label_by, expected the scenes and labels of all other runs",
        ),
        ({"data.test_groups": ["more"]}, "variants.odd sets data.test_groups, expected the scenes and labels"),
    ],
)
def test_a_variant_that_cannot_be_trained_stops_it_at_once(changes, cause, config, tmp_path):
    odd = Variant(name="odd", method="csfr", settings=changes)
    with pytest.raises(UserError, match=cause):
        compare(replace(config, variants=[odd]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["csfr", "", "a/b", "two words"])
def test_names_that_no_variant_can_have(name):
    """One that is a method's would share its run folders; one with a slash would leave the folder."""
    with pytest.raises(UserError, match=r"name must be letters"):
        Variant(name=name, method="csfr")


@pytest.mark.parametrize("key", ["method", "seed", "backbone", "data.label_rate", "data.label_seed"])
def test_a_variant_leaves_to_the_comparison_what_it_compares(key):
    with pytest.raises(UserError, match=f"x sets {key}, which a comparison sets itself"):
        Variant(name="x", method="csfr", settings={key: 0})


def test_two_variants_need_two_names(config):
    twice = [Variant(name="x", method="csfr"), Variant(name="x", method="isfr")]
    with pytest.raises(UserError, match="variants must list no value twice"):
        replace(config, variants=twice)


def test_full_supervision_is_a_label_rate_of_its_own(config):
    """It goes with its methods alone, whatever the weak labels of the others are."""
    full = replace(config, methods=["baseline", "csfr"], full_supervision=["baseline"])
    names = [cell.name for cell in cells(full)]
    assert names == ["kpfcnn-baseline-0.1-seed0", "kpfcnn-csfr-0.1-seed0", "kpfcnn-baseline-1.0-seed0"]
    by_points = replace(config.train, data=replace(config.train.data, label_points=20))
    full = replace(config, train=by_points, label_rates=[], full_supervision=["baseline"])
    few, all_of_them = [cell_config(full, cell).data for cell in cells(full)]
    assert few.label_points == 20 and (all_of_them.label_points, all_of_them.label_rate) == (None, 1.0)
    with pytest.raises(UserError, match="full_supervision adds the label rate 1"):
        replace(config, label_rates=[1.0], full_supervision=["baseline"])


@pytest.mark.parametrize("equal", [True, False])
def test_equal_updates_do_not_depend_on_what_else_is_compared(equal, config):
    """So that two comparisons can have a run in common: one stage takes the steps of two, whether two are listed."""
    for methods in (["baseline"], ["baseline", "csfr-isfr"]):
        both = replace(config, methods=methods, equal_updates=equal)
        settings = [cell_config(both, cell) for cell in cells(both)]
        epochs = [s.optim.epochs for s in settings]
        assert epochs == [(2 if equal else 1) * 2, 2][: len(methods)]


def test_comparisons_share_the_runs_they_have_in_common(config, tmp_path, monkeypatch):
    """The second one trains only what the first did not; both report all of theirs."""
    shared = replace(config, runs=str(tmp_path / "runs"))
    first = compare(shared, tmp_path / "first")["runs"]
    trained, real = [], module.train
    monkeypatch.setattr(module, "train", lambda s, folder: trained.append((s.method, s.seed)) or real(s, folder))
    monkeypatch.setattr(module, "plot_comparison", lambda *_: None)
    second = compare(replace(shared, methods=["baseline", "isfr"]), tmp_path / "second")["runs"]
    assert second[0] == first[0] and [run["method"] for run in second] == ["baseline", "isfr"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "kpfcnn-baseline-0.1-seed0",
        "kpfcnn-isfr-0.1-seed0",
    ]
    assert not (tmp_path / "first" / "runs").exists() and ("isfr", 0) in trained


def test_branches_are_scored_where_their_module_was_trained(config, tmp_path):
    """Table 3: the basic branch of every run, the cross and intra branches of those that have them; once."""
    methods = ["baseline", "csfr", "isfr", "csfr-isfr"]
    config = replace(config, methods=methods, branches=["cross", "intra"])
    runs = compare(config, tmp_path)["runs"]
    assert [sorted({"cross", "intra"} & run.keys()) for run in runs] == [[], ["cross"], ["intra"], ["cross", "intra"]]
    assert all(run[b]["results"]["branch"] == b for run in runs for b in ("cross", "intra") if b in run)
    *_, last = rows_of((tmp_path / "table.md").read_text())
    for branch in ("cross", "intra"):
        assert last[f"{branch} branch mIoU %"] == f"{100 * runs[-1][branch]['results']['miou']:.1f}"
    before = (tmp_path / "results.json").read_bytes()
    compare(config, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before, "nothing is evaluated twice"


def test_a_branch_that_fails_is_listed_and_leaves_the_run_alone():
    run = {"backbone": "kpfcnn", "method": "csfr", "label_rate": 0.1, "seed": 0, "results": SCORES}
    table = comparison_table([{**run, "cross": {"error": "no partner"}}])
    assert "* cross branch of kpfcnn csfr, 10 % labelled, seed 0: no partner" in table
    (row,) = rows_of(table)
    assert row["cross branch mIoU %"] == "-" and row["mIoU %"] == "50.0"


def test_the_papers_scores_stand_beside_those_they_belong_to(config, tmp_path, monkeypatch):
    """By backbone, label rate, method or variant, and branch; where the paper has none the place is empty."""
    monkeypatch.setattr(module, "train", lambda *_: SCORES)
    monkeypatch.setattr(module, "plot_comparison", lambda *_: None)
    monkeypatch.setattr(module, "evaluation", lambda *_: SCORES)
    paper = [
        PaperScore(method="csfr", label_rate=0.1, miou=67.7),
        PaperScore(method="plus", label_rate=0.1, miou=66.3),
        PaperScore(method="csfr", label_rate=0.1, miou=60.3, branch="cross"),
    ]
    variants, methods = [Variant(name="plus", method="csfr")], ["baseline", "csfr"]
    config = replace(config, backbones=["kpfcnn", "minkunet"], methods=methods, variants=variants, paper=paper)
    compare(replace(config, branches=["cross"], full_supervision=["csfr"]), tmp_path)
    rows = rows_of((tmp_path / "table.md").read_text())
    printed = {(r["labels"], r["backbone"], r["method"]): (r["paper mIoU %"], r["paper cross branch"]) for r in rows}
    assert printed.pop(("10 %", "kpfcnn", "csfr")) == ("67.7", "60.3")
    assert printed.pop(("10 %", "kpfcnn", "plus")) == ("66.3", "")
    assert len(printed) == 6 and set(printed.values()) == {("", "")}
    assert json.loads((tmp_path / "results.json").read_text())["config"]["paper"][0]["miou"] == 67.7


@pytest.mark.parametrize(
    "changes, cause",
    [
        ({"miou": 677.0}, r"miou must be in percent, 0 to 100, got 677"),
        ({"iou": {"floor": -1.0}}, r"iou must be in percent, 0 to 100, got \{'floor': -1"),
        ({"label_rate": 10.0}, r"label_rate must be in \(0, 1\], got 10"),
        ({"method": "csrf"}, r"paper\.2 is a score of csrf, expected one of baseline, csfr, .*, plus"),
        ({"method": "csfr"}, r"paper\.2 is of kpfcnn csfr 0.1 basic, as is paper\.1"),
    ],
)
def test_scores_that_the_paper_cannot_have(changes, cause, config):
    scores = [{"method": "csfr", "label_rate": 0.1, "miou": 67.7}, {"method": "plus", "label_rate": 0.1, "miou": 66.3}]
    config = replace(config, variants=[Variant(name="plus", method="csfr")])
    with pytest.raises(UserError, match=cause):
        replace(config, paper=[PaperScore(**score) for score in (scores[0], scores[1] | changes)])


def test_classes_of_the_paper_that_the_store_does_not_have_stop_it_at_once(config, tmp_path):
    paper = [PaperScore(method="baseline", label_rate=0.1, miou=60.0, iou={"floor": 90.0, "ceiling": 30.0})]
    with pytest.raises(
        UserError, match=r"paper\.1\.iou has the class ceiling, expected those of .*: floor, wall, table"
    ):
        compare(replace(config, paper=paper), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_of_the_paper_beside_no_run_are_told(config, tmp_path, monkeypatch, capsys):
    """A part of a table can be repeated; what the rest of the paper's scores would stand beside is said."""
    monkeypatch.setattr(module, "train", lambda *_: SCORES)
    monkeypatch.setattr(module, "plot_comparison", lambda *_: None)
    places = ({}, {"method": "csfr"}, {"label_rate": 0.01}, {"branch": "cross"}, {"backbone": "minkunet"})
    score = {"method": "baseline", "label_rate": 0.1, "miou": 60.0}
    compare(replace(config, paper=[PaperScore(**score | place) for place in places]), tmp_path)
    told = "kpfcnn csfr 0.1 basic, kpfcnn baseline 0.01 basic, kpfcnn baseline 0.1 cross, minkunet baseline 0.1 basic"
    assert f"paper: no run here is of {told}\n" in capsys.readouterr().out
    compare(replace(config, paper=[PaperScore(**score)]), tmp_path)
    assert "paper:" not in capsys.readouterr().out.replace("The paper", "")


def test_a_difference_says_which_way_it_goes():
    """It is taken seed by seed: means that are further apart than their spread need not differ in pairs."""
    runs = [
        {"backbone": "kpfcnn", "method": m, "label_rate": 0.1, "seed": seed, "results": {**SCORES, "miou": miou}}
        for m, scores in (("baseline", (0.3, 0.5)), ("csfr", (0.32, 0.54)), ("isfr", (0.2, 0.4)))
        for seed, miou in enumerate(scores)
    ]
    assert [row["vs. baseline"] for row in rows_of(comparison_table(runs))] == ["", "+3.0 ± 1.4", "-10.0 ± 0.0"]
