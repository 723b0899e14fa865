"""The table of a comparison: mean ± standard deviation over seeds, and paired differences to the baseline."""

from statistics import mean, stdev


def spread(values: list[float], scale: float = 100.0) -> str:
    """`mean ± standard deviation` in percent; one value has no spread, none is a dash."""
    values = [scale * v for v in values]
    if not values:
        return "-"
    return f"{mean(values):.1f}" if len(values) == 1 else f"{mean(values):.1f} ± {stdev(values):.1f}"


def group_runs(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Runs by (label rate, backbone, method), each group in the order of its seeds."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault((run["label_rate"], run["backbone"], run["method"]), []).append(run)
    return dict(sorted(groups.items(), key=lambda item: item[0][:2]))  # stable: methods stay in the given order


def differences(group: list[dict], baseline: list[dict]) -> list[float]:
    """mIoU minus the baseline's mIoU of the same seed (the same weak labels), for seeds where both finished."""
    reference = {r["seed"]: r["results"]["miou"] for r in baseline if "results" in r}
    return [r["results"]["miou"] - reference[r["seed"]] for r in group if "results" in r and r["seed"] in reference]


def comparison_table(runs: list[dict]) -> str:
    """A Markdown table, one row a (label rate, backbone, method); failed runs are counted, never averaged away."""
    groups = group_runs(runs)
    lines = [
        "| labels | backbone | method | seeds | mIoU % | vs. baseline | OA % | mAcc % | optimiser steps | training s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (rate, backbone, method), group in groups.items():
        done = [r["results"] for r in group if "results" in r]
        failed = len(group) - len(done)
        baseline = groups.get((rate, backbone, "baseline"), [])
        delta = "" if method == "baseline" else spread(differences(group, baseline))
        cells = [
            f"{100 * rate:g} %",
            backbone,
            method,
            f"{len(done)}" + (f", {failed} failed" if failed else ""),
            spread([r["miou"] for r in done]),
            delta,
            *(spread([r[key] for r in done]) for key in ("overall_accuracy", "mean_accuracy")),
            f"{done[0]['steps']}" if done else "-",
            f"{mean(r['train_seconds'] for r in done):.0f}" if done else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = sorted({r["seed"] for r in runs})
    lines += [
        "",
        f"Seeds: {', '.join(map(str, seeds))}. `±` is the standard deviation over seeds; the difference to the",
        "baseline is taken seed by seed, on the same weak labels. mIoU is over all original points of the test scenes.",
    ]
    return "\n".join(lines) + "\n"
