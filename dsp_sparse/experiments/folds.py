"""Scores over folds: runs of one data set that each tested on other groups, such as the six areas of S3DIS."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from ..errors import UserError
from ..metrics import ConfusionMatrix
from ..training.run import load_config
from ..training.scores import SCORES, read_scores
from .evaluation import percent, score_lines


@dataclass(frozen=True)
class Fold:
    """What one run says of its test scenes.

    Args:
        source: run folder or evaluation file.
        groups: the groups it was tested on.
        trained_on: those of them that it was also trained on.
        settings: how it was tested, `branch`, `votes` and `rotations`.
        classes: C class names.
        original: the original points.
        grid: the grid points, without the way back to the original ones.
    """

    source: Path
    groups: list[str]
    trained_on: list[str]
    settings: dict[str, str | int | None]
    classes: list[str]
    original: ConfusionMatrix
    grid: ConfusionMatrix


def read_fold(source: str | Path) -> Fold:
    """Read the results of a finished run (its folder) or an evaluation file. UserError: neither."""
    source = Path(source)
    file = source / "results.json" if source.is_dir() else source
    if not file.is_file():
        reason = "not a finished run (no results.json)" if source.is_dir() else "no such file or folder"
        raise UserError(f"{source}: {reason}, expected a finished run or an evaluation of one")
    scores = read_scores(file)
    if source.is_dir():
        config = load_config(source)
        said = {"groups": config.data.test_groups, "trained_on": [], "branch": "basic", **asdict(config.eval)}
    else:
        said = scores
    groups, trained_on = said.get("groups"), said.get("trained_on")
    if not (isinstance(groups, list) and isinstance(trained_on, list)):
        raise UserError(f"{file}: does not say which groups it scores, expected a run folder or an evaluation of one")
    settings = {name: said.get(name) for name in ("branch", "votes", "rotations")}
    try:
        classes = list(scores["iou"])
        counts = [np.array(part["confusion"]) for part in (scores, scores["grid"])]
        whole = all(c.shape == (len(classes), len(classes)) and c.dtype == np.int64 for c in counts)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{file}: holds no confusion matrix of its classes, expected the results of an evaluation")
    return Fold(source, groups, trained_on, settings, classes, *map(ConfusionMatrix.of, counts))


def aggregate(sources: Sequence[str | Path]) -> dict:
    """Pool the folds: their confusion matrices are summed, as if one network had scored every point.

    Args:
        sources: run folders or evaluation files, at least one.

    Returns:
        `ConfusionMatrix.scores` of all original points; the same of the grid points under `grid`; `folds`, one dict a
        fold: `source`, `groups`, and the fold's own scores in the same form.

    Raises:
        UserError: a source without results, of other classes, branch, votes or rotations than the first, or of a group
            that another one scores or that its own run was trained on.
    """
    folds = [read_fold(source) for source in sources]
    owners: dict[str, Path] = {}
    for fold in folds:
        if fold.classes != folds[0].classes:
            raise UserError(
                f"{fold.source}: scores the classes {', '.join(fold.classes)}, "
                f"expected those of {folds[0].source}, {', '.join(folds[0].classes)}"
            )
        for name, value in folds[0].settings.items():
            if fold.settings[name] != value:
                raise UserError(
                    f"{fold.source}: scored with {name} {fold.settings[name]}, "
                    f"expected {value}, as in {folds[0].source}"
                )
        if fold.trained_on:
            raise UserError(f"{fold.source}: scores groups that its run was trained on, {', '.join(fold.trained_on)}")
        for group in set(fold.groups):
            if group in owners:
                raise UserError(f"{fold.source}: scores the group {group}, and so does {owners[group]}; expected one")
            owners[group] = fold.source

    def scores(part: Sequence[Fold]) -> dict:
        original, grid = (
            ConfusionMatrix.of(sum(getattr(fold, name).counts for fold in part)) for name in ("original", "grid")
        )
        return {**original.scores(folds[0].classes), "grid": grid.scores(folds[0].classes)}

    each = [{"source": str(fold.source), "groups": fold.groups, **scores([fold])} for fold in folds]
    return {**scores(folds), "folds": each}


def fold_table(report: dict) -> str:
    """What `aggregate` returned as lines of text, in percent: every fold, their mean, then all points pooled."""
    folds = report["folds"]
    names = [f"{fold['source']} ({', '.join(fold['groups'])})" for fold in folds]
    average = f"mean of {len(folds)} folds"
    width = max(map(len, [*names, average]))
    lines = [f"{'':{width}}   mIoU     OA   mAcc  (the same on grid points, without back-projection)"]
    for name, part in zip(names, folds, strict=True):
        lines.append(_line(name, width, [part[key] for key in SCORES], [part["grid"][key] for key in SCORES]))
    means = [[_mean(part[key] for part in parts) for key in SCORES] for parts in (folds, [f["grid"] for f in folds])]
    lines.append(_line(average, width, *means))
    return "\n".join([*lines, "", "All points of all folds:", *score_lines(report)])


def _line(name: str, width: int, original: list, grid: list) -> str:
    first, second = ("  ".join(map(percent, values)) for values in (original, grid))
    return f"{name:{width}}  {first}  ({second})"


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return mean(values) if values else None
