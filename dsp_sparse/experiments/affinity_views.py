"""Where the affinity of chosen points goes (paper Fig. 4), in the coordinates of the scenes' views."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kpconv_ops import nearest

from ..data import Sample, Scene, collate
from ..errors import UserError
from ..inference import evaluating
from .affinity import affinity_scores, tap_labels
from .trained import TrainedRun
from .views import ceiling_of, centre_of, colours_of, shown_rows


@dataclass(frozen=True, eq=False)
class AffinityView:
    """Where one point at the tap gathers its features from (paper Fig. 4).

    Coordinates are those of the `SceneView` of the scene that a point lies in.

    Args:
        module: `csfr` or `isfr`.
        label: class of the chosen point.
        classes: names of the classes.
        target_scene: name of the scene it lies in.
        point: `[3]` float32, the chosen point: the mean of the input points it stands for.
        target: `[n, 3]` float32, the input points of its ball.
        target_colours: `[n, 3]` uint8.
        target_labels: `[n]` int16.
        target_ceiling: `[n]` bool.
        source_scene: name of the scene that it attends to: a training scene for csfr, its own for isfr.
        source: `[m, 3]` float32, the tap points it attends to, each the mean of the input points it stands for
            (the nearest one, if it stands for none).
        affinity: `[m]` float32, how much it takes from each; sums to 1.
        source_colours: `[m, 3]` uint8, those of the input points nearest to them.
        source_labels: `[m]` int16, the most frequent of the input points they stand for.
        source_ceiling: `[m]` bool.
        context: `[k, 3]` float32, the input points of the ball that the source points stand for.
        context_colours: `[k, 3]` uint8.
        context_ceiling: `[k]` bool.
    """

    module: str
    label: int
    classes: list[str]
    target_scene: str
    point: np.ndarray
    target: np.ndarray
    target_colours: np.ndarray
    target_labels: np.ndarray
    target_ceiling: np.ndarray
    source_scene: str
    source: np.ndarray
    affinity: np.ndarray
    source_colours: np.ndarray
    source_labels: np.ndarray
    source_ceiling: np.ndarray
    context: np.ndarray
    context_colours: np.ndarray
    context_ceiling: np.ndarray

    @property
    def of_ceiling(self) -> bool:
        """Whether a look from above leaves out most points of the chosen point's class in the target."""
        own = self.target_ceiling[self.target_labels == self.label]
        return bool(own.size) and bool(own.mean() > 0.5)


def affinity_view(run: str | Path, scene: Scene, per_class: int = 1) -> list[AffinityView]:
    """Where the points of a ball of a scene attend to, through each module that a run trained.

    The ball is the one of the scene that shows most classes. Of each of its classes the tap points are chosen whose
    input points the network gives that class with most confidence. The source of CSFR is a ball of a training scene
    that has the class, in the scene with most points of it, around the point in their midst.

    Args:
        run: folder of a finished run.
        scene: a scene of its store.
        per_class: how many points to choose of each class.

    Returns:
        The views, by module, then by class, then most confident first; none of a run that trained no module.

    Raises:
        UserError: not a finished run, or its store is gone or does not fit the model.
    """
    if per_class < 1:
        raise UserError(f"per_class must be at least 1, got {per_class}")
    opened = TrainedRun.open(run)
    ball = richest_ball(opened, scene)
    labels = np.unique(ball.labels[ball.labels >= 0]).tolist()
    views = []
    for module in sorted(opened.modules):
        for label in labels:
            source = ball if module == "isfr" else partner_with(opened, label)
            if source is not None:
                views += _look(opened, module, ball, source, label, per_class)
    return views


def richest_ball(run: TrainedRun, scene: Scene, candidates: int = 200) -> Sample:
    """Of balls around points spread over a scene, the one with most classes; of equals that with most points."""
    rows = scene.index.starts[:-1]
    balls = (run.ball(scene, int(row)) for row in rows[shown_rows(len(rows), candidates)])
    return max(balls, key=lambda ball: (len(np.unique(ball.labels[ball.labels >= 0])), len(ball.labels)))


