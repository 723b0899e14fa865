"""A comparison: every run of its matrix is trained and evaluated, from one set of settings.

Where engines are compared, the weights that the first engine's run ends with are evaluated under every one of them.
"""

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from .. import __version__
from ..backbones.engines import build_engine
from ..config import CompareConfig
from ..data import SceneStore
from ..distributed import pick_device
from ..errors import UserError
from ..files import atomic_path, locked, write_json
from ..training.loop import first_network, open_sources, train
from ..training.run import Run, plain
from ..training.scores import read_scores
from .evaluation import evaluate_run, evaluation_file
from .figures import plot_comparison
from .matrix import Cell, beside_no_run, cell_config, cells, further, run_folder
from .table import comparison_table


def compare(config: CompareConfig, out: str | Path) -> dict:
    """Run the matrix and write `results.json`, `table.md` and `figure.png` into `out`.

    What is wrong with the settings, the store, the engines, the weights to start from or the settings and results of a
    run folder is a `UserError` before anything is trained, and so is another comparison that is at work in the folder.
    A run that fails later is reported as failed, with its reason, and leaves the others alone; only a folder that
    cannot be written (`OSError`) stops the comparison. Finished runs are not repeated and an interrupted run resumes at
    its last checkpoint.

    Returns:
        What `results.json` holds: the settings and, run by run, the cell and its results or its error. The results or
        the error of what is evaluated beside a run stand under its name (see `further`).
    """
    out = Path(out)
    plan = list(cells(config))
    outcomes = known_outcomes(config, plan, out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if others := beside_no_run(config):
            print(f"paper: no run here is of {', '.join(others)}", flush=True)
        for number, cell in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {cell.name}", flush=True)
            before = outcomes[cell]
            known = {name: value for name, value in before.items() if name not in errors_of(before)}
            outcome = known or attempt(train, cell_config(config, cell), run_folder(config, out, cell))
            outcomes[cell] = outcome
            for name, (source, branch, engine) in further(config, cell).items():
                if name not in outcome and "results" in outcomes[source]:
                    outcome[name] = attempt(evaluation, config, run_folder(config, out, source), branch, engine)
            # Written after every new run: an interrupted comparison shows what it has, and what it had before.
            if outcome != before or number == len(plan):
                runs = [{**cell.labels, **outcomes[cell]} for cell in plan if outcomes[cell]]
                report = {"version": __version__, "config": asdict(config), "runs": runs}
                write_results(report, out)
    return report


def known_outcomes(config: CompareConfig, plan: list[Cell], out: Path) -> dict[Cell, dict]:
    """What is known of the runs: the results that there are, and the errors that an earlier call ended with.

    Raises:
        UserError: a run without results cannot be trained, the paper's classes are not those of its store, or
            the folder has results of something else.
    """
    require_machine(config)
    failed = earlier_errors(config, plan, out / "results.json")
    outcomes = {}
    for cell in tqdm(plan, desc="checking", unit="run", delay=2, leave=False):
        settings = cell_config(config, cell)
        run = Run(run_folder(config, out, cell), settings)
        known, results = {}, run.results
        if results is None:
            store = open_sources(settings).store
            require_classes(config, store)
            first_network(settings, store, run)
        else:
            known["results"] = results
            for name, (source, branch, engine) in further(config, cell).items():
                if scores := evaluated(config, run_folder(config, out, source), branch, engine):
                    known[name] = {"results": scores}
            failed[cell].pop("error", None)
        outcomes[cell] = failed[cell] | known
    return outcomes


def require_machine(config: CompareConfig) -> None:
    """Raise a UserError unless the engines and the device of a comparison are there."""
    for engine in config.engines:
        build_engine(engine)
    pick_device(config.train.device)


def require_classes(config: CompareConfig, store: SceneStore) -> None:
    """Raise a UserError unless the classes of the paper's scores are those of a store."""
    for number, score in enumerate(config.paper, 1):
        for name in score.iou:
            if name not in store.classes:
                raise UserError(
                    f"paper.{number}.iou has the class {name}, expected those of {store.path}: "
                    f"{', '.join(store.classes)}"
                )


def earlier_errors(config: CompareConfig, plan: list[Cell], file: Path) -> dict[Cell, dict]:
    """What the last report on these settings says of failures, run by run: it is told until it is tried again.

    Raises:
        UserError: the file of results is one that a comparison did not write: it would be lost.
    """
    nothing = {cell: {} for cell in plan}
    try:
        report = json.loads(file.read_text())
    except (OSError, ValueError):  # none yet, or a spoiled one
        return nothing
    if not (isinstance(report, dict) and "runs" in report):
        raise UserError(f"{file}: not the results of a comparison; choose another folder")
    try:
        runs = report["runs"] if report["config"]["train"] == plain(config.train) else []
        return {cell: errors_of(next(filter(cell.describes, runs), {})) for cell in plan}
    except (KeyError, TypeError, AttributeError):  # spoiled within
        return nothing


def errors_of(outcome: dict) -> dict:
    """The part of an outcome that says what failed: of the run itself, and of what is evaluated beside it."""
    return {k: v for k, v in outcome.items() if k == "error" or (isinstance(v, dict) and "error" in v)}


def evaluation(config: CompareConfig, run: Path, branch: str, engine: str | None) -> dict:
    """An evaluation, from the run folder if it is there."""
    return evaluated(config, run, branch, engine) or evaluate_run(run, branch=branch, engine=engine)


def evaluated(config: CompareConfig, run: Path, branch: str, engine: str | None) -> dict | None:
    """An evaluation in the folder of a finished run; None if there is none of the comparison's own test scenes."""
    file, data = evaluation_file(run, branch, engine), config.train.data
    if not file.exists() or not (run / "results.json").exists():  # other weights may be on their way
        return None
    results = read_scores(file)
    own = {"store": str(Path(data.store)), "groups": data.test_groups}
    return results if own.items() <= results.items() else None


def attempt(action: Callable[..., dict], *arguments) -> dict:
    """`{"results": …}` of what `action(*arguments)` returns, or `{"error": …}` if it fails."""
    try:
        return {"results": action(*arguments)}
    except OSError:
        raise
    except (UserError, FloatingPointError) as error:  # bad input, or a training that diverged
        print(f"failed: {error}", flush=True)
        return {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def write_results(report: dict, out: Path) -> None:
    """Write a comparison's `results.json`, `table.md` and, with matplotlib installed, `figure.png`."""
    write_json(out / "results.json", report)
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(comparison_table(report["runs"], report["config"]["paper"]))
    plot_comparison(report["runs"], out / "figure.png")
