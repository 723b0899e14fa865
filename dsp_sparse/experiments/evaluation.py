"""Scores of a finished run, on its own test scenes or on others."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..data import SceneStore
from ..errors import UserError
from ..files import write_json
from ..inference import BasicBranch, CrossBranch, IntraBranch, Voting, evaluate
from ..training.checkpoint import load_model, load_modules
from ..training.loop import pick_device
from ..training.run import load_config

MODULE_OF_BRANCH = {"cross": "csfr", "intra": "isfr"}


def evaluate_run(
    run: str | Path,
    store: str | Path | None = None,
    groups: Sequence[str] | None = None,
    branch: str = "basic",
    engine: str | None = None,
) -> dict:
    """Evaluate a run and write `evaluation-<branch>.json` into its folder, with an engine
    `evaluation-<branch>-<engine>.json`.

    Args:
        run: run folder.
        store: scene store; the run's own by default.
        groups: scene groups; the run's test groups by default.
        branch: `basic` is the backbone alone; `cross` and `intra` decode features that the run's csfr or isfr module
            reallocated (paper Table 3).
        engine: engine of a minkunet run; the one it was trained with by default.

    Returns:
        What `inference.evaluate` returns, and the `branch`, the `store` and the `groups`.

    Raises:
        UserError: not a run, a store that does not fit the model, a branch whose module the run never trained, or an
            engine that is missing.
    """
    run = Path(run)
    config = load_config(run)
    model = load_model(run, pick_device(config.device), engine)
    opened = SceneStore.open(store or config.data.store)
    for name, expected, found in (
        ("classes", model.classes, opened.classes),
        ("features", model.features, opened.features),
    ):
        if expected != found:
            raise UserError(f"{opened.path}: the store has {name} {found}, the model in {run} expects {expected}")
    opened.require_grid(model.grid)
    groups = list(groups or config.data.test_groups)
    scenes = opened.group(groups)
    voting = Voting(radius=model.radius, max_points=model.max_points, **asdict(config.eval))
    if branch == "basic":
        decoder = BasicBranch(model.net)
    else:
        modules = load_modules(run / "modules.pt")
        name = MODULE_OF_BRANCH[branch]
        if name not in modules:
            raise UserError(f"branch {branch} needs the module {name}, which the method {config.method} does not train")
        if branch == "intra":
            decoder = IntraBranch(model.net, modules[name])
        else:
            partners = SceneStore.open(config.data.store).group(config.data.train_groups)
            decoder = CrossBranch(model.net, modules[name], partners, voting)
    results = evaluate(decoder, scenes, model.classes, voting)
    results |= {"branch": branch, "store": str(opened.path), "groups": groups}
    write_json(evaluation_file(run, branch, engine), results)
    return results


def evaluation_file(run: Path, branch: str, engine: str | None) -> Path:
    """Where `evaluate_run` writes what it returns."""
    return run / f"evaluation-{'-'.join(filter(None, (branch, engine)))}.json"


def score_table(results: dict) -> str:
    """The scores of `inference.evaluate` as lines of text: IoU of every class, then the means, in percent."""

    def percent(value: float | None) -> str:
        return "    -" if value is None else f"{100 * value:5.1f}"

    width = max(len("overall accuracy"), *(len(name) for name in results["iou"]))
    lines = [f"{'IoU %':{width}}  points  (grid points)"]
    for name, score in results["iou"].items():
        lines.append(f"{name:{width}}  {percent(score)}   ({percent(results['grid']['iou'][name])})")
    for key in ("miou", "overall_accuracy", "mean_accuracy"):
        name = {"miou": "mIoU"}.get(key, key.replace("_", " "))
        lines.append(f"{name:{width}}  {percent(results[key])}   ({percent(results['grid'][key])})")
    lines.append(f"{results['points']} points of {results['scenes']} scenes, {results['seconds']:.0f} s")
    return "\n".join(lines)