def partner_with(run: TrainedRun, label: int) -> Sample | None:
    """The ball that shows a class of the training scenes best; None where they do not have it."""
    scene = max(run.train_scenes, key=lambda scene: scene.class_counts[label])
    rows = np.flatnonzero(scene.labels == label)
    if not len(rows):
        return None
    points = scene.points[rows]
    return run.ball(scene, int(rows[((points - np.median(points, axis=0)) ** 2).sum(1).argmin()]))


def _look(run: TrainedRun, module: str, target: Sample, source: Sample, label: int, count: int) -> list[AffinityView]:
    """The views of the tap points of one class in `target` that are chosen."""
    net = run.model.net
    batch = collate([target, source]).to(next(net.parameters()).device)
    with evaluating(net):
        tap, state = net.encode(batch.input)
        sure = net.decode(tap.feat, state).softmax(1)[:, label]
    known = tap_labels(tap, batch.input, batch.labels)
    own, _ = nearest(batch.input.coord, batch.input.offsets, tap.coord, tap.offsets)
    sure = _means(sure[:, None], own, torch.zeros_like(tap.coord[:, :1]))[:, 0]
    nearby, _ = nearest(tap.coord, tap.offsets, batch.input.coord, batch.input.offsets)
    # On the surface, where a voxel's centre need not be.
    places = _means(batch.input.coord, own, batch.input.coord[nearby])
    candidates = (known[tap.rows(0)] == label).nonzero()[:, 0]
    chosen = candidates[sure[candidates].argsort(descending=True, stable=True)[:count]]
    affinity = affinity_scores(run.modules[module], tap, chosen).softmax(1).float().cpu().numpy()
    sample = 0 if module == "isfr" else 1
    nearby = nearby[tap.rows(sample)].cpu().numpy() - batch.input.rows(sample).start
    shown, where = _Ball.of(run, target), _Ball.of(run, (target, source)[sample])
    return [
        AffinityView(
            module=module,
            label=label,
            classes=run.store.classes,
            target_scene=shown.scene.name,
            point=shown.place(places[row]),
            target=shown.points,
            target_colours=shown.colours,
            target_labels=target.labels.astype(np.int16),
            target_ceiling=shown.ceiling,
            source_scene=where.scene.name,
            source=where.place(places[tap.rows(sample)]),
            affinity=weights,
            source_colours=where.colours[nearby],
            source_labels=known[tap.rows(sample)].cpu().numpy().astype(np.int16),
            source_ceiling=where.ceiling[nearby],
            context=where.points,
            context_colours=where.colours,
            context_ceiling=where.ceiling,
        )
        for row, weights in zip(chosen, affinity, strict=True)
    ]


def _means(values: Tensor, own: Tensor, otherwise: Tensor) -> Tensor:
    """The means `[M, F]` of the values `[N, F]` of the input points that each tap point stands for.

    `own` `[N]` is the tap point of each input point; one that no point has gets what `otherwise` `[M, F]` says.
    """
    counts = own.bincount(minlength=len(otherwise))[:, None]
    sums = torch.zeros_like(otherwise).index_add(0, own, values)
    return torch.where(counts > 0, sums / counts.clamp(min=1), otherwise)


@dataclass(frozen=True, eq=False)
class _Ball:
    """The input points of a sample as its scene's view has them, and the shift from the sample's coordinates to it."""

    scene: Scene
    points: np.ndarray
    colours: np.ndarray
    ceiling: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, run: TrainedRun, sample: Sample) -> "_Ball":
        scene, rows = run.store.scenes[sample.scene], sample.rows
        points = scene.points[rows] - centre_of(scene)
        colours, ceiling = colours_of(run.store, scene)[rows], ceiling_of(scene, run.store.classes)[rows]
        return cls(scene, points.astype(np.float32), colours, ceiling, points[0] - sample.coord[0])

    def place(self, coord: Tensor) -> np.ndarray:
        """Coordinates of the sample, `[..., 3]`, in the view."""
        return (coord.cpu().numpy() + self.shift).astype(np.float32)
