"""What pictures show of a scene: its points, what runs predict of them, and what hides the rest from above."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data import Scene, SceneStore
from ..distributed import pick_device
from ..inference import BasicBranch, Voting, predict_probabilities
from ..palette import palette
from ..training.checkpoint import load_model
from ..training.run import load_config
from .trained import require_fit

GREY = 160
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, eq=False)
class SceneView:
    """The n grid points of a scene, or as many of them as are shown, and what runs say of them.

    Args:
        name: of the scene.
        points: `[n, 3]` float32, metres; see `centre_of` for the origin.
        colours: `[n, 3]` uint8 red green blue; grey where the store has no colour.
        labels: `[n]` int16, -1 where there is none.
        ceiling: `[n]` bool, what hides the rest from a viewer above, see `ceiling_of`.
        predictions: by run `[n]` int16.
        confidence: by run `[n]` float32, the probability of what it predicts.
        classes: names of the C classes.
        palette: `[C, 3]` uint8, their colours.
    """

    name: str
    points: np.ndarray
    colours: np.ndarray
    labels: np.ndarray
    ceiling: np.ndarray
    predictions: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]
    classes: list[str]
    palette: np.ndarray


def scene_view(runs: Mapping[str, str | Path], store: SceneStore, scene: Scene, max_points: int = 60_000) -> SceneView:
    """A scene as several runs see it.

    Every run predicts all grid points, with its own votes. Of more than `max_points` an evenly spread part is shown,
    always the same.

    Args:
        runs: folders of finished runs, by the name that their predictions get; none is fine.
        store: the store of the scene.
        scene: the scene.
        max_points: most points to show.

    Raises:
        UserError: not a finished run, or a store that does not fit its model.
    """
    rows = shown_rows(scene.num_points, max_points)
    predictions, confidence = {}, {}
    for name, folder in runs.items():
        config = load_config(folder)
        model = load_model(folder, pick_device(config.device))
        require_fit(store, model, Path(folder))
        voting = Voting(radius=model.radius, max_points=model.max_points, **asdict(config.eval))
        with tqdm(
            total=scene.num_points, desc=f"{scene.name}: {name}", unit="point", unit_scale=True, leave=False
        ) as bar:
            likely, label = predict_probabilities(BasicBranch(model.net), scene, voting, scene.number, bar).max(1)
        predictions[name] = label.numpy()[rows].astype(np.int16)
        confidence[name] = likely.numpy()[rows]
    return SceneView(
        name=scene.name,
        points=(scene.points[rows] - centre_of(scene)).astype(np.float32),
        colours=colours_of(store, scene)[rows],
        labels=scene.labels[rows],
        ceiling=ceiling_of(scene, store.classes)[rows],
        predictions=predictions,
        confidence=confidence,
        classes=store.classes,
        palette=palette(len(store.classes)),
    )


def shown_rows(count: int, limit: int) -> np.ndarray:
    """`limit` of `count` rows, all if there are not more; random, so that they are evenly spread, but ever the same."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


def centre_of(scene: Scene) -> np.ndarray:
    """`[3]` float64, the middle of a scene's bounding box: the origin of its views."""
    return (scene.points.min(0).astype(np.float64) + scene.points.max(0)) / 2


def colours_of(store: SceneStore, scene: Scene) -> np.ndarray:
    """`[n, 3]` uint8, the colours of a scene's grid points; grey where the store has none."""
    names = list(store.features)
    if not set(COLOURS) <= set(names):
        return np.full((scene.num_points, 3), GREY, np.uint8)
    return (scene.features[:, [names.index(name) for name in COLOURS]] * 255).round().clip(0, 255).astype(np.uint8)


def ceiling_of(scene: Scene, classes: list[str]) -> np.ndarray:
    """`[n]` bool, the points to leave out for a look into a scene from above.

    They are those of the class `ceiling`. Where no point has it, the upper tenth of the scene's height, if that covers
    most of its ground: so an unlabelled ceiling is found, and open scenes keep their tops.
    """
    if "ceiling" in classes and (found := scene.labels == classes.index("ceiling")).any():
        return found
    points = scene.points
    low, high = points.min(0), points.max(0)
    upper = points[:, 2] > high[2] - 0.1 * (high[2] - low[2])
    columns = ((points[:, :2] - low[:2]) / (5 * scene.grid)).astype(np.int64)
    columns = columns[:, 0] * (columns[:, 1].max() + 1) + columns[:, 1]
    covered = len(np.unique(columns[upper])) / len(np.unique(columns))
    return upper if covered > 0.5 else np.zeros(len(points), bool)
