"""The table of a comparison: mean ± standard deviation over seeds, and paired differences to the baseline."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev


def spread(values: Iterable[float | None], signed: bool = False) -> str:
    """`mean ± standard deviation` in percent; one value has no spread, none is a dash, None does not count."""
    values = [100 * v for v in values if v is not None]
    if not values:
        return "-"
    average = f"{mean(values):+.1f}" if signed else f"{mean(values):.1f}"
    return average if len(values) == 1 else f"{average} ± {stdev(values):.1f}"


def seconds(values: Iterable[float], digits: int = 0) -> str:
    """The mean, a dash of none."""
    values = list(values)
    return f"{mean(values):.{digits}f}" if values else "-"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def progress(runs: Sequence[dict]) -> str:
    """How many of some runs have results and, if not all have, how many failed and how many are open."""
    done, failed = (sum(key in run for run in runs) for key in ("results", "error"))
    others = {"failed": failed, "open": len(runs) - done - failed}
    missing = [f"{count} {what}" for what, count in others.items() if count]
    return ", ".join([f"{done} of {len(runs)}", *missing]) if missing else f"{done}"


def labels_of(run: dict) -> str:
    """What was labelled in a run, for people."""
    if "label_points" in run:
        return f"{run['label_points']} points a cloud"
    return "mask" if "label_mask" in run else f"{100 * run['label_rate']:.10g} %"


def method_of(run: dict) -> str:
    """What tables call a run's method: the name of its variant if it is one."""
    return run.get("variant", run["method"])


def group_runs(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Runs by (label rate, backbone, method, engine), each group in the order of its seeds; None: not compared."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        key = (run.get("label_rate"), run["backbone"], method_of(run), run.get("engine"))
        groups.setdefault(key, []).append(run)
    # Stable: the rest stays in the given order. Labels that are not a share come first.
    return dict(sorted(groups.items(), key=lambda item: (item[0][0] or 0, item[0][1])))


def methods_by_place(runs: list[dict]) -> dict[tuple, dict[str, list[dict]]]:
    """The groups of `group_runs` by method, for every (label rate, backbone, engine)."""
    places: dict[tuple, dict[str, list[dict]]] = {}
    for (rate, backbone, method, engine), group in group_runs(runs).items():
        places.setdefault((rate, backbone, engine), {})[method] = group
    return places


def differences(group: list[dict], baseline: list[dict]) -> list[float]:
    """mIoU minus the baseline's mIoU of the same seed (the same weak labels), for seeds where both have one."""
    reference = {r["seed"]: r["results"]["miou"] for r in baseline if "results" in r}
    pairs = [(r["results"]["miou"], reference.get(r["seed"])) for r in group if "results" in r]
    return [score - base for score, base in pairs if None not in (score, base)]


def comparison_table(runs: list[dict], paper: Sequence[dict] = ()) -> str:
    """A Markdown table, one row a (label rate, backbone, method, engine); failed runs are counted and listed below it,
    never averaged away. Columns of branches, of engines and of the paper are there if there is something in them.

    Args:
        runs: the `runs` of a comparison's results.
        paper: its `paper`, `PaperScore` as dicts.
    """
    groups = group_runs(runs)
    branches = [name for name in ("cross", "intra") if any(name in run for run in runs)]
    printed = {(p["label_rate"], p["backbone"], p["method"], p["branch"]): p["miou"] for p in paper}
    rows = []
    for (rate, backbone, method, engine), group in groups.items():
        done = [r["results"] for r in group if "results" in r]
        baseline = groups.get((rate, backbone, "baseline", engine), [])
        row = {"labels": labels_of(group[0]), "backbone": backbone}
        if engines := any("engine" in run for run in runs):
            row["engine"] = engine or "-"
        row["method"] = method
        row["seeds"] = progress(group)
        row["mIoU %"] = spread(r["miou"] for r in done)
        row["vs. baseline"] = "" if method == "baseline" else spread(differences(group, baseline), signed=True)
        row["OA %"] = spread(r["overall_accuracy"] for r in done)
        row["mAcc %"] = spread(r["mean_accuracy"] for r in done)
        for branch in branches:
            scores = [r[branch]["results"]["miou"] for r in group if "results" in r.get(branch, {})]
            row[f"{branch} branch mIoU %"] = spread(scores)
        for branch in ("basic", *branches):
            if any(key[3] == branch for key in printed):
                score = printed.get((rate, backbone, method, branch))
                name = "paper mIoU %" if branch == "basic" else f"paper {branch} branch"
                row[name] = "" if score is None else f"{score:.1f}"
        row["optimiser steps"] = f"{done[0]['steps']}" if done else "-"
        row["training s"] = seconds(r["train_seconds"] for r in done)
        if engines:
            same = [r["first_engine"]["results"] for r in group if "results" in r.get("first_engine", {})]
            row["evaluation s"] = seconds((r["seconds"] for r in same), digits=1)
            row["mIoU % with the first engine's weights"] = spread(r["miou"] for r in same)
        rows.append(row)
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    seeds = sorted({r["seed"] for r in runs})
    lines += [
        "",
        f"Seeds: {', '.join(map(str, seeds))}. `±` is the standard deviation over seeds; the difference to the",
        "baseline is taken seed by seed, on the same weak labels. mIoU is over all original points of the test scenes.",
    ]
    if paper:
        lines.append("The paper's figures are of its own data set and training.")
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
    name = " ".join(filter(None, (run["backbone"], run.get("engine"), method_of(run))))
    name += f", {labels_of(run)} labelled, seed {run['seed']}"
    others = {
        "first_engine": "first engine's weights under",
        "cross": "cross branch of",
        "intra": "intra branch of",
    }
    found = [(name, run), *((f"{what} {name}", run.get(key, {})) for key, what in others.items())]
    return [(what, outcome["error"]) for what, outcome in found if "error" in outcome]
