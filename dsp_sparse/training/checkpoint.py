"""Files of weights: the state of a training, the finished model, its reallocation modules."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..backbones import build_backbone
from ..backbones.base import TapBackbone
from ..errors import UserError
from ..files import atomic_path
from ..reallocation import CSFR, ISFR, MODULES
from ..tensor_files import read_tensors, unpack, write_tensors


@dataclass(kw_only=True)
class TrainingState:
    """Where a training stands between two steps.

    Args:
        stage: number of the stage.
        epoch: epochs of that stage that are done.
        net: state dict of the backbone.
        modules: state dicts of the reallocation modules, each as last trained.
        optimizer: state dict of the stage's optimiser; None before its first step.
        step: steps of the epoch after those that are done.
        sums: what these steps added up: the fields of a `Progress`.
        scaler: state dict of the gradient scaler, empty but in float16.
        world: how many processes train.
    """

    stage: int = 0
    epoch: int = 0
    net: dict[str, Any]
    modules: dict[str, dict] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    step: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    world: int = 1


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state of a training, atomically."""
    _save(path, "training", {f.name: getattr(state, f.name) for f in fields(state)})


def load_state(path: Path) -> TrainingState:
    """Read what `save_state` wrote. UserError: damaged, another file, or that of a version with other fields."""
    try:
        return TrainingState(**_load(path, "training"))
    except (UserError, TypeError) as error:
        problem = error if isinstance(error, UserError) else f"{path}: not the fields of a training ({error})"
        raise UserError(f"{problem}; put a whole copy in its place, or delete it to begin the run anew") from None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network and what must be known to use it on new clouds.

    Args:
        net: the backbone, without reallocation modules.
        backbone: its name in the registry.
        options: its settings.
        in_channels: its input channels.
        classes: names of its output channels.
        features: names of the measured features, and the raw value that stands for 1 in the network's input.
        coordinates: names of the three fields that coordinates are read from.
        grid: cell size of the grid its clouds are subsampled with, metres.
        radius: radius of its samples, metres.
        max_points: cap on the points of a sample.
    """

    net: TapBackbone
    backbone: str
    options: dict[str, Any]
    in_channels: int
    classes: list[str]
    features: dict[str, float]
    coordinates: list[str]
    grid: float
    radius: float
    max_points: int | None


def save_model(path: Path, model: Model) -> None:
    """Write a model, atomically: the backbone's weights and nothing of the method."""
    header = {f.name: getattr(model, f.name) for f in fields(model) if f.name != "net"}
    _save(path, "model", {**header, "net": model.net.state_dict()})


def load_model(path: str | Path, device: torch.device | str = "cpu", engine: str | None = None) -> Model:
    """Read a model, in eval mode.

    Args:
        path: a model file, or the run folder that holds `model.pt`.
        device: where the network goes.
        engine: engine of a MinkUNet; the one it was trained with by default.

    Raises:
        UserError: no such file, not a model or not all of one, or weights of another architecture than it says.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder, expected a finished run or its model.pt")
    if path.is_dir():
        path = path / "model.pt"
        if not path.exists():
            raise UserError(f"{path.parent}: not a finished run (no model.pt), expected one")
    content = _load(path, "model")
    expected, found = {f.name for f in fields(Model)}, content.keys()
    if found != expected:
        names = ", ".join(sorted(expected ^ found, key=str))
        raise UserError(f"{path}: not the fields of a model; missing or unknown: {names}")
    if engine:
        if "engine" not in content["options"]:
            raise UserError(f"engine is for a minkunet, got {engine} for {path}, a {content['backbone']}")
        content["options"]["engine"] = engine
    net = build_backbone(content["backbone"], content["in_channels"], len(content["classes"]), **content["options"])
    load_weights(net, content["net"], path)
    return Model(**{**content, "net": net.to(device).eval()})


def save_modules(path: Path, modules: dict[str, dict]) -> None:
    """Write the state dicts of reallocation modules by name, atomically."""
    _save(path, "modules", modules)


def load_modules(path: Path) -> dict[str, CSFR | ISFR]:
    """Read the reallocation modules of a run, by name (`csfr`, `isfr`). UserError: not such a file."""
    modules = {}
    for name, weights in _load(path, "modules").items():
        modules[name] = MODULES[name](len(weights["weight"]))
        load_weights(modules[name], weights, path)
    return modules


def load_weights(module: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load a state dict; a UserError naming the file and the first misfit if it is of another architecture."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        misfit = str(error).partition("\n")[2].strip().partition("\n")[0]
        raise UserError(f"{path}: weights of another architecture than {type(module).__name__}: {misfit}") from None


def _save(path: Path, kind: str, content: dict) -> None:
    with atomic_path(path) as temporary:
        write_tensors(temporary, {"format": f"dsp-sparse {kind} 1", "version": __version__, "content": content})


def _load(path: Path, kind: str) -> dict:
    return unpack(read_tensors(path, f"dsp-sparse {kind} file"), path, kind)
