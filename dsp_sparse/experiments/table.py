"""The table of a comparison: mean ± standard deviation over seeds, and paired differences to the baseline."""

from collections.abc import Iterable
from statistics import mean, stdev

COLUMNS = (
    "labels",
    "backbone",
    "method",
    "seeds",
    "mIoU %",
    "vs. baseline",
    "OA %",
    "mAcc %",
    "optimiser steps",
    "training s",
)
ENGINE_COLUMNS = ("evaluation s", "mIoU % with the first engine's weights")


def spread(values: Iterable[float | None], scale: float = 100.0) -> str:
    """`mean ± standard deviation` in percent; one value has no spread, none is a dash, None does not count."""
    values = [scale * v for v in values if v is not None]
    if not values:
        return "-"
    return f"{mean(values):.1f}" if len(values) == 1 else f"{mean(values):.1f} ± {stdev(values):.1f}"


def seconds(values: Iterable[float], digits: int = 0) -> str:
    """The mean, a dash of none."""
    values = list(values)
    return f"{mean(values):.{digits}f}" if values else "-"


def labels_of(run: dict) -> str:
    """What was labelled in a run, for people."""
    if "label_points" in run:
        return f"{run['label_points']} points a cloud"
    return "mask" if "label_mask" in run else f"{100 * run['label_rate']:.10g} %"


def group_runs(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Runs by (label rate, backbone, method, engine), each group in the order of its seeds; None: not compared."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        key = (run.get("label_rate"), run["backbone"], run["method"], run.get("engine"))
        groups.setdefault(key, []).append(run)
    return dict(sorted(groups.items(), key=lambda item: item[0][:2]))  # stable: the rest stays in the given order


def differences(group: list[dict], baseline: list[dict]) -> list[float]:
    """mIoU minus the baseline's mIoU of the same seed (the same weak labels), for seeds where both have one."""
    reference = {r["seed"]: r["results"]["miou"] for r in baseline if "results" in r}
    pairs = [(r["results"]["miou"], reference.get(r["seed"])) for r in group if "results" in r]
    return [score - base for score, base in pairs if None not in (score, base)]


def comparison_table(runs: list[dict]) -> str:
    """A Markdown table, one row a (label rate, backbone, method, engine); failed runs are counted and listed below it,
    never averaged away. The columns about engines are there if engines are compared.
    """
    groups = group_runs(runs)
    engines = any("engine" in run for run in runs)
    columns = (*COLUMNS[:2], "engine", *COLUMNS[2:], *ENGINE_COLUMNS) if engines else COLUMNS
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (rate, backbone, method, engine), group in groups.items():
        done = [r["results"] for r in group if "results" in r]
        failed = len(group) - len(done)
        baseline = groups.get((rate, backbone, "baseline", engine), [])
        delta = "" if method == "baseline" else spread(differences(group, baseline))
        cells = [
            labels_of(group[0]),
            backbone,
            *([engine or "-"] if engines else []),
            method,
            f"{len(done)}" + (f", {failed} failed" if failed else ""),
            spread(r["miou"] for r in done),
            delta,
            *(spread(r[key] for r in done) for key in ("overall_accuracy", "mean_accuracy")),
            f"{done[0]['steps']}" if done else "-",
            seconds(r["train_seconds"] for r in done),
        ]
        if engines:
            same = [r["first_engine"]["results"] for r in group if "results" in r.get("first_engine", {})]
            cells += [seconds((r["seconds"] for r in same), digits=1), spread(r["miou"] for r in same)]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = sorted({r["seed"] for r in runs})
    lines += [
        "",
        f"Seeds: {', '.join(map(str, seeds))}. `±` is the standard deviation over seeds; the difference to the",
        "baseline is taken seed by seed, on the same weak labels. mIoU is over all original points of the test scenes.",
    ]
    if engines:
        lines += [
            "",
            "The last two columns are of the weights that the run with the first engine ended with, evaluated under",
            "each engine. Trained apart, engines end with other weights: rounding differs from the first step on.",
        ]
    failures = [f"* {name}: {' '.join(error.split())}" for run in runs for name, error in errors(run)]
    return "\n".join(lines + (["", "Failed:", "", *failures] if failures else [])) + "\n"


def errors(run: dict) -> list[tuple[str, str]]:
    """What failed of a run, and why."""
    name = " ".join(filter(None, (run["backbone"], run.get("engine"), run["method"])))
    name += f", {labels_of(run)} labelled, seed {run['seed']}"
    found = [(name, run), (f"first engine's weights under {name}", run.get("first_engine", {}))]
    return [(what, outcome["error"]) for what, outcome in found if "error" in outcome]
