"""Confusion matrices as heat maps."""

import numpy as np

from ..table import group_runs
from .html import folded, paragraph, scrolling, section, text
from .sources import Subject, classes_of, name_of


def confusion_section(subject: Subject, first: list[dict]) -> str:
    """A matrix for every kind of run, summed over its seeds.

    Args:
        subject: what the report is about.
        first: runs whose kind is shown open; the others open on a click.
    """
    classes = classes_of(subject.runs)
    parts = []
    for group in group_runs(subject.runs).values():
        counts = [np.array(run["results"]["confusion"]) for run in group if "results" in run]
        if counts:
            seeds = f"sum of {len(counts)} seeds" if len(counts) > 1 else f"seed {group[0]['seed']}"
            matrix = heat_map(f"Percent of the points of each true class, {seeds}", sum(counts), classes)
            parts.append(folded(name_of(group[0]), matrix, shown=any(run in first for run in group)))
    if not parts:
        return ""
    note = "Rows are the truth, columns the prediction, in percent of the row; hover over a cell for the points."
    return section("confusion", "Confusion", paragraph(note), f'<div class="heats">{"".join(parts)}</div>')


def heat_map(title: str, counts: np.ndarray, classes: list[str]) -> str:
    """A table whose cells are the darker the more of their row they hold.

    Args:
        title: its caption.
        counts: `[C, C]` points, rows are the truth.
        classes: the C class names.
    """
    head = "".join(f'<th scope="col"><span>{text(name)}</span></th>' for name in classes)
    lines = []
    for truth, row in zip(classes, counts, strict=True):
        total = int(row.sum())
        cells = []
        for predicted, count in zip(classes, row, strict=True):
            share = count / total if total else 0.0
            told = f"{int(count):,} of {total:,} points of {truth} are predicted as {predicted}"
            strong = ' class="strong"' if share > 0.5 else ""
            shown = f"{100 * share:.0f}" if share >= 0.005 else ""
            cells.append(f'<td{strong} style="--share:{100 * share:.0f}%" title="{text(told)}">{shown}</td>')
        lines.append(f'<tr><th scope="row">{text(truth)}</th>{"".join(cells)}</tr>')
    return scrolling(
        title,
        f'<table class="heat"><caption><span>{text(title)}</span></caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>",
    )
