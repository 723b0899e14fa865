"""Reports: every table against the scores it is made of, whatever is missing told in its place."""

import base64
import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from dsp_sparse.config import CompareConfig, DataConfig, PaperScore, TrainConfig, Variant
from dsp_sparse.errors import UserError
from dsp_sparse.experiments.affinity_views import AffinityView
from dsp_sparse.experiments.evaluation import evaluate_run
from dsp_sparse.experiments.matrix import Cell
from dsp_sparse.experiments.report import evidence, write_report
from dsp_sparse.experiments.report.confusion import heat_map
from dsp_sparse.experiments.report.evidence import Evidence, shares_table
from dsp_sparse.experiments.report.html import text
from dsp_sparse.experiments.report.order import Pair, pairs_of
from dsp_sparse.experiments.report.scores import Printed
from dsp_sparse.experiments.report.sources import read_subject
from dsp_sparse.experiments.report.svg import limits, log_ticks, ticks
from dsp_sparse.experiments.report.viewer import LIMIT, packed, viewer_section
from dsp_sparse.experiments.views import SceneView
from dsp_sparse.metrics import ConfusionMatrix

CLASSES = ["floor", "wall", "lamp <b>"]
MIOU = {"baseline": [0.40, 0.44, 0.48], "csfr-isfr": [0.45, 0.47, 0.52]}


class Page(HTMLParser):
    """The tables of a page by caption, as lists of rows of text, and all its text outside of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.ids, self._open = "", [], []
        self._caption, self._rows = "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img", "input"):
            self._open.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes what it did not open"
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data


def scores_of(miou: float) -> dict:
    """Results with this mIoU; the IoU of the classes, and how many points were confused, follow from it."""
    matrix = ConfusionMatrix(3)
    matrix.counts += np.array([[90, 10, 0], [5, 15, 0], [0, 0, 0]])
    results = {**matrix.scores(CLASSES), "miou": miou}
    results["iou"] = {"floor": miou, "wall": miou / 2, "lamp <b>": None}
    return {**results, "seconds": 1.0, "steps": 240, "train_seconds": 300.0}


@pytest.fixture
def comparison(tmp_path):
    """A comparison of two methods with three seeds, of the paper's figures, whose run folders are gone."""
    train = TrainConfig(data=DataConfig(store="gone", test_groups=["test"]))
    paper = [
        PaperScore(method="baseline", label_rate=0.1, miou=66.5, iou={"floor": 98.4, "wall": 82.9}),
        PaperScore(method="csfr-isfr", label_rate=0.1, miou=68.6),
        PaperScore(method="csfr-isfr", label_rate=0.1, miou=62.2, branch="cross"),
    ]
    config = CompareConfig(
        train=train,
        backbones=["kpfcnn"],
        methods=list(MIOU),
        label_rates=[0.1],
        seeds=[0, 1, 2],
        branches=["cross"],
        title="Rooms & <script>alert(1)</script>",
        paper=paper,
    )
    runs = [
        {"backbone": "kpfcnn", "method": method, "label_rate": 0.1, "seed": seed, "results": scores_of(miou)}
        for method, scores in MIOU.items()
        for seed, miou in enumerate(scores)
    ]
    for run in runs[3:]:
        run["cross"] = {"results": scores_of(0.3)}
    return config, runs, tmp_path / "out"


