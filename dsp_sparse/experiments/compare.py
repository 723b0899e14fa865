"""A matrix of training runs, {backbone × method × label rate × seed}, from one set of settings."""

import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import __version__
from ..config import CompareConfig, TrainConfig
from ..errors import UserError
from ..files import atomic_path, write_json
from ..training.loop import train
from ..training.stages import METHODS
from .figures import plot_comparison
from .table import comparison_table


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    backbone: str
    method: str
    label_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.backbone}-{self.method}-{self.label_rate:g}-seed{self.seed}"


def cells(config: CompareConfig) -> Iterator[Cell]:
    """The runs of a comparison: seeds vary slowest, so that an interrupted comparison is complete for some seeds."""
    for seed in config.seeds:
        for label_rate in config.label_rates:
            for backbone in config.backbones:
                for method in config.methods:
                    yield Cell(backbone, method, label_rate, seed)


def cell_config(config: CompareConfig, cell: Cell) -> TrainConfig:
    """The training settings of one run. A seed also draws its own weak labels, shared by all methods and backbones."""
    epochs = config.train.optim.epochs
    if config.equal_updates:
        most = max(len(METHODS[m]) for m in config.methods)
        epochs = epochs * most // len(METHODS[cell.method])
    return replace(
        config.train,
        backbone=cell.backbone,
        method=cell.method,
        seed=cell.seed,
        data=replace(config.train.data, label_rate=cell.label_rate, label_seed=cell.seed),
        optim=replace(config.train.optim, epochs=epochs),
    )


def compare(config: CompareConfig, out: str | Path) -> dict:
    """Run the matrix and write `results.json`, `table.md` and `figure.png` into `out`.

    Finished runs are not repeated and an interrupted run resumes at its last checkpoint. A run that fails is
    reported as failed and leaves the others alone; bad input (`UserError`) or a folder that
    cannot be written (`OSError`) stops the comparison at once.

    Returns:
        What `results.json` holds: the settings and, run by run, the cell and its results or its error.
    """
    out = Path(out)
    plan = list(cells(config))
    runs = []
    for number, cell in enumerate(plan, 1):
        print(f"[{number}/{len(plan)}] {cell.name}", flush=True)
        runs.append({**asdict(cell), **run_cell(cell_config(config, cell), out / "runs" / cell.name)})
        # Written after every run: an interrupted comparison shows what it has.
        report = {"version": __version__, "config": asdict(config), "runs": runs}
        write_results(report, out)
    return report


def run_cell(config: TrainConfig, folder: Path) -> dict:
    """`{"results": …}` of one run, or `{"error": …}` if it failed."""
    try:
        return {"results": train(config, folder)}
    except (UserError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def write_results(report: dict, out: Path) -> None:
    """Write a comparison's `results.json`, `table.md` and, with matplotlib installed, `figure.png`."""
    write_json(out / "results.json", report)
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(comparison_table(report["runs"]))
    plot_comparison(report["runs"], out / "figure.png")
