"""Where affinity lands: how much of what a point gathers comes from points of its own class.

Supervision propagates along affinity. It is worth something as far as a point attends to points of its own class
(paper Fig. 4), which is measured here on balls of the test scenes, before and after training, beside chance.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kpconv_ops import nearest

from .. import __version__
from ..backbones import load_pretrained
from ..backbones.base import TapBackbone
from ..data import Sample, Scene, SceneStore, collate
from ..errors import UserError
from ..files import write_json
from ..ragged import Ragged
from ..reallocation import CSFR, ISFR, MODULES
from ..training.loop import first_network
from ..training.run import Run, load_config
from .trained import TrainedRun

FILE = "affinity.json"
ROWS = 256  # affinity rows in memory at a time


def affinity_shares(run: str | Path, pairs: int = 64, seed: int = 0) -> dict:
    """The share of affinity mass that lands on points of the same class, before and after training.

    A tap point carries the most frequent label of the input points it stands for, see `tap_labels`; all labels of the
    store count, not the weak ones alone. For each pair a class is drawn, a test ball centred on a point of it and, as
    the partner, a training ball centred on another: so rare classes are measured, too. Each labelled tap point of the
    test ball is then a target. CSFR: its affinity to the partner's points. ISFR: to those of its own ball but itself,
    which would always be of the same class; what it keeps for itself is told apart. Affinity to unlabelled points is
    left out of the mass, and so are targets whose class no source point has: they have nothing to find.

    `before` is the network that the run began with and fresh modules, W = I/√K; it normalises with the statistics of
    the pair, as in the first step of a training. `after` is the trained network with each module as last trained;
    the first of two stages' modules meets a network that has moved on.

    The answer is kept in the run folder as `affinity.json`, for the weights and the store that it is of.

    Args:
        run: folder of a finished run.
        pairs: test balls, each with its partner.
        seed: seed of their choice.

    Returns:
        By module that the run trained (`csfr`, `isfr`): `before`, `after` and `chance`, the share of a uniform affinity
        on the same targets, each with the `mean` over targets and `by_class` (class name: mean, None without a target);
        `before` and `after` of isfr have also `self`, the mean affinity of a target to itself; `points`, the number of
        targets; `balls`. A mean over no target is None.

    Raises:
        UserError: not a finished run, a store that is gone or does not fit, or no class that both test and training
            scenes have.
    """
    run = Path(run)
    if pairs < 1:
        raise UserError(f"pairs must be at least 1, got {pairs}")
    settings = {"version": __version__, "pairs": pairs, "seed": seed, "inputs": _digest(run)}
    if (kept := _kept(run / FILE, settings)) is not None:
        return kept
    trained = TrainedRun.open(run)
    shares = {}
    if trained.modules:
        shares = _measure(trained, draw_pairs(trained, pairs, np.random.default_rng(seed)))
    write_json(run / FILE, {"settings": settings, "shares": shares})
    return shares


def _digest(run: Path) -> str:
    """SHA-256 of what a run has trained and of the manifest of its store, which has the checksums of all arrays."""
    digest = hashlib.sha256()
    for path in (run / "model.pt", run / "modules.pt"):
        try:
            digest.update(path.read_bytes())
        except OSError:
            raise UserError(f"{path}: cannot be read, expected the folder of a finished run") from None
    manifest = SceneStore.open(load_config(run).data.store).manifest
    digest.update(json.dumps(manifest, sort_keys=True).encode())
    return digest.hexdigest()


def _kept(path: Path, settings: dict) -> dict | None:
    """Shares measured earlier with the same settings, if they can be read."""
    try:
        content = json.loads(path.read_text())
        return content["shares"] if content["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def draw_pairs(run: TrainedRun, count: int, generator: np.random.Generator) -> list[tuple[Sample, Sample]]:
    """Pairs of a test ball and a training ball, each centred on a point of the class that was drawn for them."""
    sources = run.test_scenes, run.train_scenes
    classes = sorted(set.intersection(*map(_classes, sources)))
    if not classes:
        raise UserError(
            f"{run.store.path}: no class has a labelled point in both test and training scenes of {run.folder}"
        )
    pairs = []
    for _ in range(count):
        label = classes[generator.integers(len(classes))]
        pairs.append(tuple(run.ball(*_point(scenes, label, generator)) for scenes in sources))
    return pairs


def _classes(scenes: Sequence[Scene]) -> set[int]:
    """The classes of the grid points of scenes."""
    return {int(label) for scene in scenes for label in np.unique(scene.labels) if label >= 0}


def _point(scenes: Sequence[Scene], label: int, generator: np.random.Generator) -> tuple[Scene, int]:
    """A random point of a class, as (scene, row), in a random one of the scenes that have the class."""
    order = generator.permutation(len(scenes))
    scene, rows = next((scenes[i], rows) for i in order if len(rows := np.flatnonzero(scenes[i].labels == label)))
    return scene, int(rows[generator.integers(len(rows))])


def beginning(run: TrainedRun) -> TapBackbone:
    """The network that a run began with, in training mode."""
    net = first_network(run.config, run.store, Run(run.folder, run.config))
    if run.config.init is not None:
        load_pretrained(net, run.config.init, head=None)  # `first_network` leaves it out where there is a checkpoint
    return net.to(next(run.model.net.parameters()).device).train()


def tap_labels(tap: Ragged, batch: Ragged, labels: Tensor) -> Tensor:
    """What class the points at the tap are of, whatever the backbone.

    Every labelled input point votes for its nearest tap point.

    Args:
        tap: M points at the tap of a batch.
        batch: its N input points.
        labels: `[N]` int64, -1 on unlabelled points; on the same device.

    Returns:
        `[M]` int64: the label with most votes, of equally many the smallest; -1 without a vote.
    """
    known = labels >= 0
    found = torch.full((len(tap.coord),), -1, device=labels.device)
    if not known.any():
        return found
    below = torch.cat([known.new_zeros(1, dtype=torch.int64), known.cumsum(0)])
    offsets = below[batch.offsets]
    rows, _ = nearest(batch.coord[known], offsets, tap.coord, tap.offsets)
    votes = torch.zeros(len(found), int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
    votes.index_put_((rows, labels[known]), torch.ones_like(rows), accumulate=True)
    return torch.where(votes.any(1), votes.argmax(1), found)


def affinity_scores(module: CSFR | ISFR, tap: Ragged, points: Tensor) -> Tensor:
    """What `module.affinity_rows` takes the softmax of, for points of the first sample.

    Args:
        module: CSFR or ISFR.
        tap: the points at the tap; of a pair, whose second sample is the source of CSFR. ISFR's is the first.
        points: `[Q]` int64, rows of the first sample.

    Returns:
        `[Q, S]` float64: however much of the affinity one source takes, the others can still be compared.
    """
    source = tap.feat[tap.rows(0 if isinstance(module, ISFR) else 1)]
    return tap.feat[points].double() @ module.weight.double() @ source.double().T


def _measure(run: TrainedRun, pairs: list[tuple[Sample, Sample]]) -> dict:
    """The shares of all modules over all pairs."""
    net, classes = run.model.net, run.store.classes
    device = next(net.parameters()).device
    fresh = {name: MODULES[name](net.tap.channels).to(device) for name in run.modules}
    moments = {"before": (beginning(run), fresh), "after": (net, run.modules)}
    found: dict[str, dict[str, list[dict[str, Tensor]]]] = {name: {"before": [], "after": []} for name in run.modules}
    with torch.no_grad():
        for pair in tqdm(pairs, desc=f"affinity of {run.folder.name}", unit="pair", leave=False):
            batch = collate(pair).to(device)
            for moment, (network, modules) in moments.items():
                tap, _ = network.encode(batch.input)
                labels = tap_labels(tap, batch.input, batch.labels)
                for name, module in modules.items():
                    found[name][moment].append(_shares(module, tap, labels))
    shares = {}
    for name, by_moment in found.items():
        joined = {
            moment: {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
            for moment, parts in by_moment.items()
        }
        after = joined["after"]
        shares[name] = {
            **{moment: _summary(part["share"], part["label"], classes) for moment, part in joined.items()},
            "chance": _summary(after["chance"], after["label"], classes),
            "points": len(after["label"]),
            "balls": len(pairs),
        }
        if name == "isfr":
            for moment, part in joined.items():
                shares[name][moment]["self"] = _mean(part["self"])
    return shares


def _shares(module: CSFR | ISFR, tap: Ragged, labels: Tensor) -> dict[str, Tensor]:
    """Of every target of a pair's first ball: `label`, `share`, what `chance` would give, affinity to it`self`."""
    within = isinstance(module, ISFR)
    own, source = labels[tap.rows(0)], labels[tap.rows(0 if within else 1)]
    sources = source[source >= 0].bincount(minlength=int(labels.max()) + 1) - int(within)  # of each class
    targets = (own >= 0).nonzero()[:, 0]
    targets = targets[sources[own[targets]] > 0]
    shares, selves = [], []
    for rows in targets.split(ROWS):
        scores = affinity_scores(module, tap, rows)
        if within:
            itself = torch.arange(len(rows), device=rows.device), rows
            selves.append(scores.softmax(1)[itself])
            scores[itself] = -torch.inf
        affinity = scores.masked_fill_(source < 0, -torch.inf).softmax(1)
        shares.append((affinity * (source == own[rows, None])).sum(1))
    return {
        "label": own[targets],
        "share": torch.cat(shares),
        "chance": sources[own[targets]].double() / ((source >= 0).sum() - int(within)),
        "self": torch.cat(selves) if within else shares[0][:0],
    }


def _summary(values: Tensor, labels: Tensor, classes: list[str]) -> dict:
    return {
        "mean": _mean(values),
        "by_class": {name: _mean(values[labels == label]) for label, name in enumerate(classes)},
    }


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
