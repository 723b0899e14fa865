"""Scores of a finished run, on its own test scenes or on others."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..backbones.base import TapBackbone
from ..config import TrainConfig
from ..data import SceneStore, split
from ..data.loader import train_groups
from ..data.store import require_labels
from ..distributed import pick_device, rank, together
from ..errors import UserError
from ..files import require_writable, write_json
from ..inference import BasicBranch, CrossBranch, IntraBranch, Voting, evaluate
from ..reallocation import CSFR, ISFR
from ..training.checkpoint import load_model, load_modules
from ..training.run import load_config
from .trained import require_fit

MODULE_OF_BRANCH = {"cross": "csfr", "intra": "isfr"}


def evaluate_run(
    run: str | Path,
    store: str | Path | None = None,
    groups: Sequence[str] | None = None,
    branch: str = "basic",
    engine: str | None = None,
    votes: int | None = None,
    rotations: int | None = None,
) -> dict:
    """Evaluate a run and write the scores into its folder, see `evaluation_file`.

    After `distributed.join` the ranks share the scenes, and rank 0 writes.

    Args:
        run: run folder.
        store: scene store; the run's own by default.
        groups: scene groups; the run's test groups by default.
        branch: `basic` is the backbone alone; `cross` and `intra` decode features that the run's csfr or isfr module
            reallocated (paper Table 3).
        engine: engine of a minkunet run; the one it was trained with by default.
        votes: how often every point is seen at least; the run's `eval.votes` by default.
        rotations: angles that every ball is shown at; the run's `eval.rotations` by default.

    Returns:
        What `inference.evaluate` returns, and the `branch`, the `store`, the `groups` and which of them the
        run was `trained_on`, the `votes`, the `rotations` and the `file` it was written to.

    Raises:
        UserError: not a run, a store that does not fit the model, groups without a label, a branch whose module the run
            never trained, or an engine that is missing.
    """
    run = Path(run)
    with together():
        config = load_config(run)
        require_writable("run", run, folder=True)
        chosen = {name: value for name, value in (("votes", votes), ("rotations", rotations)) if value is not None}
        settings = replace(config.eval, **chosen)
        model = load_model(run, pick_device(config.device), engine)
        opened = SceneStore.open(store or config.data.store)
        require_fit(opened, model, run)
        groups = list(config.data.test_groups if groups is None else groups)
        scenes = opened.group(groups)
        require_labels(scenes, f"{opened.path}: groups {groups}")
        voting = Voting(radius=model.radius, max_points=model.max_points, **asdict(settings))
        decoder = decoder_of(branch, model.net, trained_module(branch, run, config), config, voting)
    others = {name: value for name, value in chosen.items() if value != getattr(config.eval, name)}
    elsewhere = opened.path.resolve() != Path(config.data.store).resolve()
    trained = [] if elsewhere else train_groups(opened, config.data)
    if elsewhere:
        others["store"] = str(opened.path.resolve())
    if set(groups) != set(config.data.test_groups):
        others["groups"] = sorted(set(groups))
    file = evaluation_file(run, branch, engine, others)
    results = {
        **evaluate(decoder, scenes, model.classes, voting),
        "branch": branch,
        "store": str(opened.path),
        "groups": groups,
        "trained_on": [group for group in groups if group in trained],
        "votes": settings.votes,
        "rotations": settings.rotations,
        "file": file.name,
    }
    if rank() == 0:
        write_json(file, results)
    return results


def trained_module(branch: str, run: Path, config: TrainConfig) -> CSFR | ISFR | None:
    """The module of a run's branch; None of basic. UserError: it was never trained."""
    if branch == "basic":
        return None
    modules, name = load_modules(run / "modules.pt"), MODULE_OF_BRANCH[branch]
    if name not in modules:
        raise UserError(f"branch {branch} needs the module {name}, which the method {config.method} does not train")
    return modules[name]


def decoder_of(
    branch: str, net: TapBackbone, module: CSFR | ISFR | None, config: TrainConfig, voting: Voting
) -> BasicBranch:
    """What decodes features, through the module of the branch; the partners of cross are a run's training scenes."""
    if branch == "cross":
        partners, _ = split(SceneStore.open(config.data.store), config.data)
        return CrossBranch(net, module, partners, voting)
    return IntraBranch(net, module) if branch == "intra" else BasicBranch(net)


def evaluation_file(run: Path, branch: str, engine: str | None = None, others: dict | None = None) -> Path:
    """Where `evaluate_run` writes what it returns.

    Args:
        run: run folder.
        branch: goes into the name.
        engine: goes into the name, unless it is the run's own (None).
        others: the `store`, `groups`, `votes` and `rotations` as far as they are not the run's own. A digest of them
            goes into the name, so that no evaluation replaces one of other scenes; the file says what they are.
    """
    digest = others and hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:8]
    return run / f"evaluation-{'-'.join(filter(None, (branch, engine, digest)))}.json"


def score_table(results: dict) -> str:
    """The scores of `inference.evaluate` as lines of text, in percent."""
    total = f"{results['points']} points of {results['scenes']} scenes, {results['seconds']:.0f} s"
    return "\n".join([*score_lines(results), total])


def score_lines(results: dict) -> list[str]:
    """The IoU of every class, then the means, in percent: on the original points and on the grid points."""
    width = max(len("overall accuracy"), *(len(name) for name in results["iou"]))
    lines = [f"{'IoU %':{width}}  points  (grid points)"]
    for name, score in results["iou"].items():
        lines.append(f"{name:{width}}  {percent(score)}   ({percent(results['grid']['iou'][name])})")
    for key in ("miou", "overall_accuracy", "mean_accuracy"):
        name = {"miou": "mIoU"}.get(key, key.replace("_", " "))
        lines.append(f"{name:{width}}  {percent(results[key])}   ({percent(results['grid'][key])})")
    return lines


def percent(value: float | None) -> str:
    """A share as five characters, in percent; a dash for None."""
    return "    -" if value is None else f"{100 * value:5.1f}"
