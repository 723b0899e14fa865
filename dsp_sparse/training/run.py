"""The run folder: settings, metrics, checkpoint, model and results of one training.

run/config.yaml      the settings, every one of them
run/metrics.jsonl    one line an epoch
run/checkpoint.pt    the state to resume from
run/model.pt         the backbone alone; what prediction needs
run/modules.pt       the reallocation modules as last trained
run/results.json     scores on the test scenes; written last
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from ..config import TrainConfig
from ..errors import UserError
from ..files import atomic_path, write_json
from .checkpoint import TrainingState, load_state, save_state
from .scores import read_scores


class Run:
    """A run folder that belongs to one set of settings. Nothing is written before `start`.

    Args:
        folder: the folder.
        config: the settings.

    Raises:
        UserError: the folder holds a checkpoint or results of other settings; the message names the first difference.
    """

    def __init__(self, folder: str | Path, config: TrainConfig):
        self.folder = Path(folder)
        self.model, self.modules = self.folder / "model.pt", self.folder / "modules.pt"
        self._config, self._metrics = self.folder / "config.yaml", self.folder / "metrics.jsonl"
        self.checkpoint, self._results = self.folder / "checkpoint.pt", self.folder / "results.json"
        self._settings = _plain(config)
        trained = self.checkpoint.exists() or self._results.exists()
        if trained and (difference := _difference(_plain(load_config(folder)), self._settings)):
            raise UserError(f"{self._config}: the run has {difference}; choose another folder")

    @property
    def results(self) -> dict | None:
        """The results of a finished run. UserError: a file that does not hold them."""
        return read_scores(self._results, "steps", "train_seconds") if self._results.exists() else None

    def finish(self, results: dict) -> None:
        """Write the results: the run is finished."""
        write_json(self._results, results)

    def save(self, state: TrainingState) -> None:
        """Write the checkpoint, atomically."""
        save_state(self.checkpoint, state)

    def start(self) -> TrainingState | None:
        """Write the settings, and return the checkpoint if there is one.

        Metrics of epochs after the checkpoint are forgotten: those epochs will be repeated.
        """
        state = load_state(self.checkpoint) if self.checkpoint.exists() else None
        done = state.stage * self._settings["optim"]["epochs"] + state.epoch if state else 0
        kept = self.metrics()[:done]
        with atomic_path(self._config) as temporary:
            temporary.write_text(yaml.safe_dump(self._settings, sort_keys=False))
        with atomic_path(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        return state

    def log(self, line: dict) -> None:
        """Append one line to the metrics."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict]:
        """The lines of the metrics so far; a last line that an interruption cut short does not count."""
        lines = self._metrics.read_text().split("\n")[:-1] if self._metrics.exists() else []
        return [json.loads(line) for line in lines]


def require_run(folder: str | Path) -> None:
    """Raise a UserError unless a run has begun in a folder."""
    if not (Path(folder) / "config.yaml").is_file():
        raise UserError(f"{folder}: no run to go on with (it would hold config.yaml)")


def load_config(folder: str | Path) -> TrainConfig:
    """The settings of a run folder; settings that are newer than the run have their defaults.

    Raises:
        UserError: none there, or settings this version does not know.
    """
    path = Path(folder) / "config.yaml"
    settings = _read_settings(path)
    try:
        return parse_config(settings)
    except UserError as error:
        raise UserError(f"{path}: not the settings of a run ({error})") from None


def parse_config(settings: dict) -> TrainConfig:
    """The settings that a dict holds. UserError: an unknown setting, or a value that a setting cannot have."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "run")
    try:
        return parser.instantiate(parser.parse_object({"run": settings})).run
    except Exception as error:  # jsonargparse lets the error of whatever value it met through
        raise UserError(str(error).strip().splitlines()[0]) from None


def _plain(config: TrainConfig) -> dict:
    """The settings as a YAML file holds them: tuples are lists."""
    return json.loads(json.dumps(asdict(config)))


def _read_settings(path: Path) -> dict:
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as the settings of a run ({type(error).__name__})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected the settings of a run, got {type(settings).__name__}")
    return settings


def _difference(old: Any, new: Any, key: str = "") -> str | None:
    """The first setting that differs, as `key old, not new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in new | old:
            if found := _difference(old.get(name), new.get(name), f"{key}.{name}" if key else name):
                return found
        return None
    return None if old == new else f"{key} {old!r}, not {new!r}"
