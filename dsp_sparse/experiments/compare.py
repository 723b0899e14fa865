"""A matrix of training runs, {backbone × method × label rate × seed}, from one set of settings.

Where engines are compared, a minkunet run becomes one for each engine, and the weights that the first engine's run ends
with are evaluated under every one of them.
"""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import __version__
from ..backbones.engines import build_engine
from ..config import CompareConfig, TrainConfig
from ..distributed import pick_device
from ..errors import UserError
from ..files import atomic_path, locked, write_json
from ..training.loop import first_network, open_sources, train
from ..training.run import Run
from ..training.scores import read_scores
from ..training.stages import METHODS
from .evaluation import evaluate_run, evaluation_file
from .figures import plot_comparison
from .table import comparison_table


@dataclass(frozen=True)
class Cell:
    """One run of the matrix. `engine` is None where engines are not compared, `label_rate` where rates are not: then
    the labels are `label_points` a cloud or those of `label_mask`.
    """

    backbone: str
    method: str
    label_rate: float | None
    seed: int
    engine: str | None = None
    label_points: int | None = None
    label_mask: str | None = None

    @property
    def name(self) -> str:
        """The name of its run folder."""
        backbone = f"{self.backbone}-{self.engine}" if self.engine else self.backbone
        if self.label_rate is not None:
            labels = repr(self.label_rate)
        else:
            labels = "mask" if self.label_mask else f"{self.label_points}points"
        return f"{backbone}-{self.method}-{labels}-seed{self.seed}"

    @property
    def labels(self) -> dict:
        """What `results.json` says of it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def cells(config: CompareConfig) -> Iterator[Cell]:
    """The runs of a comparison: seeds vary slowest, so that an interrupted comparison is complete for some seeds."""
    data = config.train.data
    for seed in config.seeds:
        for label_rate in config.label_rates or (None,):
            for backbone in config.backbones:
                for method in config.methods:
                    for engine in (backbone == "minkunet" and config.engines) or (None,):
                        yield Cell(backbone, method, label_rate, seed, engine, data.label_points, data.label_mask)


def cell_config(config: CompareConfig, cell: Cell) -> TrainConfig:
    """The training settings of one run. A seed also draws its own weak labels, shared by all runs with that seed."""
    epochs, data = config.train.optim.epochs, replace(config.train.data, label_seed=cell.seed)
    if cell.label_rate is not None:
        data = replace(data, label_rate=cell.label_rate)
    if config.equal_updates:
        most = max(len(METHODS[m]) for m in config.methods)
        epochs = epochs * most // len(METHODS[cell.method])
    return replace(
        config.train,
        backbone=cell.backbone,
        method=cell.method,
        seed=cell.seed,
        data=data,
        optim=replace(config.train.optim, epochs=epochs),
        minkunet=replace(config.train.minkunet, engine=cell.engine or config.train.minkunet.engine),
    )


def compare(config: CompareConfig, out: str | Path) -> dict:
    """Run the matrix and write `results.json`, `table.md` and `figure.png` into `out`.

    What is wrong with the settings, the store, the engines, the weights to start from or the settings and results of a
    run folder is a `UserError` before anything is trained, and so is another comparison that is at work in the folder.
    A run that fails later is reported as failed, with its reason, and leaves the others alone; only a folder that
    cannot be written (`OSError`) stops the comparison. Finished runs are not repeated and an interrupted run resumes at
    its last checkpoint.

    Returns:
        What `results.json` holds: the settings and, run by run, the cell and its results or its error. Where engines
        are compared, `first_engine` holds the results or the error of the first engine's weights under this engine.
    """
    out = Path(out)
    plan = list(cells(config))
    outcomes = finished(config, plan, out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        for number, cell in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {cell.name}", flush=True)
            outcome = attempt(lambda cell=cell: train(cell_config(config, cell), run_folder(out, cell)))
            outcomes[cell] = outcome
            if cell.engine and "results" in outcomes[first := replace(cell, engine=config.engines[0])]:
                run = run_folder(out, first)
                outcome["first_engine"] = attempt(lambda cell=cell, run=run: under_engine(config, run, cell.engine))
            # Written after every run: an interrupted comparison shows what it has, and what it had before.
            runs = [{**cell.labels, **outcomes[cell]} for cell in plan if cell in outcomes]
            report = {"version": __version__, "config": asdict(config), "runs": runs}
            write_results(report, out)
    return report


def run_folder(out: Path, cell: Cell) -> Path:
    return out / "runs" / cell.name


def finished(config: CompareConfig, plan: list[Cell], out: Path) -> dict[Cell, dict]:
    """The runs that have results already. UserError: one of the others cannot be trained."""
    for engine in config.engines:
        build_engine(engine)
    pick_device(config.train.device)
    outcomes = {}
    for cell in plan:
        settings = cell_config(config, cell)
        run = Run(run_folder(out, cell), settings)
        results = run.results
        if results is None:
            first_network(settings, open_sources(settings).store, run)
        else:
            outcomes[cell] = {"results": results}
            if cell.engine:
                first = run_folder(out, replace(cell, engine=config.engines[0]))
                if known := evaluated(config, first, cell.engine):
                    outcomes[cell]["first_engine"] = {"results": known}
    return outcomes


def under_engine(config: CompareConfig, run: Path, engine: str) -> dict:
    """The results of a run's weights under an engine, from its folder if they are there."""
    return evaluated(config, run, engine) or evaluate_run(run, engine=engine)


def evaluated(config: CompareConfig, run: Path, engine: str) -> dict | None:
    """The evaluation in a run folder under an engine; None if there is none of the comparison's own test scenes."""
    file, data = evaluation_file(run, "basic", engine), config.train.data
    if not file.exists():
        return None
    results = read_scores(file)
    own = {"store": str(Path(data.store)), "groups": data.test_groups}
    return results if own.items() <= results.items() else None


def attempt(action: Callable[[], dict]) -> dict:
    """`{"results": …}` of what `action` returns, or `{"error": …}` if it fails."""
    try:
        return {"results": action()}
    except OSError:
        raise
    except UserError as error:
        print(f"failed: {error}", flush=True)
        return {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def write_results(report: dict, out: Path) -> None:
    """Write a comparison's `results.json`, `table.md` and, with matplotlib installed, `figure.png`."""
    write_json(out / "results.json", report)
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(comparison_table(report["runs"]))
    plot_comparison(report["runs"], out / "figure.png")
