"""The metrics of a run as TensorBoard events, the same numbers as in metrics.jsonl."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError


def require_tensorboard() -> None:
    """Raise a UserError unless the package is installed and works."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard true needs the package tensorboard: pip install 'dsp-sparse[tensorboard]'")
    try:
        importlib.import_module("torch.utils.tensorboard")
    except Exception as error:  # a broken installation raises whatever its parts do that do not fit together
        reason = " ".join(str(error).split())
        raise UserError(
            f"tensorboard true needs a package tensorboard that can be imported, got {type(error).__name__}: {reason}"
        ) from error


class Events:
    """Writes the metrics of a run into a folder for TensorBoard. The step is the number of the epoch over all stages.

    Args:
        folder: where the event files go.
        done: epochs whose events stand; TensorBoard forgets those of later ones, which an interrupted run had written
            and now repeats.
    """

    def __init__(self, folder: Path, done: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def add(self, line: dict, step: int) -> None:
        """Write every number of a line of the metrics, and see it to the file."""
        for name, value in scalars(line):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def scalars(line: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of the metrics as (`losses/seg`, value); the place of an epoch is the step, no number."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and f"{prefix}{name}" not in ("stage", "epoch"):
            yield f"{prefix}{name}", value
