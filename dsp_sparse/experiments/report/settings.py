"""What was run: the head of the page, the settings and the environment."""

import json
from dataclasses import asdict

import yaml

from ...config import TrainConfig
from ...training.environment import read_environment
from ..table import labels_of, method_of, progress
from .html import folded, paragraph, section, text
from .sources import Subject


def heading(subject: Subject) -> str:
    """Title, what is compared, and how much of it is there."""
    runs = subject.runs
    backbones, methods, labels = (
        ", ".join(dict.fromkeys(pick(run) for run in runs))
        for pick in (lambda run: run["backbone"], method_of, labels_of)
    )
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    words = f"Backbones: {backbones}. Methods: {methods}. Labelled: {labels}. Seeds: {seeds}."
    facts = ["No results yet: the run is not finished"]
    if subject.written:
        facts = [f"Results of {subject.written:%d %B %Y, %H:%M} UTC"]
    if len(runs) > 1:
        facts.append(f"finished runs: {progress(runs)}")
    if subject.version:
        facts.append(f"dsp-sparse {subject.version}")
    title = f"<h1>{text(subject.title)}</h1>"
    return title + (paragraph(words) if len(runs) > 1 else "") + paragraph(" · ".join(facts))


def settings_section(subject: Subject) -> str:
    """The settings that matter most, all of them folded, and what the runs were computed with."""
    train = subject.comparison.train if subject.comparison else subject.runs[0]["config"]
    everything = asdict(subject.comparison or train)
    everything.pop("paper", None)
    written = yaml.safe_dump(json.loads(json.dumps(everything)), sort_keys=False)
    return section(
        "settings",
        "Settings",
        facts_list(main_settings(train)),
        folded("All settings", f'<pre tabindex="0">{text(written)}</pre>'),
        environments(subject),
    )


def main_settings(train: TrainConfig) -> dict[str, str]:
    """By name, as text."""
    data, optim, loss = train.data, train.optim, train.loss
    groups = ", ".join(data.train_groups) if data.train_groups is not None else "all others with labels"
    points = f", at most {data.max_points:,} points" if data.max_points else ""
    several = f", {optim.accumulate} batches a step" if optim.accumulate > 1 else ""
    return {
        "store": data.store,
        "trained on": groups,
        "tested on": ", ".join(data.test_groups),
        "samples": f"balls of {data.radius:g} m{points}, {data.batch_size} a batch{several}",
        "a stage": f"{optim.epochs} epochs of {optim.steps_per_epoch} steps",
        "optimiser": f"SGD, learning rate {optim.lr:g} down to {optim.lr * optim.lr_decay:.2g}, momentum "
        f"{optim.momentum:g}, weight decay {optim.weight_decay:g}",
        "losses": f"λ CR {loss.lambda_cr:g}, λ SR {loss.lambda_sr:g}, consistency by {loss.consistency_reduction}",
        "computed in": train.compute.precision,
        "evaluated with": f"votes: {train.eval.votes}, rotations: {train.eval.rotations}",
    }


def environments(subject: Subject) -> str:
    """What the runs were computed with: what all have in common, and what differs."""
    starts = [
        start
        for run in subject.runs
        if run["folder"] is not None
        for start in read_environment(run["folder"] / "environment.json")
    ]
    if not starts:
        return ""
    found = {}
    for name in dict.fromkeys(key for start in starts for key in start):
        values = list(dict.fromkeys(str(start[name]) for start in starts if start.get(name) is not None))
        if name == "started":
            values = [min(values)] if min(values) == max(values) else [min(values), "…", max(values)]
            found["started"] = " ".join(values)
        elif values:
            found[name.replace("_", " ")] = ", ".join(values)
    return f"<h3>Environment</h3>{facts_list(found)}"


def facts_list(facts: dict[str, str]) -> str:
    """Names and values."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in facts.items())}</dl>"
