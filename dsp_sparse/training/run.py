"""The run folder: settings, metrics, checkpoint, model and results of one training.

run/config.yaml      the settings, every one of them
run/environment.json what it was computed with, one entry a start
run/metrics.jsonl    one line an epoch
run/tensorboard/     the same for TensorBoard, if the settings ask for it
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

from ..config import TrainConfig
from ..distributed import rank, world
from ..errors import UserError
from ..files import append_line, atomic_path, remove_leftovers, write_json
from ..settings import parse_config, read_settings
from .checkpoint import TrainingState, load_state, save_state
from .environment import environment, read_environment
from .scores import read_scores
from .tensorboard import Events, require_tensorboard

# What a run may go on with otherwise than it began: its numbers do not depend on it.
FREE = ("data.workers", "optim.checkpoint_every", "tensorboard")

# What to do where metrics of epochs that are done are lost, for which a run would end with wrong sums.
REPLACE = "put a whole copy in its place, or choose another folder"


class Run:
    """A run folder that belongs to one set of settings. Nothing is written before `start`, and by rank 0 alone.

    Args:
        folder: the folder.
        config: the settings.
        resume: refuse to begin a run.

    Raises:
        UserError: the folder holds a run of other settings, the message names the first difference (without `resume` a
            run that has no checkpoint yet gives way), or files that no run wrote and a start would replace; there is no
            run to resume; or a package is missing.
    """

    def __init__(self, folder: str | Path, config: TrainConfig, resume: bool = False):
        self.folder = Path(folder)
        self.model, self.modules = self.folder / "model.pt", self.folder / "modules.pt"
        self._settings_file, self._metrics = self.folder / "config.yaml", self.folder / "metrics.jsonl"
        self.checkpoint, self._results = self.folder / "checkpoint.pt", self.folder / "results.json"
        self._environment = self.folder / "environment.json"
        self._config, self._settings, self._resume = config, plain(config), resume
        self._events: Events | None = None
        if resume and not self._settings_file.is_file():
            raise UserError(f"{folder}: no run to go on with (it would hold config.yaml)")
        self._replaces()
        if config.tensorboard and not self._results.exists():
            require_tensorboard()

    def _replaces(self) -> bool:
        """Whether the folder has a run of other settings, which gives way to this one.

        Raises:
            UserError: it does not give way, or there are files that no run wrote and a start would replace.
        """
        trained = self.checkpoint.exists() or self._results.exists()
        found = [path for path in (self._settings_file, self._metrics, *self._measured()) if path.exists()]
        if not trained and found and not self._environment.exists():
            raise UserError(f"{found[0]}: no run wrote it, it would be lost; choose another folder")
        if not trained and not self._settings_file.exists():
            return False
        difference = _difference(plain(load_config(self.folder)), self._settings)
        if difference and (trained or self._resume):
            raise UserError(f"{self._settings_file}: the run has {difference}; choose another folder")
        return difference is not None

    def _measured(self) -> list[Path]:
        """What there may be of a training that was finished, and of what was measured on its weights."""
        return [self.model, self.modules, *self.folder.glob("evaluation-*.json")]

    @property
    def results(self) -> dict | None:
        """The results of a finished run. UserError: a file that does not hold them."""
        return read_scores(self._results, "steps", "train_seconds") if self._results.exists() else None

    def finish(self, results: dict) -> None:
        """Write the results: the run is finished."""
        if self._events is not None:
            self._events.close()
        if rank() == 0:
            write_json(self._results, results)

    def save(self, state: TrainingState) -> None:
        """Write the checkpoint, atomically. OSError: it cannot be written; the checkpoint before it is whole."""
        if rank() == 0:
            save_state(self.checkpoint, state)

    def start(self) -> TrainingState | None:
        """Write the settings and the environment, and return the checkpoint if there is one. The folder is held.

        Metrics of epochs after the checkpoint are forgotten: those epochs will be repeated. So is what a killed process
        was just writing and, without a checkpoint, whatever was measured on the weights of an earlier training.

        Raises:
            UserError: a file of the run is not what the run wrote, another number of processes wrote it, or a training
                of other settings had the folder in the meantime.
        """
        state = load_state(self.checkpoint) if self.checkpoint.exists() else None
        if state is not None and state.world != world():
            raise UserError(
                f"{self.checkpoint}: {state.world} processes trained it, got {world()}; go on with torchrun "
                f"--nproc-per-node {state.world}, or choose another folder"
            )
        if rank() > 0:
            return state
        place = (state.stage, state.epoch) if state else (0, 0)
        kept = [line for line in self.metrics() if (line["stage"], line["epoch"] - 1) < place] if state else []
        if len(kept) != (done := self._epochs_before(*place)):
            raise UserError(
                f"{self._metrics}: has {len(kept)} of the {done} epochs of {self.checkpoint.name}; {REPLACE}"
            )
        starts = [] if self._replaces() else read_environment(self._environment)
        for path in (self._settings_file, self._environment, self._metrics, self.checkpoint, self.model, self.modules):
            remove_leftovers(self.folder, path.name)
        remove_leftovers(self.folder, self._results.name)
        if state is None:
            for path in self._measured():
                path.unlink(missing_ok=True)
        write_json(self._environment, [*starts, environment(self._config)])  # first: it shows that a run wrote the rest
        with atomic_path(self._settings_file) as temporary:
            temporary.write_text(yaml.safe_dump(self._settings, sort_keys=False))
        with atomic_path(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        if self._config.tensorboard:
            self._events = Events(self.folder / "tensorboard", self._epochs_before(*place))
        return state

    def log(self, line: dict) -> None:
        """Append the line of an epoch to the metrics, and to the events of TensorBoard if there are any."""
        if rank() > 0:
            return
        append_line(self._metrics, json.dumps(line))
        if self._events is not None:
            self._events.add(line, self._epochs_before(line["stage"], line["epoch"]))

    def metrics(self) -> list[dict]:
        """The lines of the metrics so far; see `read_metrics`."""
        return read_metrics(self._metrics)

    def _epochs_before(self, stage: int, epoch: int) -> int:
        """How many epochs are done, over all stages, when `epoch` ones of a stage are."""
        return stage * self._settings["optim"]["epochs"] + epoch


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run's metrics, none if there is no file. A last line that an interruption spoiled does not count.

    Raises:
        UserError: a line is not that of an epoch; the message says which.
    """
    *lines, rest = path.read_text(errors="replace").split("\n") if path.exists() else [""]
    metrics = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            line["stage"], line["epoch"], line["losses"], line["seconds"]["total"]  # what no run can do without
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and not rest:
                break
            raise UserError(f"{path}: line {number} is not the line of an epoch; {REPLACE}") from None
        metrics.append(line)
    return metrics


def load_config(folder: str | Path) -> TrainConfig:
    """The settings of a run folder; settings that are newer than the run have their defaults.

    Raises:
        UserError: none there, or settings this version does not know.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not the folder of a run (no config.yaml), expected one that a training wrote")
    settings = read_settings(path)
    try:
        return parse_config(TrainConfig, settings)
    except UserError as error:
        raise UserError(f"{path}: not the settings of a run ({error})") from None


def plain(config: TrainConfig) -> dict:
    """The settings as a YAML file holds them: tuples are lists."""
    return json.loads(json.dumps(asdict(config)))


def _difference(old: Any, new: Any, key: str = "") -> str | None:
    """The first setting that differs, as `key old, not new`; those that a run is free to change do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in new | old:
            inner = f"{key}.{name}" if key else name
            if inner not in FREE and (found := _difference(old.get(name), new.get(name), inner)):
                return found
        return None
    return None if old == new else f"{key} {old!r}, not {new!r}"
