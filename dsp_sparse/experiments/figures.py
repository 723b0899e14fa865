"""Figures of an experiment. Matplotlib is the extra `report`; without it figures are left out, with a word."""

import warnings
from pathlib import Path

from ..files import atomic_path
from .table import group_runs, labels_of


def plot_comparison(runs: list[dict], path: Path) -> None:
    """Draw the mIoU of every run as a dot and of every group as a bar, one panel a label rate."""
    try:
        from matplotlib.figure import Figure  # no pyplot: no display, no global state
        from matplotlib.patches import Patch
    except ImportError:
        warnings.warn("no figure: matplotlib is missing (pip install 'dsp-sparse[report]')", stacklevel=2)
        return
    groups = group_runs([r for r in runs if "results" in r and r["results"]["miou"] is not None])
    rates = list(dict.fromkeys(rate for rate, *_ in groups))
    if not rates:
        return
    kinds = list(dict.fromkeys((method, engine) for *_, method, engine in groups))
    figure = Figure(figsize=(1.5 + 3.5 * len(rates), 3.6), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        backbones = list(dict.fromkeys(b for r, b, *_ in groups if r == rate))
        for i, kind in enumerate(kinds):
            for j, backbone in enumerate(backbones):
                scores = [100 * r["results"]["miou"] for r in groups.get((rate, backbone, *kind), [])]
                if not scores:
                    continue
                x = j + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
                panel.bar(x, sum(scores) / len(scores), 0.75 / len(kinds), color=f"C{i}", alpha=0.6)
                panel.plot([x] * len(scores), scores, "k.", markersize=4)
        panel.set_xticks(range(len(backbones)), backbones)
        panel.set_title(f"{next(labels_of(g[0]) for (r, *_), g in groups.items() if r == rate)} labelled")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mIoU (%)")
    handles = [Patch(color=f"C{i}", alpha=0.6, label=" ".join(filter(None, kind))) for i, kind in enumerate(kinds)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
