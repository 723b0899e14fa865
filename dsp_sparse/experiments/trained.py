"""A finished run, opened to look into."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import TrainConfig
from ..data import Sample, Scene, SceneStore, make_sample, split
from ..data.balls import rows_within
from ..distributed import pick_device
from ..errors import UserError
from ..reallocation import CSFR, ISFR
from ..training.checkpoint import Model, load_model, load_modules
from ..training.run import load_config


@dataclass(frozen=True)
class TrainedRun:
    """What a finished run left, and the scenes it knows.

    Args:
        folder: its folder.
        config: its settings.
        model: the trained network, on the run's device, in eval mode.
        modules: its reallocation modules without gradients, each as last trained, by name (`csfr`, `isfr`).
        store: its scene store.
        train_scenes: what it was trained on.
        test_scenes: what it is tested on.
    """

    folder: Path
    config: TrainConfig
    model: Model
    modules: dict[str, CSFR | ISFR]
    store: SceneStore
    train_scenes: list[Scene]
    test_scenes: list[Scene]

    @classmethod
    def open(cls, folder: str | Path) -> "TrainedRun":
        """Open a run folder. UserError: not a finished run, or its store is gone or does not fit the model."""
        folder = Path(folder)
        config = load_config(folder)
        device = pick_device(config.device)
        model, modules = load_model(folder, device), load_modules(folder / "modules.pt")
        modules = {name: module.to(device).requires_grad_(False) for name, module in modules.items()}
        store = SceneStore.open(config.data.store)
        require_fit(store, model, folder)
        return cls(folder, config, model, modules, store, *split(store, config.data))

    def ball(self, scene: Scene, row: int) -> Sample:
        """The ball that this run cuts around a point of a scene, with the scene's own labels and no augmentation."""
        centre = scene.points[row].astype(np.float64)
        rows = rows_within(scene, centre, self.config.data.radius, self.config.data.max_points)
        return make_sample(scene, scene.labels, centre, rows, scene.number)


def require_fit(store: SceneStore, model: Model, run: Path) -> None:
    """Raise a UserError unless the store has the classes, features and grid of a run's model."""
    for name in ("classes", "features"):
        expected, found = getattr(model, name), getattr(store, name)
        if expected != found:
            raise UserError(f"{store.path}: the store has {name} {found}, the model in {run} expects {expected}")
    store.require_grid(model.grid)
