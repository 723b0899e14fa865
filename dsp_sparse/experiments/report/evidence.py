"""What trained networks see: pictures, the view in 3D and the affinity, of a few runs that stand for all."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...data import Scene, SceneStore
from ...data.loader import train_groups
from ...errors import UserError
from ..affinity import affinity_shares
from ..affinity_views import AffinityView, affinity_view
from ..pictures import affinity_picture, segmentation_picture
from ..table import method_of, spread
from ..views import SceneView, scene_view
from .html import paragraph, picture, section, table, text
from .sources import Subject, name_of, read_subject
from .viewer import viewer_section

SCENES = 4  # rows of Fig. 5
POINTS = 60_000


class Evidence:
    """Pictures and measurements of one run a backbone, weakly supervised, and of full supervision where there is one.

    The runs have the highest share of labels, the method csfr-isfr if it is there, else the first but the baseline, and
    the first seed.

    Args:
        subject: what the report is about.
        full: folder of a run with full supervision, in place of those of the subject.

    Raises:
        UserError: `full` is not a finished run with all labels, or of the same kind as the run that it should stand
            beside.
    """

    def __init__(self, subject: Subject, full: str | Path | None = None):
        finished = [run for run in subject.runs if "results" in run and run["folder"] is not None]
        self._runs = [run for run in finished if (run["folder"] / "model.pt").is_file()]
        self._gone = len([run for run in subject.runs if "results" in run]) - len(self._runs)
        self.shown: list[dict] = []
        self._beside: dict[str, dict] = {}
        for backbone in dict.fromkeys(run["backbone"] for run in self._runs):
            own = [run for run in self._runs if run["backbone"] == backbone]
            self.shown.append(_representative(own))
            for rate in (1.0, self.shown[-1].get("label_rate")):  # of full supervision, else of the same labels
                known = [run for run in own if run["method"] == "baseline" and run.get("label_rate") == rate]
                if known and known[0] is not self.shown[-1] and backbone not in self._beside:
                    self._beside[backbone] = known[0]
        if full is not None:
            run = _full_run(Path(full))
            for weak in self.shown:
                if len(self.shown) == 1 or weak["backbone"] == run["backbone"]:
                    self._beside[weak["backbone"]] = run
                    if self._name(run) == self._name(weak):
                        raise UserError(
                            f"{full}: a {name_of(run)} like {weak['folder']}, expected one to stand beside it"
                        )
        self._views: list[SceneView] = []
        self._chosen: list[tuple[dict, AffinityView]] = []
        self._spacing = 0.0

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """The sections to make, in order, each with its name."""
        return [("scenes", self.scenes), ("view", self.view), ("points", self.points), ("affinity", self.shares)]

    def scenes(self) -> str:
        """Fig. 5: input, ground truth, predictions and errors, one row a scene."""
        title = "Segmentations (Fig. 5)"
        if not self.shown:
            return section("pictures", title, paragraph(self._nothing()))
        try:
            self._look()
            parts = []
            for run in self.shown:
                beside = self._beside.get(run["backbone"])
                full = beside if beside and beside.get("label_rate") == 1.0 else None
                png = segmentation_picture(self._views, self._name(run), full and self._name(full))
                words = f"{name_of(run)} labelled, seed {run['seed']}"
                words += f"; full supervision: {name_of(full)}, seed {full['seed']}" if full else ""
                parts.append(picture(png, f"Segmentations of {len(self._views)} test scenes by {words}", f"{words}."))
        except UserError as error:
            return section("pictures", title, paragraph(f"Not shown: {error}"))
        return section("pictures", title, *parts)

    def view(self) -> str:
        """The first scene, to turn and to zoom."""
        if not self._views:
            return ""
        for run in self.shown:
            try:
                self._chosen += [(run, one) for one in affinity_view(run["folder"], self._scene)]
            except UserError:  # modules that are gone or damaged; `shares` tells it
                continue
        several = len(self.shown) > 1
        named = [(run["backbone"] if several else "", one) for run, one in self._chosen]
        return viewer_section(self._views[0], named, self._spacing)

    def points(self) -> str:
        """Fig. 4: what chosen points attend to."""
        parts = []
        for run in self.shown:
            views = [one for owner, one in self._chosen if owner is run]
            if not views:
                continue
            try:
                png = affinity_picture(views)
            except UserError as error:
                parts.append(paragraph(f"Not shown: {error}"))
                continue
            words = f"{name_of(run)}, seed {run['seed']}"
            caption = (
                f"{words}. From green to red what the chosen point attends to: through CSFR points of a ball of "
                "another scene, through ISFR points of its own ball."
            )
            parts.append(picture(png, f"Affinity of chosen points, {words}", caption))
        return section("affinity", "Affinity (Fig. 4)", *parts) if parts else ""

    def shares(self) -> str:
        """The share of affinity that lands on points of the same class, by class, over all seeds."""
        parts = []
        for run in self.shown:
            kind = [other for other in self._runs if name_of(other) == name_of(run)]
            try:
                found = [shares for other in kind if (shares := affinity_shares(other["folder"]))]
            except UserError as error:
                parts.append(paragraph(f"{name_of(run)}: not measured: {error}"))
                continue
            if found:
                parts.append(shares_table(name_of(run), found))
        if not parts:
            return ""
        note = (
            "The share of a point's affinity that lands on points of its own class, in balls of the test scenes: "
            "before training, after it, and by chance, if all points got the same. CSFR looks into a ball of a "
            "training scene, ISFR into its own ball, where what a point keeps for itself is left out. Points whose "
            "class is nowhere in the other ball do not count. Of two stages, the first one's module is measured with "
            "the features that the second left."
        )
        return section("shares", "Where affinity lands", paragraph(note), *parts)

    def _look(self) -> None:
        """Predict the test scenes to show. UserError: the store is gone or does not fit."""
        config = self.shown[0]["config"]
        store = SceneStore.open(config.data.store)
        for run in self._beside.values():
            if run["config"].data.store == config.data.store and (
                seen := set(train_groups(store, run["config"].data)) & set(config.data.test_groups)
            ):
                raise UserError(f"{run['folder']}: trained on {', '.join(sorted(seen))}, which the pictures would show")
        scenes = rich_scenes(store.group(config.data.test_groups))[:SCENES]
        runs = {self._name(run): run["folder"] for run in (*self.shown, *self._beside.values())}
        self._views = [scene_view(runs, store, scene, POINTS) for scene in scenes]
        self._scene = scenes[0]
        shown = min(self._scene.num_points, POINTS)
        self._spacing = store.grid * (self._scene.num_points / shown) ** 0.5  # points lie on surfaces

    def _name(self, run: dict) -> str:
        """What the view calls a run: without the share of labels where all that are shown have the same."""
        rates = {other.get("label_rate") for other in (*self.shown, *self._beside.values())}
        return name_of(run) if len(rates) > 1 else f"{run['backbone']} {method_of(run)}"

    def _nothing(self) -> str:
        return (
            "The folders of the runs are gone, or have been trained anew." if self._gone else "No run has finished yet."
        )


def _representative(runs: Sequence[dict]) -> dict:
    """The run that stands for a backbone, see `Evidence`."""
    weak = [run for run in runs if run.get("label_rate") != 1.0] or runs
    most = max(run.get("label_rate") or 0.0 for run in weak)
    weak = [run for run in weak if (run.get("label_rate") or 0.0) == most]
    # The smallest key, and of equals the first.
    return min(weak, key=lambda run: (method_of(run) != "csfr-isfr", run["method"] == "baseline"))


def _full_run(folder: Path) -> dict:
    """A run as the subject of a report has it. UserError: not a finished run with all labels."""
    if not (folder / "model.pt").is_file():
        raise UserError(f"{folder}: no finished run (no model.pt), expected one with full supervision")
    (run,) = read_subject(folder).runs
    if run.get("label_rate") != 1:
        raise UserError(f"{folder}: trained with weak labels, expected a run with full supervision (data.label_rate 1)")
    return run


def rich_scenes(scenes: Sequence[Scene]) -> list[Scene]:
    """Labelled scenes, those with most classes first, one of a cloud before a second one of it."""
    order = sorted(scenes, key=lambda scene: (-np.count_nonzero(scene.class_counts), scene.number))
    seen, first, rest = set(), [], []
    for scene in order:
        (rest if scene.cloud in seen else first).append(scene)
        seen.add(scene.cloud)
    return first + rest


def shares_table(title: str, found: Sequence[dict]) -> str:
    """Shares of one kind of run, mean ± standard deviation over its seeds.

    Args:
        title: the kind.
        found: what `affinity_shares` returned, seed by seed; not empty.
    """
    modules = [name for name in ("csfr", "isfr") if name in found[0]]
    columns = [(module, moment) for module in modules for moment in ("before", "after", "chance")]
    classes = list(found[0][modules[0]]["after"]["by_class"])

    def row(name: str, pick: Callable[[dict], float | None]) -> list[str]:
        cells = [spread(pick(shares[module][moment]) for shares in found) for module, moment in columns]
        return [
            name,
            *(f"<b>{text(c)}</b>" if m == "after" else text(c) for c, (_, m) in zip(cells, columns, strict=True)),
        ]

    rows = [row("all points", lambda scores: scores["mean"])]
    rows += [row(text(name), lambda scores, name=name: scores["by_class"][name]) for name in classes]
    seeds = f", mean ± standard deviation over {len(found)} seeds" if len(found) > 1 else ""
    caption = f"{title}: share of affinity on the same class in percent{seeds}"
    return table(caption, ["class", *(f"{module.upper()} {moment}" for module, moment in columns)], rows)
