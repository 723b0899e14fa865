"""How long a comparison will take on this device: what is left of its runs, times the measured pace of each kind."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import CompareConfig
from ..data import SceneStore, split
from ..errors import UserError
from ..training.environment import environment
from ..training.run import Run
from ..training.stages import METHODS
from .compare import evaluated, require_machine
from .matrix import Cell, cell_config, cells, further, run_folder
from .pace import Pace, evaluation_pace, step_pace
from .table import duration


@dataclass(frozen=True)
class Kind:
    """Work that goes equally fast in all runs that have it.

    Args:
        backbone: the backbone.
        engine: engine of a minkunet where engines are compared.
        variant: the variant whose settings the run has.
        work: a stage, which is trained, or a branch, which is evaluated.
    """

    backbone: str
    engine: str | None
    variant: str | None
    work: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return " ".join(filter(None, (self.backbone, self.engine, self.work, self.variant and f"({self.variant})")))


@dataclass(frozen=True)
class Left:
    """What is not done yet of a run.

    Args:
        cell: the run.
        steps: optimiser steps, by kind.
        points: grid points to score, by kind.
    """

    cell: Cell
    steps: dict[Kind, int]
    points: dict[Kind, int]


@dataclass(frozen=True)
class Estimate:
    """What is left of a comparison, and how fast it goes.

    Args:
        training: the pace of a step, by kind.
        scoring: the pace of a grid point, by kind.
        left: every run.
        test_points: grid points of all test scenes, which an evaluation scores.
        measured: on which device and store, after how many steps, for people.
    """

    training: dict[Kind, Pace]
    scoring: dict[Kind, Pace]
    left: list[Left]
    test_points: int
    measured: str

    def seconds(self, runs: Iterable[Left]) -> tuple[float, float]:
        """Seconds of training and of evaluation that are left of runs."""
        training, scoring = 0.0, 0.0
        for run in runs:
            training += sum(count * self.training[kind].seconds for kind, count in run.steps.items())
            scoring += sum(count * self.scoring[kind].seconds for kind, count in run.points.items())
        return training, scoring


def estimate(config: CompareConfig, out: str | Path, steps: int = 8) -> Estimate:
    """Measure every kind of step and of evaluation that a comparison has left, on batches and scenes of its store.

    What is finished in the run folders does not count, nor do start-up, checkpoints and tables. Rate and seed of the
    labels make no difference to a step: one run of a kind stands for all.

    Args:
        config: the comparison.
        out: its folder, which is only read.
        steps: steps to time of every kind, at least 2.

    Raises:
        UserError: `steps`, settings, store, device or an engine will not do, or a run folder is of other settings.
        FloatingPointError: a kind diverges within the steps; the message names it.
    """
    if steps < 2:
        raise UserError(f"steps must be at least 2, got {steps}")
    require_machine(config)
    store = SceneStore.open(config.train.data.store)
    _, scenes = split(store, config.train.data)
    test_points = sum(scene.num_points for scene in scenes)
    left = [unfinished(config, cell, Path(out), test_points) for cell in cells(config)]
    training: dict[Kind, Pace] = {}
    scoring: dict[Kind, Pace] = {}
    for run in left:
        settings = cell_config(config, run.cell)
        for kind in (kind for kind in run.steps if kind not in training):
            print(f"steps of {kind.name}:", file=sys.stderr, flush=True)
            try:
                training[kind] = step_pace(replace(settings, method=kind.work), steps)
            except FloatingPointError as error:
                raise FloatingPointError(f"{kind.name}: {error}") from None
        for kind in (kind for kind in run.points if kind not in scoring):
            print(f"evaluation of {kind.name}:", file=sys.stderr, flush=True)
            scoring[kind] = evaluation_pace(settings, kind.work)
    here = environment(config.train)
    device = f"{here['cpu']}, threads: {here['threads']}" if here["device"] == "cpu" else here["device"]
    measured = f"{device}; {steps} steps on {store.path}, grid {store.grid:g} m, {len(store.classes)} classes"
    return Estimate(training, scoring, left, test_points, measured)


def unfinished(config: CompareConfig, cell: Cell, out: Path, test_points: int) -> Left:
    """What is left of a run. UserError: its folder holds a run of other settings."""
    settings = cell_config(config, cell)
    run = Run(run_folder(config, out, cell), settings)
    optim, steps, points = settings.optim, {}, {}
    if run.results is None:
        # A line an epoch; without a checkpoint the training begins anew.
        done = Counter(line["stage"] for line in run.metrics() if run.checkpoint.exists())
        for number, stage in enumerate(METHODS[cell.method]):
            if epochs := optim.epochs - done[number]:
                steps[Kind(cell.backbone, cell.engine, cell.variant, stage)] = epochs * optim.steps_per_epoch
        points[Kind(cell.backbone, cell.engine, cell.variant, "basic")] = test_points
    for source, branch, engine in further(config, cell).values():
        if not evaluated(config, run_folder(config, out, source), branch, engine):
            kind = Kind(cell.backbone, cell.engine, cell.variant, branch)
            points[kind] = points.get(kind, 0) + test_points
    return Left(cell, steps, points)


def estimate_table(found: Estimate) -> str:
    """An estimate as lines of text: the paces, the time that each method takes, and the sum of all."""
    steps = [["step of", "points", "ms"]]
    for kind, pace in found.training.items():
        steps.append([kind.name, f"{pace.points:,.0f}", f"{1000 * pace.seconds:,.1f} ± {1000 * pace.spread:,.1f}"])
    scenes = [["evaluation of", "points", "s", f"s of all {found.test_points:,} points"]]
    for kind, pace in found.scoring.items():
        seconds = [f"{pace.seconds * points:,.1f}" for points in (pace.points, found.test_points)]
        scenes.append([kind.name, f"{pace.points:,.0f}", *seconds])
    methods = defaultdict(list)
    for run in found.left:
        cell = run.cell
        methods[" ".join(filter(None, (cell.backbone, cell.engine, cell.variant or cell.method)))].append(run)
    plan = [["method", "runs left", "steps of a run", "training", "evaluation"]]
    for name, runs in methods.items():
        busy = sum(bool(run.steps or run.points) for run in runs)
        most = max(sum(run.steps.values()) for run in runs)
        plan.append([name, f"{busy} of {len(runs)}", f"{most:,}", *map(duration, found.seconds(runs))])
    tables = ["\n".join(aligned(table)) for table in (steps, scenes, plan) if len(table) > 1]
    head = f"measured on {found.measured}"
    return "\n\n".join([head, *tables, f"left in all: {duration(sum(found.seconds(found.left)))} on this device"])


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of equally many cells as lines: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
