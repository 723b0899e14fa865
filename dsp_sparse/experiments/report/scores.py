"""The tables of a report: one's own scores beside the paper's."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from ..evaluation import MODULE_OF_BRANCH
from ..table import differences, duration, errors, group_runs, progress, spread
from .html import bullets, legend, paragraph, section, table, text
from .sources import Subject, classes_of, place_of
from .svg import Bar, bar_chart, colour


def score_section(subject: Subject) -> str:
    """Means over the seeds, paired differences to the baseline, and the paper's figures."""
    groups = group_runs(subject.runs)
    printed = Printed(subject.paper)
    branches = [branch for branch in MODULE_OF_BRANCH if any(branch in run for run in subject.runs)]
    paired = len(groups) > 1 and any(method == "baseline" for *_, method, _ in groups)
    head = ["method", "mIoU %", *(["vs. baseline"] if paired else [])]
    if subject.paper:
        head += ["paper mIoU %", *(["paper vs. baseline"] if paired else [])]
    for branch in branches:
        head += [f"{branch} branch mIoU %", *([f"paper {branch}"] if subject.paper else [])]
    head += ["OA %", "mAcc %", "runs", "steps", "training"]
    rows: dict[str, list[list[str]]] = {}
    for (rate, backbone, method, engine), group in groups.items():
        done = [run["results"] for run in group if "results" in run]
        row = [text(method), f"<b>{text(spread(r['miou'] for r in done))}</b>"]
        if paired:
            baseline = groups.get((rate, backbone, "baseline", engine), [])
            row.append("" if method == "baseline" else text(spread(differences(group, baseline), signed=True)))
        if subject.paper:
            own, base = printed.score(rate, backbone, method), printed.score(rate, backbone, "baseline")
            row.append(_figure(own, backbone))
            if paired:
                known = None not in (own, base) and method != "baseline"
                row.append(f"{own['miou'] - base['miou']:+.1f}" if known else "")
        for branch in branches:
            scored = [run[branch]["results"]["miou"] for run in group if "results" in run.get(branch, {})]
            row.append(text(spread(scored)) if scored else "")
            if subject.paper:
                row.append(_figure(printed.score(rate, backbone, method, branch), backbone))
        row += [text(spread(r[key] for r in done)) for key in ("overall_accuracy", "mean_accuracy")]
        steps, seconds = ([r[key] for r in done if key in r] for key in ("steps", "train_seconds"))
        row += [text(progress(group)), f"{steps[0]:,}" if steps else "", duration(mean(seconds)) if seconds else ""]
        rows.setdefault(place_of(group[0]), []).append(row)
    seeds = sorted({run["seed"] for run in subject.runs})
    notes = ["± is the standard deviation over the seeds."] if len(seeds) > 1 else []
    if paired:
        notes.append("The difference to the baseline is taken seed by seed, on the same weak labels.")
    notes.append("All scores are over all original points of the test scenes.")
    if subject.paper:
        notes.append(printed.note)
    numbers = ", ".join(map(str, seeds))
    caption = f"Mean ± standard deviation over seeds {numbers}" if len(seeds) > 1 else f"Seed {numbers}"
    return section("scores", "Scores", table(caption, head, rows), paragraph(" ".join(notes)), failures(subject))


def failures(subject: Subject) -> str:
    """What failed, and why."""
    found = [f"{what}: {' '.join(error.split())}" for run in subject.runs for what, error in errors(run)]
    return f'<div class="failed"><h3>Failed</h3>{bullets(found)}</div>' if found else ""


class Printed:
    """The paper's figures. It has them for one backbone; they stand beside another backbone's where that has none.

    Args:
        paper: `PaperScore` as dicts.
    """

    def __init__(self, paper: Sequence[dict]):
        self._scores = {(p["label_rate"], p["backbone"], p["method"], p["branch"]): p for p in paper}
        self._backbones = list(dict.fromkeys(p["backbone"] for p in paper))

    def score(self, rate: float | None, backbone: str, method: str, branch: str = "basic") -> dict | None:
        """The score of a run; None if the paper has none."""
        return self._scores.get((rate, self.backbone(backbone), method, branch))

    def backbone(self, backbone: str) -> str | None:
        """The backbone whose figures stand beside this one's."""
        return backbone if backbone in self._backbones else next(iter(self._backbones), None)

    @property
    def note(self) -> str:
        """Whose figures they are."""
        return f"The paper's figures are of its own data set, with {' and '.join(self._backbones)}."


def _figure(score: dict | None, backbone: str) -> str:
    """A score of the paper beside one of a backbone, which it names if it is another's."""
    if not score:
        return ""
    other = f" <small>{text(score['backbone'])}</small>" if score["backbone"] != backbone else ""
    return f"{score['miou']:.1f}{other}"


def class_section(subject: Subject) -> str:
    """IoU of every class: bars and a table, with the paper's figures where it has them."""
    classes = classes_of(subject.runs)
    groups = {
        key: done
        for key, group in group_runs(subject.runs).items()
        if (done := [run for run in group if "results" in run])
    }
    if not groups:
        return ""
    printed = Printed(subject.paper)
    methods = list(dict.fromkeys(key[2] for key in groups))
    panels: dict[tuple, list[Bar]] = {}
    rows: dict[str, list[list[str]]] = {}
    for (rate, backbone, method, _), group in groups.items():
        title = place_of(group[0])
        scores = {name: _known(run["results"]["iou"].get(name) for run in group) for name in classes}
        paper = printed.score(rate, backbone, method)
        beside = paper["iou"] if paper else {}
        panels.setdefault(title, []).append(
            Bar(
                name=method,
                colour=colour(methods.index(method)),
                means=[100 * mean(scores[name]) if scores[name] else None for name in classes],
                spreads=[100 * stdev(scores[name]) if len(scores[name]) > 1 else None for name in classes],
                marks=[beside.get(name) for name in classes],
            )
        )
        cells = [_stacked(spread(scores[name])) for name in classes]
        average = spread(run["results"]["miou"] for run in group)
        rows.setdefault(title, []).append([text(method), f"<b>{_stacked(average)}</b>", *cells])
        if beside:
            theirs = [f"{beside[name]:.1f}" if name in beside else "" for name in classes]
            rows[title].append([f"<i>paper, {text(method)}</i>", _figure(paper, backbone), *theirs])
    charts = "".join(bar_chart(title, classes, bars) for title, bars in panels.items())
    marks = any(mark is not None for bars in panels.values() for bar in bars for mark in bar.marks)
    several = any(len(group) > 1 for group in groups.values())
    notes = ["Whiskers: standard deviation over seeds."] * several + [
        "Diamonds: the paper's IoU.",
        printed.note,
    ] * marks
    return section(
        "classes",
        "IoU of the classes",
        legend(methods, [colour(i) for i in range(len(methods))]) if len(methods) > 1 else "",
        f'<div class="panels">{charts}</div>',
        paragraph(" ".join(notes)) if notes else "",
        table("IoU of the classes in percent", ["method", "mIoU", *classes], rows, kind="dense"),
    )


def _stacked(score: str) -> str:
    """The mean above its spread."""
    average, _, deviation = score.partition(" ± ")
    return text(average) + (f"<br><small>± {text(deviation)}</small>" if deviation else "")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
