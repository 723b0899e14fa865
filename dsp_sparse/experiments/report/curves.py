"""How training went: the losses epoch by epoch, and where the time of a step went."""

from collections.abc import Sequence
from statistics import mean

from ...training.epoch import PARTS as STEP_PARTS
from ..table import group_runs, method_of, methods_by_place
from .html import legend, paragraph, section, table, text
from .sources import Subject, place_of
from .svg import Line, colour, limits, line_chart, shares_bar

# What the names in the metrics stand for (paper Eq. 1, 5, 9, 10).
LOSSES = {
    "seg": "segmentation loss",
    "cr": "cross consistency (CR)",
    "sr": "self consistency (SR)",
    "seg_c": "segmentation, cross branch",
    "seg_s": "segmentation, intra branch",
    "reg": "kernel point regularisation",
}
# What a step spends its time on, by its name in the metrics, and what is left of it.
PARTS = {**STEP_PARTS, "rest": "rest"}


def curve_section(subject: Subject) -> str:
    """The losses of all runs; axes are the same wherever the same loss of the same backbone is shown."""
    runs = [run for run in subject.runs if run["metrics"]]
    if not runs:
        return section("curves", "Learning curves", paragraph("No run folder with metrics is there."))
    methods = list(dict.fromkeys(method_of(run) for run in runs))
    colours = [colour(i) for i in range(len(methods))]
    body = [legend(methods, colours)] if len(methods) > 1 else []
    ranges = {}
    for backbone in dict.fromkeys(run["backbone"] for run in runs):
        lines = [line["losses"] for run in runs if run["backbone"] == backbone for line in run["metrics"]]
        ranges |= {(backbone, loss): limits([values[loss] for values in lines if loss in values]) for loss in LOSSES}
    places = methods_by_place(runs)
    for (_, backbone, _), own in places.items():
        last = max(len(run["metrics"]) for group in own.values() for run in group)
        panels = []
        for loss, name in LOSSES.items():
            lines = [line for m, group in own.items() for line in _lines(m, group, loss, colour(methods.index(m)))]
            if lines and ranges[backbone, loss]:
                y, log = ranges[backbone, loss]
                panels.append(line_chart(name, lines, ("epoch", 1, last), y, log, _breaks(own)))
        body.append(f"<h3>{text(place_of(next(iter(own.values()))[0]))}</h3>")
        body.append(f'<div class="panels">{"".join(panels)}</div>')
    several = any(len(group) > 1 for own in places.values() for group in own.values())
    note = "Means over the steps of an epoch, before their weights λ; a dashed line stands where a second stage begins."
    if several:
        note += " Thin: a seed each; thick: their mean."
    return section("curves", "Learning curves", *body, paragraph(note))


def _lines(method: str, group: Sequence[dict], loss: str, hue: str) -> list[Line]:
    """A curve for every seed and, of several, their mean over the epochs that all have."""
    curves = {
        run["seed"]: [
            (epoch, line["losses"][loss]) for epoch, line in enumerate(run["metrics"], 1) if loss in line["losses"]
        ]
        for run in group
    }
    curves = {seed: points for seed, points in curves.items() if points}
    if len(curves) < 2:
        return [Line(name=f"{method}, seed {seed}", colour=hue, points=p) for seed, p in curves.items()]
    lines = [Line(name=f"{method}, seed {seed}", colour=hue, points=p, thin=True) for seed, p in curves.items()]
    together = zip(*curves.values(), strict=False)
    average = [(points[0][0], mean(value for _, value in points)) for points in together]
    return [*lines, Line(name=f"{method}, mean of {len(curves)} seeds", colour=hue, points=average)]


def _breaks(own: dict[str, list[dict]]) -> list[float]:
    """Between which epochs a stage ends."""
    places = set()
    for group in own.values():
        for run in group:
            stages = [line["stage"] for line in run["metrics"]]
            places |= {i + 0.5 for i in range(1, len(stages)) if stages[i] != stages[i - 1]}
    return sorted(places)


def time_section(subject: Subject) -> str:
    """Milliseconds of a step by what they were spent on, for every stage of every method."""
    epochs: dict[tuple, list[dict]] = {}
    for (_, backbone, method, engine), group in group_runs(subject.runs).items():
        for run in group:
            for line in run["metrics"]:
                steps = run["config"].optim.steps_per_epoch
                parts = {name: 1000 * seconds / steps for name, seconds in line["seconds"].items()}
                whole = parts.pop("total")
                # Not less than nothing: a GPU has a clock of its own.
                spent = {**parts, "rest": max(0.0, whole - sum(parts.values())), "total": whole}
                epochs.setdefault((backbone, engine or "", method, line["objective"]), []).append(spent)
    if not epochs:
        return ""
    # One epoch, so that its parts add up.
    typical = {key: sorted(lines, key=lambda line: line["total"])[len(lines) // 2] for key, lines in epochs.items()}
    names = [name for name in PARTS if any(name in parts for parts in typical.values())]
    hues = {name: f"var(--part-{number})" for number, name in enumerate(PARTS)}
    longest = max(parts["total"] for parts in typical.values())
    rows = []
    for (backbone, engine, method, stage), parts in typical.items():
        own = [name for name in names if name in parts]
        shares = [(f"{PARTS[name]}: {parts[name]:.1f} ms", parts[name], hues[name]) for name in own]
        name = f"{' on '.join(filter(None, (backbone, engine)))} {method}"
        cells = [f"{parts[name]:.1f}" if name in own else "" for name in names]
        rows.append([text(name), text(stage), f"<b>{parts['total']:.1f}</b>", shares_bar(shares, longest), *cells])
    rows.sort(key=lambda row: row[0].split()[0])
    titles = [PARTS[name] for name in names]
    return section(
        "time",
        "Time of a step",
        legend(titles, [hues[name] for name in names]),
        table(
            "Milliseconds a training step, in the epoch of median length of all runs",
            ["method", "stage", "whole", "parts", *titles],
            rows,
            labels=2,
            kind="bars",
        ),
        paragraph("Pyramid: neighbourhoods and subsampled levels of KPFCNN, kernel maps of MinkUNet."),
    )
