"""What a report is about: the folder of a comparison or of one run, finished or not, read back."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from ...config import CompareConfig, TrainConfig
from ...errors import UserError
from ...settings import parse_config
from ...training.environment import read_environment
from ...training.run import load_config, read_metrics
from ...training.scores import read_scores
from ..evaluation import MODULE_OF_BRANCH, evaluation_file
from ..matrix import cells, run_folder
from ..table import labels_of, method_of

# What is beside the results of a run whose folder is gone.
NOTHING = {"folder": None, "config": None, "metrics": []}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a report is about.

    Args:
        folder: the folder.
        title: heading.
        version: version of the package that wrote the results; None where a run does not tell.
        written: when they were written last, UTC.
        runs: the runs, as a comparison's `results.json` has them; one without `results` and `error` is unfinished.
            Each has its `folder` beside, its settings as `config` (`TrainConfig`) and the lines of its `metrics`; None,
            None and none where the folder is not there, or has results of another training by now.
        comparison: settings of the comparison; None for a single run.
        paper: scores of the paper to stand beside one's own, `PaperScore` as dicts.
    """

    folder: Path
    title: str
    version: str | None
    written: datetime | None
    runs: list[dict]
    comparison: CompareConfig | None
    paper: list[dict]


def read_subject(folder: str | Path) -> Subject:
    """Read a comparison's or a run's folder.

    Raises:
        UserError: it is neither, or its files cannot be read.
    """
    folder = Path(folder)
    if (folder / "config.yaml").is_file():
        return _single(folder)
    if (folder / "results.json").is_file():
        return _comparison(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {found}, expected the folder of a run or of a comparison")
    raise UserError(
        f"{folder}: neither a run (no config.yaml) nor a comparison with a run that has ended (no results.json)"
    )


def name_of(run: dict) -> str:
    """What the report calls a run, without its seed."""
    engine = f" on {run['engine']}" if run.get("engine") else ""
    return f"{run['backbone']}{engine} {method_of(run)}, {labels_of(run)}"


def place_of(run: dict) -> str:
    """What runs whose methods are compared have in common: backbone and labels."""
    engine = f" on {run['engine']}" if run.get("engine") else ""
    return f"{run['backbone']}{engine}, {labels_of(run)} labelled"


def classes_of(runs: list[dict]) -> list[str]:
    """The class names of the first run that has results."""
    return next((list(run["results"]["iou"]) for run in runs if "results" in run), [])


def _single(folder: Path) -> Subject:
    config = load_config(folder)
    run = {"backbone": config.backbone, "method": config.method, "seed": config.seed}
    data = config.data
    if data.label_mask is not None:
        run["label_mask"] = data.label_mask
    elif data.label_points is not None:
        run["label_points"] = data.label_points
    else:
        run["label_rate"] = data.label_rate
    results = folder / "results.json"
    if results.exists():
        run["results"] = _scores(results)
        for branch in MODULE_OF_BRANCH:
            if (file := evaluation_file(folder, branch)).exists():
                run[branch] = {"results": _scores(file)}
    starts = read_environment(folder / "environment.json")
    return Subject(
        folder=folder,
        title=f"{name_of(run)} labelled, seed {config.seed}",
        version=starts[-1].get("version") if starts else None,
        written=_written(results),
        runs=[run | _remains(folder, config)],
        comparison=None,
        paper=[],
    )


def _scores(file: Path) -> dict:
    scores = read_scores(file)
    if not all(isinstance(scores.get(key), kind) for key, kind in (("iou", dict), ("confusion", list))):
        raise UserError(f"{file}: not readable as results (no iou or confusion)")
    return scores


def _comparison(folder: Path) -> Subject:
    file = folder / "results.json"
    try:
        report = json.loads(file.read_text())
        version, settings, ended = str(report["version"]), report["config"], list(report["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the results of a comparison ({type(error).__name__}: {error})") from None
    config = _parse(settings, file)
    runs = []
    for cell in cells(config):
        known = next(filter(cell.describes, ended), cell.labels)
        place = run_folder(config, folder, cell)
        same = "results" not in known or known["results"].get("confusion") == _confusion_in(place)
        runs.append(known | (_remains(place) if same else NOTHING))
    return Subject(
        folder=folder,
        title=config.title or f"Comparison {folder}",
        version=version,
        written=_written(file),
        runs=runs,
        comparison=config,
        paper=[asdict(score) for score in config.paper],
    )


def _parse(settings: dict, file: Path) -> CompareConfig:
    """The settings of a comparison; settings that are newer than its results have their defaults."""
    try:
        return parse_config(CompareConfig, settings)
    except UserError as error:
        raise UserError(f"{file}: not the settings of a comparison ({error})") from None


def _confusion_in(folder: Path) -> list | None:
    """What a run's points are taken for: the same as long as it is the same training, however often it is scored."""
    file = folder / "results.json"
    return read_scores(file).get("confusion") if file.is_file() else None


def _remains(folder: Path, config: TrainConfig | None = None) -> dict:
    """What a run folder has beside the results."""
    if not (folder / "config.yaml").is_file():
        return NOTHING
    metrics = read_metrics(folder / "metrics.jsonl")
    return {"folder": folder, "config": config or load_config(folder), "metrics": metrics}


def _written(file: Path) -> datetime | None:
    return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc) if file.exists() else None
