"""What a run was computed with: versions, source, devices, seeds."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..config import TrainConfig
from ..distributed import pick_device, world
from ..errors import UserError

SOURCE = Path(__file__).resolve().parents[2]
# Without the file a run that has no checkpoint yet would be taken for another program's.
REPLACE = "put a whole copy in its place, or write [] into it if a run wrote it"


def environment(config: TrainConfig) -> dict[str, str | int | None]:
    """The environment of a training that starts now in this process. Nothing in it names the machine or its user.

    Returns:
        `started` (UTC, ISO 8601), `command`, `version`, `source` (see `source_version`), `python`, `system`, `torch`,
        `numpy`, `cuda` (of torch's build) and `cudnn`, None where there is none; `device` and `cpu`, models by name;
        `threads` of a process and `processes` of the job; `seed` and `label_seed`.
    """
    device = pick_device(config.device)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "version": __version__,
        "source": source_version(SOURCE),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "processes": world(),
        "seed": config.seed,
        "label_seed": config.data.label_seed,
    }


def read_environment(path: Path) -> list[dict]:
    """The environments of a run folder's environment.json, one a start; none if there is no file.

    Raises:
        UserError: the file does not hold them.
    """
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as the environments of a run ({error}); {REPLACE}") from None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise UserError(f"{path}: expected a list of the environments of a run; {REPLACE}")
    return starts


def command_line() -> str:
    """The command that started this process, without the folders that its program lies in."""
    program = Path(sys.argv[0]).name
    start = ["python", "-m", "dsp_sparse"] if program == "__main__.py" else [program]
    return shlex.join([*start, *sys.argv[1:]])


def source_version(root: Path) -> str | None:
    """The commit that the package's sources stand at, `-dirty` if they were changed since.

    Args:
        root: folder of the package.

    Returns:
        What `git describe --always --dirty` says; None unless `root` is a git repository of its own with the project in
        it: an installed package may lie within a repository of something else.
    """
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    # Hooks of git set variables that would lead to the repository they run in.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_CEILING_DIRECTORIES": str(root.parent)}
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
