"""Scores in a run folder, read back."""

import json
from pathlib import Path

from ..errors import UserError

SCORES = ("miou", "overall_accuracy", "mean_accuracy")  # None where there was nothing to score


def read_scores(path: Path, *numbers: str) -> dict:
    """Read what `inference.evaluate` returned, with more numbers if `numbers` names them.

    Raises:
        UserError: the file does not hold them.
    """
    try:
        scores = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(scores, dict):
        raise _unreadable(path, f"a {type(scores).__name__}")
    for name in (*SCORES, "seconds", *numbers):
        value = scores.get(name, "nothing")
        if not isinstance(value, int | float) and not (value is None and name in SCORES):
            raise _unreadable(path, f"{name} is {value!r}")
    return scores


def _unreadable(path: Path, reason: object) -> UserError:
    return UserError(f"{path}: not readable as results ({reason}); delete it to evaluate again, if a run wrote it")
