"""The runs of a comparison, {backbone × method × label rate × seed}, and their settings and folders.

Where engines are compared, a minkunet run becomes one for each engine.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..config import CompareConfig, TrainConfig, Variant
from ..errors import UserError
from ..settings import parse_config
from ..training.stages import METHODS, STAGES
from .evaluation import MODULE_OF_BRANCH


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

    def describes(self, run: dict) -> bool:
        """Whether a run in `results.json` is this one: a variant is not a run of the method that it varies."""
        return all(run.get(key) == value for key, value in asdict(self).items())


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
        *sections, last = str(name).split(".")  # YAML takes some names for numbers
        section = settings
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        # A whole section would forget what `train` says of the rest of it.
        if not isinstance(section, dict) or last not in section or isinstance(section[last], dict):
            raise UserError(f"variants.{variant.name} sets {name}, expected a setting of a training such as loss.seg_c")
        section[last] = value
    try:
        found = parse_config(TrainConfig, settings)
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


def beside_no_run(config: CompareConfig) -> list[str]:
    """The scores of the paper that stand beside no run, for people: a comparison may be a part of the paper's table."""
    scored = set()
    for cell in cells(config):
        for branch in ("basic", *further(config, cell)):
            scored.add((cell.backbone, cell.variant or cell.method, cell.label_rate, branch))
    return [" ".join(map(str, score.scored)) for score in config.paper if score.scored not in scored]
