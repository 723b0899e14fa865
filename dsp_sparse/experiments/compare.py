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
from ..config import CompareConfig, TrainConfig, Variant
from ..distributed import pick_device
from ..errors import UserError
from ..files import atomic_path, locked, write_json
from ..training.loop import first_network, open_sources, train
from ..training.run import Run, parse_config
from ..training.scores import read_scores
from ..training.stages import METHODS, STAGES
from .evaluation import MODULE_OF_BRANCH, evaluate_run, evaluation_file
from .figures import plot_comparison
from .table import comparison_table


@dataclass(frozen=True)
class Cell:
    """One run of the matrix. `variant` names a method with other settings; `engine` is None where engines are not
    compared, `label_rate` where rates are not: then the labels are `label_points` a cloud or those of `label_mask`.
    """

    backbone: str
    method: str
    label_rate: float | None
    seed: int
    engine: str | None = None
    label_points: int | None = None
    label_mask: str | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """The name of its run folder."""
        backbone = f"{self.backbone}-{self.engine}" if self.engine else self.backbone
        if self.label_rate is not None:
            labels = repr(self.label_rate)
        else:
            labels = "mask" if self.label_mask else f"{self.label_points}points"
        return f"{backbone}-{self.variant or self.method}-{labels}-seed{self.seed}"

    @property
    def labels(self) -> dict:
        """What `results.json` says of it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def cells(config: CompareConfig) -> Iterator[Cell]:
    """The runs of a comparison: seeds vary slowest, so that an interrupted comparison is complete for some seeds."""
    data = config.train.data
    weak = [{"label_rate": rate} for rate in config.label_rates]
    if not weak:
        weak = [{"label_rate": None, "label_points": data.label_points, "label_mask": data.label_mask}]
    methods = [{"method": method} for method in config.methods]
    methods += [{"method": variant.method, "variant": variant.name} for variant in config.variants]
    rows = [row | method for row in weak for method in methods]
    rows += [{"label_rate": 1.0, "method": method} for method in config.full_supervision]
    for seed in config.seeds:
        for backbone in config.backbones:
            for row in rows:
                for engine in (backbone == "minkunet" and config.engines) or (None,):
                    yield Cell(backbone=backbone, seed=seed, engine=engine, **row)


def cell_config(config: CompareConfig, cell: Cell) -> TrainConfig:
    """The training settings of one run. A seed also draws its own weak labels, shared by all runs with that seed.

    Raises:
        UserError: a setting of a variant that there is not, or a value that it cannot have.
    """
    train, data = config.train, replace(config.train.data, label_seed=cell.seed)
    if cell.label_rate is not None:
        data = replace(data, label_rate=cell.label_rate, label_points=None, label_mask=None)
    train = replace(
        train,
        backbone=cell.backbone,
        method=cell.method,
        seed=cell.seed,
        data=data,
        minkunet=replace(train.minkunet, engine=cell.engine or train.minkunet.engine),
    )
    for variant in config.variants:
        if variant.name == cell.variant:
            train = changed(train, variant)
    if config.equal_updates and len(METHODS[cell.method]) == 1:
        train = replace(train, optim=replace(train.optim, epochs=2 * train.optim.epochs))
    return train


def changed(train: TrainConfig, variant: Variant) -> TrainConfig:
    """The settings with those of a variant. UserError: it changes the scenes or labels that all runs share."""
    settings = asdict(train)
    for name, value in variant.settings.items():
        *sections, last = name.split(".")
        section = settings
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise UserError(f"variants.{variant.name} sets {name}, expected a setting of a training such as loss.seg_c")
        section[last] = value
    try:
        found = parse_config(settings)
    except UserError as error:
        raise UserError(f"variants.{variant.name}: {error}") from None
    if _common(found) != _common(train):
        names = ", ".join(variant.settings)
        raise UserError(f"variants.{variant.name} sets {names}, expected the scenes and labels of all other runs")
    return found


def _common(train: TrainConfig) -> tuple:
    """What runs must share to be compared in pairs."""
    data = train.data
    return data.store, data.train_groups, data.test_groups, data.labelling, train.seed, train.backbone, train.method


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
    outcomes = finished(config, plan, out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        for number, cell in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {cell.name}", flush=True)
            before = outcomes.get(cell, {})
            outcome = dict(before) or attempt(train, cell_config(config, cell), run_folder(config, out, cell))
            outcomes[cell] = outcome
            for name, (source, branch, engine) in further(config, cell).items():
                if name not in outcome and "results" in outcomes[source]:
                    outcome[name] = attempt(evaluation, config, run_folder(config, out, source), branch, engine)
            # Written after every new run: an interrupted comparison shows what it has, and what it had before.
            if outcome != before or number == len(plan):
                runs = [{**cell.labels, **outcomes[cell]} for cell in plan if cell in outcomes]
                report = {"version": __version__, "config": asdict(config), "runs": runs}
                write_results(report, out)
    return report


def run_folder(config: CompareConfig, out: Path, cell: Cell) -> Path:
    """Where a run of a comparison in the folder `out` stands."""
    return Path(config.runs or out / "runs") / cell.name


def further(config: CompareConfig, cell: Cell) -> dict[str, tuple[Cell, str, str | None]]:
    """What is evaluated beside a run, by name: whose weights, which branch, on which engine.

    `cross` and `intra` are the branches whose modules the run trained; `first_engine` is where engines are compared.
    """
    trained = {module for stage in METHODS[cell.method] for module in STAGES[stage]}
    found = {branch: (cell, branch, None) for branch in config.branches if MODULE_OF_BRANCH[branch] in trained}
    if cell.engine:
        found["first_engine"] = (replace(cell, engine=config.engines[0]), "basic", cell.engine)
    return found


def finished(config: CompareConfig, plan: list[Cell], out: Path) -> dict[Cell, dict]:
    """The runs that have results already. UserError: one of the others cannot be trained."""
    for engine in config.engines:
        build_engine(engine)
    pick_device(config.train.device)
    outcomes = {}
    for cell in plan:
        settings = cell_config(config, cell)
        run = Run(run_folder(config, out, cell), settings)
        results = run.results
        if results is None:
            first_network(settings, open_sources(settings).store, run)
        else:
            outcomes[cell] = {"results": results}
            for name, (source, branch, engine) in further(config, cell).items():
                if known := evaluated(config, run_folder(config, out, source), branch, engine):
                    outcomes[cell][name] = {"results": known}
    return outcomes


def evaluation(config: CompareConfig, run: Path, branch: str, engine: str | None) -> dict:
    """An evaluation, from the run folder if it is there."""
    return evaluated(config, run, branch, engine) or evaluate_run(run, branch=branch, engine=engine)


def evaluated(config: CompareConfig, run: Path, branch: str, engine: str | None) -> dict | None:
    """An evaluation in a run folder; None if there is none of the comparison's own test scenes."""
    file, data = evaluation_file(run, branch, engine), config.train.data
    if not file.exists():
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
        temporary.write_text(comparison_table(report["runs"], report["config"]["paper"]))
    plot_comparison(report["runs"], out / "figure.png")