def report(config, runs, folder) -> tuple[Page, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(
        json.dumps({"version": "0.0.7", "config": asdict(config), "runs": runs}, default=list)
    )
    page = write_report(folder).read_text()
    return Page(page), page


def test_scores_stand_beside_the_papers(comparison):
    """Mean ± standard deviation over seeds, the paired difference, and the paper's figures and difference."""
    page, _ = report(*comparison)
    head, place, baseline, method = page.tables["Mean ± standard deviation over seeds 0, 1, 2"]
    assert place == ["kpfcnn, 10 % labelled"]
    rows = [dict(zip(head, row, strict=True)) for row in (baseline, method)]
    assert [row["method"] for row in rows] == ["baseline", "csfr-isfr"]
    assert [row["mIoU %"] for row in rows] == ["44.0 ± 4.0", "48.0 ± 3.6"]
    assert [row["vs. baseline"] for row in rows] == ["", "+4.0 ± 1.0"]  # of 5, 3 and 4
    assert [row["paper mIoU %"] for row in rows] == ["66.5", "68.6"]
    assert [row["paper vs. baseline"] for row in rows] == ["", "+2.1"]
    assert [row["cross branch mIoU %"] for row in rows] == ["", "30.0 ± 0.0"]
    assert [row["paper cross"] for row in rows] == ["", "62.2"]
    assert [row["runs"] for row in rows] == ["3", "3"]
    assert [row["OA %"] for row in rows] == ["87.5 ± 0.0"] * 2
    assert rows[0]["training"] == "5.0 min" and rows[0]["steps"] == "240"


def test_classes_stand_beside_the_papers(comparison):
    page, markup = report(*comparison)
    head, _, baseline, paper, method = page.tables["IoU of the classes in percent"]
    assert head == ["method", "mIoU", *CLASSES]
    assert baseline == ["baseline", "44.0± 4.0", "44.0± 4.0", "22.0± 2.0", "-"]
    assert paper == ["paper, baseline", "66.5", "98.4", "82.9", ""]
    assert method[0] == "csfr-isfr"
    bars = re.findall(r"<rect [^>]*><title>(.*?)</title>", markup)
    assert "baseline, floor: 44.0 % ± 4.0, paper 98.4 %" in bars
    assert not any("lamp" in bar for bar in bars), "a class without a score has no bar"


def test_the_verdict_is_told_with_its_spread(comparison):
    page, _ = report(*comparison)
    low, high = stats.ttest_1samp([5, 3, 4], 0).confidence_interval(0.95)
    row = page.tables["kpfcnn, 10 % labelled: differences of mIoU in percent points"][1]
    assert row == ["csfr-isfr > baseline", "+2.1", "+4.0", f"{low:+.1f} … {high:+.1f}", "3 of 3", "as in the paper"]
    assert "1 of 1 pairs of methods are in the paper's order, 1 of them beyond the spread" in page.text
    assert "csfr-isfr against the baseline: +4.0 ± 2.5 (95 %) (paper +2.1)" in page.text


def test_text_of_others_is_text(comparison):
    """Titles and class names cannot become markup; what the parser finds is what was written."""
    page, markup = report(*comparison)
    assert "Rooms & <script>alert(1)</script>" in page.text
    assert "<script>alert" not in markup and "lamp <b>" not in markup
    assert "dsp-sparse 0.0.7" in page.text


def test_what_failed_and_what_is_open_is_told(comparison):
    """Neither counts in a mean."""
    config, runs, folder = comparison
    del runs[5]["results"], runs[5]["cross"]
    runs[5]["error"] = "FloatingPointError: the loss\nis nan"
    page, _ = report(config, [run for run in runs if run is not runs[1]], folder)
    head, _, baseline, method = page.tables["Mean ± standard deviation over seeds 0, 1, 2"]
    rows = [dict(zip(head, row, strict=True)) for row in (baseline, method)]
    assert [row["runs"] for row in rows] == ["2 of 3, 1 open", "2 of 3, 1 failed"]
    assert [row["mIoU %"] for row in rows] == ["44.0 ± 5.7", "46.0 ± 1.4"]
    assert rows[1]["vs. baseline"] == "+5.0", "seed 0 alone has both"
    assert "kpfcnn csfr-isfr, 10 % labelled, seed 2: FloatingPointError: the loss is nan" in page.text
    assert "finished runs: 4 of 6, 1 failed, 1 open" in page.text


def test_a_variant_is_no_run_of_its_method(comparison):
    """Where the variant has ended and the method has not, the method's place stays empty."""
    config, runs, folder = comparison
    config = replace(config, variants=[Variant(name="longer", method="csfr-isfr")])
    variants = [{**run, "variant": "longer"} for run in runs[3:]]
    page, _ = report(config, [*runs[:3], *variants], folder)
    _, _, _, method, variant = page.tables["Mean ± standard deviation over seeds 0, 1, 2"]
    assert method[:2] == ["csfr-isfr", "-"] and variant[:2] == ["longer", "48.0 ± 3.6"]


def test_a_run_that_was_trained_anew_lends_nothing_to_old_results(comparison, unfinished):
    """Its curves and pictures would be of other weights than the scores."""
    config, runs, folder = comparison
    run = folder / "runs" / Cell(backbone="kpfcnn", method="baseline", label_rate=0.1, seed=0).name
    shutil.copytree(unfinished, run, ignore=shutil.ignore_patterns("model.pt"))
    other = {**runs[0]["results"], "confusion": np.eye(3, dtype=int).tolist()}
    for results, there in ((other, False), (runs[0]["results"], True)):
        (run / "results.json").write_text(json.dumps(results))
        page, _ = report(config, runs, folder)
        assert ("time" in page.ids) == there


def test_a_comparison_of_one_seed_has_no_spread(comparison):
    config, runs, folder = comparison
    config = CompareConfig(**{**vars(config), "seeds": [0]})
    page, _ = report(config, [run for run in runs if run["seed"] == 0], folder)
    row = page.tables["Seed 0"][3]
    assert row[1:3] == ["45.0", "+5.0"]
    assert "as in the paper, one seed" in page.text


def test_folders_that_are_gone_are_told(comparison):
    page, _ = report(*comparison)
    assert "The folders of the runs are gone" in page.text
    assert "No run folder with metrics is there." in page.text
    assert not {"scene", "affinity", "shares", "time"} & set(page.ids)


@pytest.mark.parametrize("own", [[5.0, 3.0, 4.0], [1.0, -0.5, 0.2, 0.3], [-2.0, -1.0], list(range(1, 16))])
def test_intervals_are_students(own):
    """Against scipy; more than eleven seeds get the interval of eleven's quantile, which is wider."""
    pair = Pair("a", "b", 1.0, own)
    low, high = stats.ttest_1samp(own, 0).confidence_interval(0.95)
    width = (high - low) / 2
    if len(own) <= 11:
        assert pair.half_width == pytest.approx(width, rel=1e-3)
    else:
        assert width < pair.half_width < 1.05 * width


@pytest.mark.parametrize(
    "own, verdict",
    [
        ([5.0, 3.0, 4.0], "as in the paper"),
        ([5.0, -3.0, 4.0], "as in the paper, within the spread"),
        ([-5.0, -3.0, -4.0], "reversed"),
        ([-5.0, 3.0, -4.0], "reversed, within the spread"),
        ([2.0], "as in the paper, one seed"),
        ([-2.0], "reversed, one seed"),
        ([0.0, 0.0], "no difference"),
    ],
)
def test_verdicts(own, verdict):
    assert Pair("a", "b", 1.0, own).verdict == verdict


def test_pairs_are_those_that_the_paper_orders():
    def runs(*scores):
        return [{"seed": seed, "results": {"miou": miou}} for seed, miou in enumerate(scores)]

    own = {"a": runs(0.5, 0.6), "b": runs(0.4, 0.7), "c": runs(0.1), "d": runs(0.2)}
    paper = {"a": {"miou": 60.0}, "b": {"miou": 61.0}, "c": {"miou": 60.0}, "d": None}
    pairs = pairs_of(own, paper)
    assert [(p.better, p.worse) for p in pairs] == [("b", "a"), ("b", "c")], "a and c are equal, d is not in the paper"
    assert pairs[0].own == pytest.approx([-10.0, 10.0]) and pairs[1].own == pytest.approx([30.0])


def test_the_papers_figures_stand_beside_a_backbone_that_it_does_not_have():
    """But never beside one that it has, with a method that it does not."""
    score = asdict(PaperScore(method="csfr", label_rate=0.1, miou=60.0))
    printed = Printed([score, asdict(PaperScore(method="isfr", label_rate=0.1, miou=61.0, backbone="minkunet"))])
    assert printed.score(0.1, "kpfcnn", "csfr")["miou"] == 60.0
    assert printed.score(0.1, "minkunet", "csfr") is None
    assert Printed([score]).score(0.1, "minkunet", "csfr")["miou"] == 60.0
    assert Printed([]).score(0.1, "kpfcnn", "csfr") is None


@pytest.fixture
def unfinished(rooms_store, make_run):
    """A run folder with three epochs of two stages."""
    run = make_run(rooms_store)
    seconds = {"geometry": 0.1, "forward": 3.0, "backward": 4.0, "total": 10.0}
    lines = [
        {"stage": stage, "objective": name, "epoch": 1, "losses": losses, "seconds": seconds}
        for stage, name, losses in (
            (0, "csfr", {"seg": 2.0, "cr": 0.5, "total": 2.5}),
            (0, "csfr", {"seg": 1.5, "cr": 1e-4, "total": 1.5}),
            (1, "isfr", {"seg": 1.0, "sr": 0.2, "total": 1.2}),
        )
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    return run


def test_an_unfinished_run_has_curves(unfinished):
    """And the time of its steps; nothing that needs results."""
    markup = write_report(unfinished).read_text()
    page = Page(markup)
    assert "No results yet" in page.text and "No run has finished yet." in page.text
    for name in ("segmentation loss", "cross consistency (CR)", "self consistency (SR)"):
        assert f'aria-label="{name} by epoch"' in markup
    assert "segmentation, cross branch" not in markup
    assert markup.count('class="break"') == 3, "one a panel, where the second stage begins"
    head, first, _ = page.tables["Milliseconds a training step, in the epoch of median length of all runs"]
    row = dict(zip(head, first, strict=True))
    parts = {"pyramid": "0.2", "forward": "6.0", "backward": "8.0", "rest": "5.8"}
    assert {name: row[name] for name in head[4:]} == parts, "of 500 steps"
    assert row["stage"] == "csfr" and row["whole"] == "20.0" and sum(map(float, parts.values())) == 20
    assert not {"scene", "confusion", "classes"} & set(page.ids)


def test_metrics_that_cannot_be_read_are_an_error(unfinished):
    (unfinished / "metrics.jsonl").write_text("{}\nnot json\n{}\n")
    with pytest.raises(UserError, match=r"metrics.jsonl: line 1 is not the line of an epoch"):
        write_report(unfinished)


def finish(run, **more):
    """Evaluate a run and leave its results, as training does."""
    results = {**evaluate_run(run), "steps": 10, "train_seconds": 3.0, **more}
    (run / "results.json").write_text(json.dumps(results))


def test_a_store_that_is_gone_is_told_where_pictures_would_be(unfinished, tmp_path):
    finish(unfinished)
    config = (unfinished / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(re.sub(r"store: .*", f"store: {tmp_path}/gone", config))
    page = Page(write_report(unfinished, tmp_path / "elsewhere" / "page.html").read_text())
    assert f"Not shown: {tmp_path}/gone: not a scene store" in page.text
    assert "scene" not in page.ids and "confusion" in page.ids and "curves" in page.ids
    assert not (unfinished / "report.html").exists()


def test_modules_that_are_damaged_leave_the_rest_of_the_report(unfinished):
    finish(unfinished)
    (unfinished / "modules.pt").write_bytes(b"cut")
    page = Page(write_report(unfinished).read_text())
    assert f"not measured: {unfinished}/modules.pt" in page.text
    assert {"pictures", "scene", "settings"} <= set(page.ids)


def test_full_supervision_is_named_with_its_seed(make_run, rooms_store, monkeypatch):
    weak, full = make_run(rooms_store, "weak"), make_run(rooms_store, "full")
    finish(weak)
    settings = (full / "config.yaml").read_text()
    (full / "config.yaml").write_text(
        settings.replace("label_rate: 0.1", "label_rate: 1.0").replace("\nseed: 0", "\nseed: 7")
    )
    monkeypatch.setattr(Evidence, "_look", lambda self: None)
    monkeypatch.setattr(evidence, "segmentation_picture", lambda views, weak, full: f"{weak} | {full}".encode())
    markup = Evidence(read_subject(weak), full).scenes()
    assert "kpfcnn csfr, 10 % labelled, seed 0; full supervision: kpfcnn csfr, 100 %, seed 7." in Page(markup).text


def test_pictures_are_of_a_method_rather_than_of_the_baseline(tmp_path):
    (tmp_path / "model.pt").touch()
    run = {"backbone": "kpfcnn", "label_rate": 0.1, "seed": 0, "results": {}, "folder": tmp_path}
    for *methods, expected in (
        ("baseline", "csfr", "isfr", "csfr"),
        ("baseline", "csfr", "csfr-isfr", "csfr-isfr"),
        ("baseline", "baseline"),
    ):
        (shown,) = Evidence(SimpleNamespace(runs=[run | {"method": method} for method in methods])).shown
        assert shown["method"] == expected


def test_bad_folders(tmp_path, rooms_store, make_run, unfinished):
    for folder, cause in (
        (tmp_path / "gone", "gone: no such folder, expected the folder of a run or of a comparison"),
        (rooms_store.path, "neither a run .no config.yaml. nor a comparison"),
    ):
        with pytest.raises(UserError, match=cause):
            write_report(folder)
    for content, cause in (
        ("[1]", "not the results of a comparison"),
        ('{"version": "1", "runs": []}', "not the results of a comparison .KeyError: 'config'."),
        ('{"version": "1", "runs": [], "config": {"methods": "x"}}', "not the settings of a comparison"),
    ):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(UserError, match=f"results.json: {cause}"):
            write_report(tmp_path)
    with pytest.raises(UserError, match=r"trained with weak labels, expected a run with full supervision"):
        write_report(unfinished, full=unfinished)
    with pytest.raises(UserError, match=r"no finished run .no model.pt., expected one with full supervision"):
        (unfinished / "model.pt").unlink()
        write_report(unfinished, full=unfinished)
    (unfinished / "results.json").write_text('{"miou": 1.0, "overall_accuracy": 1, "mean_accuracy": 1, "seconds": 1}')
    with pytest.raises(UserError, match=r"results.json: not readable as results"):
        write_report(unfinished)


def test_a_failure_leaves_the_last_report(unfinished, monkeypatch):
    file = write_report(unfinished)
    before = file.read_text()
    monkeypatch.setattr("dsp_sparse.experiments.report.settings_section", lambda subject: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(unfinished)
    assert file.read_text() == before and not list(unfinished.glob(".report*"))


def test_heat_maps_are_shares_of_the_truth():
    page = Page(heat_map("Shares", np.array([[3, 1], [0, 0]]), ["floor", "wall"]))
    assert page.tables["Shares"] == [["", "floor", "wall"], ["floor", "75", "25"], ["wall", "", ""]]
    assert "1 of 4 points of floor are predicted as wall" in heat_map("", np.array([[3, 1], [0, 0]]), ["floor", "wall"])


def test_shares_are_means_over_seeds():
    def shares(after):
        scores = {"mean": after, "by_class": {"floor": after, "wall": None}}
        return {"isfr": {"before": scores, "after": scores, "chance": scores}}

    (rows,) = Page(shares_table("run", [shares(0.5), shares(0.7)])).tables.values()
    assert rows[0] == ["class", "ISFR before", "ISFR after", "ISFR chance"]
    assert rows[1][:2] == ["all points", "60.0 ± 14.1"] and rows[3] == ["wall", "-", "-", "-"]


@pytest.mark.parametrize("values, log", [([0.0, 2.5], False), ([1.0, 1.0], False), ([0.0, 1e-4, 3.0], True)])
def test_axes_show_every_value(values, log):
    (low, high), found = limits([*values, float("nan")])
    assert found is log and (log or low <= min(values)) and max(values) <= high
    shown = log_ticks(low, high) if log else ticks(low, high)
    assert 2 <= len(shown) <= 7 and low <= shown[0] and shown[-1] <= high * (1 + 1e-9)
    assert limits([]) is None


def test_chosen_points_share_their_clouds_and_ceilings_come_last():
    """The first chosen point must not be one that is hidden from above."""
    points, colours = np.eye(3, dtype=np.float32), np.zeros((3, 3), np.uint8)
    labels, ceiling = np.array([0, 1, 1], np.int16), np.array([True, False, False])
    classes = ["ceiling", "wall</script><!--<script>"]
    scene = SceneView(
        name="room",
        points=points,
        colours=colours,
        labels=labels,
        ceiling=ceiling,
        predictions={"run": labels},
        confidence={"run": np.array([0.0, 0.5, 1.0], np.float32)},
        classes=classes,
        palette=np.zeros((2, 3), np.uint8),
    )
    own = {
        f"{what}_{name}": a for what in ("target", "source") for name, a in (("labels", labels), ("ceiling", ceiling))
    }
    own |= {"target": points, "target_colours": colours, "source": points[::-1], "source_colours": colours}
    own |= {"context": points, "context_colours": colours, "context_ceiling": ceiling, "affinity": np.ones(3) / 3}
    common = {"classes": classes, "target_scene": "room", "source_scene": "room", "point": points[0], **own}
    views = [AffinityView(module=module, label=label, **common) for module in ("csfr", "isfr") for label in (0, 1)]
    markup = viewer_section(scene, [("", view) for view in views], 0.1)
    assert markup.count("</script>") == 2 and "<!--" not in markup, (
        "a class name can neither end the data nor keep it open"
    )
    data = json.loads(re.search(r'id="scene-data">(.*?)</script>', markup, re.S)[1])
    names = [one["name"] for one in data["affinity"]]
    assert names == [f"{module}, {name}" for name in classes[::-1] for module in ("CSFR", "ISFR")]
    assert [one["ceiling"] for one in data["affinity"]] == [False, False, True, True]
    assert len(data["clouds"]) == 3, "source, context and target, once for all"
    assert list(base64.b64decode(data["runs"][0]["confidence"])) == [0, 128, 255]


def test_weights_go_with_the_points_that_are_left_of_many():
    """Of a large cloud a part is shown; every point of it keeps its own affinity."""
    count = LIMIT + 100
    points = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    weights, none = np.arange(count, dtype=np.float32), np.zeros(count, bool)
    colours, labels = np.zeros((count, 3), np.uint8), np.zeros(count, np.int16)
    common = {"label": 0, "classes": ["floor"], "point": points[0], "target_scene": "room", "source_scene": "room"}
    own = {
        f"{what}_{name}": a
        for what in ("target", "source", "context")
        for name, a in (("labels", labels), ("ceiling", none), ("colours", colours))
    }
    del own["context_labels"]
    view = AffinityView(module="csfr", **common, **own, target=points, source=points, context=points, affinity=weights)
    scene = SceneView("room", points, colours, labels, none, {}, {}, ["floor"], np.zeros((1, 3), np.uint8))
    data = json.loads(re.search(r'id="scene-data">(.*?)</script>', viewer_section(scene, [("", view)], 0.1), re.S)[1])
    (one,) = data["affinity"]
    shown = np.frombuffer(base64.b64decode(one["weight"]), "<f4")
    cloud = data["clouds"][one["source"]]
    steps = np.frombuffer(base64.b64decode(cloud["position"]), "<u2").reshape(-1, 3)
    places = cloud["low"][0] + steps[:, 0] / 65535 * cloud["size"][0]
    assert len(shown) == LIMIT and np.abs(places / 3 - shown).max() < 0.1


def test_points_are_packed_to_less_than_a_millimetre():
    """Decoded as the page does it."""
    generator = np.random.default_rng(0)
    points = generator.uniform(-9, 9, (1000, 3)).astype(np.float32)
    points[:, 2] = 1.5  # flat
    labels = generator.integers(-1, 5, 1000)
    cloud = packed(points, np.zeros((1000, 3)), labels, labels < 0, 0.04)
    steps = np.frombuffer(base64.b64decode(cloud["position"]), "<u2").reshape(-1, 3)
    assert np.abs(np.array(cloud["low"]) + steps / 65535 * np.array(cloud["size"]) - points).max() < 2e-4
    decoded = np.frombuffer(base64.b64decode(cloud["label"]), np.uint8)
    assert (np.where(decoded == 255, -1, decoded.astype(int)) == labels).all()


def test_quotes_cannot_leave_an_attribute():
    assert text("\"'<&>") == "&quot;&#x27;&lt;&amp;&gt;"
