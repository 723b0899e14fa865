"""The paper's qualitative figures as PNG images: affinity (Fig. 4) and segmentations (Fig. 5), with matplotlib."""

import io
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ..errors import UserError
from .affinity_views import AffinityView
from .render import Camera, Drawing, spacing_of
from .views import SceneView

PIXELS = 700  # of the longer side of one panel
DPI = 200
PANEL = 1.75  # inches
POINTS_PER_PIXEL = 72 * PANEL / PIXELS
UNLABELLED = (220, 220, 220)
RIGHT, WRONG = (190, 196, 202), (214, 39, 40)
LEGEND = {"loc": "outside lower center", "frameon": False, "fontsize": 7, "title_fontsize": 6}
# From low to high affinity, as in the paper.
GREEN_TO_RED = ("#1a9850", "#a6d96a", "#fee08b", "#f46d43", "#d73027")


def segmentation_picture(views: Sequence[SceneView], weak: str, full: str | None = None) -> bytes:
    """Draw segmentations as in Fig. 5, one row a scene: input, ground truth, predictions and where they err.

    Ceilings, and under them the walls before the camera, are left out, so that the rest can be seen.

    Args:
        views: the scenes, at least one, of one store.
        weak: the run of `views` that was trained with weak labels.
        full: the run that was trained with all of them, if there is one.

    Returns:
        A PNG file.

    Raises:
        UserError: matplotlib is missing.
    """
    columns = {"input": None, "ground truth": None}
    if full is not None:
        columns["full supervision"] = full
    columns |= {"weak supervision": weak, "errors of weak supervision": weak}
    figure = _figure(PANEL * len(columns), PANEL * len(views) + 0.6)
    axes = figure.subplots(len(views), len(columns), squeeze=False)
    for row, view in zip(axes, views, strict=True):
        spacing = spacing_of(view.points)
        camera, shown = look(view.points, view.ceiling, spacing)
        drawing = Drawing.of(view.points[shown], camera, spacing)
        for panel, (title, run) in zip(row, columns.items(), strict=True):
            if title == "input":
                colours = view.colours
            elif title.startswith("errors"):
                colours = error_colours(view, run)
            else:
                colours = class_colours(view, view.labels if run is None else view.predictions[run])
            _show(panel, drawing.paint(colours[shown]))
        row[0].set_ylabel(view.name.replace("_", " "), fontsize=6)
        row[-1].set_xlabel(_errors(view, weak, shown), fontsize=6)
    for panel, title in zip(axes[0], columns, strict=True):
        panel.set_title(title, fontsize=8)
    _legend(figure, views)
    return _png(figure)


def affinity_picture(views: Sequence[AffinityView], rows: int = 4) -> bytes:
    """Draw affinity as in Fig. 4, one row a class: for each module the source, and the target with the chosen point.

    The source of CSFR is a training ball, that of ISFR the ball of the chosen point. Source points go from green to red
    with the square root of their affinity, relative to the largest; behind them is, paler, the cloud they stand for.
    Ceilings are left out, and with them their class.

    Args:
        views: what `affinity_view` returned, at least one.
        rows: most classes to show, those with most points in the target.

    Returns:
        A PNG file.

    Raises:
        UserError: matplotlib is missing.
    """
    seen = [view for view in views if not view.source_ceiling.all() and not view.of_ceiling] or list(views)
    modules = sorted({view.module for view in seen})
    labels = sorted({view.label for view in seen}, key=lambda label: -_points_of(seen, label))[:rows]
    first = {key: next(group) for key, group in groupby(sorted(seen, key=_key), _key)}
    columns = len(modules) + 1
    figure = _figure(1.1 * PANEL * columns, PANEL * len(labels) + 0.5)
    axes = figure.subplots(len(labels), columns, squeeze=False)
    for row, label in zip(axes, labels, strict=True):
        for panel, module in zip(row, modules, strict=False):
            if (view := first.get((module, label))) is None:
                panel.set_axis_off()  # no training scene has the class
            else:
                _draw_source(panel, view)
        _draw_target(row[-1], next(view for view in seen if view.label == label))
        row[0].set_ylabel(views[0].classes[label], fontsize=8)
    for letter, panel, module in zip("ab", axes[0], modules, strict=False):
        panel.set_title(f"({letter}) {module.upper()}: affinity", fontsize=8)
    axes[0, -1].set_title("the chosen point (red)", fontsize=8)
    _affinity_scale(figure, any(view.context_ceiling.any() or view.target_ceiling.any() for view in seen))
    return _png(figure)


def look(points: np.ndarray, ceiling: np.ndarray, spacing: float) -> tuple[Camera, np.ndarray]:
    """From where to look at a scene or ball, of eight directions the one that shows most points; and what to show.

    Of a scene with a ceiling its walls before the camera are left out, too.

    Args:
        points: `[n, 3]` metres.
        ceiling: `[n]` bool, points to leave out.
        spacing: distance of neighbouring points, metres.

    Returns:
        The camera, and `[n]` bool.
    """
    best = (-1, None, None)
    for azimuth in range(-60, 300, 45):
        shown = below(ceiling)
        if not shown.all():
            shown &= ~walls_before(points, azimuth)
        camera = Camera.over(points[shown], PIXELS // 4, azimuth)
        count = len(Drawing.of(points[shown], camera, spacing).visible)
        if count > best[0]:
            best = count, azimuth, shown
    _, azimuth, shown = best
    return Camera.over(points[shown], PIXELS, azimuth), shown


def below(ceiling: np.ndarray) -> np.ndarray:
    """`[n]` bool, what is not ceiling; all points if none is left."""
    return ceiling if ceiling.all() else ~ceiling


def walls_before(points: np.ndarray, azimuth: float) -> np.ndarray:
    """`[n]` bool: the outermost points on the side of the camera, but for the lowest half metre."""
    flat = points[:, :2] - (points[:, :2].min(0) + points[:, :2].max(0)) / 2
    distance, angle = np.hypot(*flat.T), np.arctan2(flat[:, 1], flat[:, 0])
    sector = ((angle + np.pi) / (2 * np.pi) * 120).astype(int).clip(0, 119)
    outermost = np.zeros(120)
    np.maximum.at(outermost, sector, distance)
    near = np.cos(angle - np.radians(azimuth)) > 0.1
    return near & (distance > outermost[sector] - 0.35) & (points[:, 2] > points[:, 2].min() + 0.5)


def class_colours(view: SceneView, labels: np.ndarray) -> np.ndarray:
    """`[n, 3]` uint8 colours of labels `[n]`, -1 grey."""
    return np.concatenate([view.palette, [UNLABELLED]]).astype(np.uint8)[labels]


def error_colours(view: SceneView, run: str) -> np.ndarray:
    """`[n, 3]` uint8: red where a run is wrong, grey where it is right, light where there is no label."""
    colours = np.where((view.predictions[run] == view.labels)[:, None], RIGHT, WRONG)
    colours[view.labels < 0] = UNLABELLED
    return colours.astype(np.uint8)


def _errors(view: SceneView, run: str, shown: np.ndarray) -> str:
    known = shown & (view.labels >= 0)
    if not known.any():
        return "no labels"
    wrong = (view.predictions[run] != view.labels)[known].mean()
    return f"errors (red): {100 * wrong:.0f} % of these points"


def _key(view: AffinityView) -> tuple[str, int]:
    return view.module, view.label


def _points_of(views: list[AffinityView], label: int) -> int:
    return max(int((view.target_labels == label).sum()) for view in views)


def _draw_source(panel, view: AffinityView) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("affinity", GREEN_TO_RED)
    shown, around = below(view.source_ceiling), below(view.context_ceiling)
    camera = _draw_ball(panel, view.context[around], 255 - 0.35 * (255.0 - view.context_colours[around]))
    place, _ = camera.project(view.source[shown])
    strength = np.sqrt(view.affinity[shown] / view.affinity.max())
    order = np.argsort(strength, kind="stable")  # what has most affinity lies on top
    size = min(5.5, 0.4 * spacing_of(view.source[shown]) * camera.scale * POINTS_PER_PIXEL)
    look_of = {"s": size**2, "linewidths": 0.3, "edgecolors": "white", "clip_on": False}
    panel.scatter(*place[order].T, c=colours(strength[order]), **look_of)
    panel.set_xlabel(share_of(view), fontsize=6)


def share_of(view: AffinityView) -> str:
    """How much of its affinity a chosen point has on its class and, for ISFR, of that on itself, in words."""
    share = view.affinity[view.source_labels == view.label].sum()
    words = f"{100 * share:.0f} % of its affinity on {view.classes[view.label]}"
    if view.module == "isfr":  # the point itself is of its class whatever the module has learned
        words += f" ({100 * view.affinity[(view.source == view.point).all(1)].sum():.0f} % on itself)"
    return words


def _draw_target(panel, view: AffinityView) -> None:
    shown = below(view.target_ceiling)
    camera = _draw_ball(panel, view.target[shown], view.target_colours[shown])
    place, _ = camera.project(view.point[None])
    panel.scatter(*place.T, c="red", s=30, linewidths=0.8, edgecolors="white")


def _draw_ball(panel, points: np.ndarray, colours: np.ndarray) -> Camera:
    """Draw a ball whose ceiling is gone; returns what looks at it."""
    spacing = spacing_of(points)
    camera, _ = look(points, np.zeros(len(points), bool), spacing)
    _show(panel, Drawing.of(points, camera, spacing).paint(colours))
    return camera


def _figure(width: float, height: float):
    try:
        from matplotlib.figure import Figure  # no pyplot: no display, no global state
    except ImportError:
        raise UserError("pictures need matplotlib; install it with pip install 'dsp-sparse[report]'") from None
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _show(panel, image: np.ndarray) -> None:
    panel.imshow(image, interpolation="antialiased")
    panel.set_xticks([]), panel.set_yticks([])
    panel.spines[:].set_visible(False)


def _legend(figure, views: Sequence[SceneView]) -> None:
    from matplotlib.patches import Patch

    view = views[0]
    present = sorted(
        {int(c) for v in views for values in (v.labels, *v.predictions.values()) for c in np.unique(values)}
    )
    handles = [Patch(color=view.palette[c] / 255, label=view.classes[c]) for c in present if c >= 0]
    if present and present[0] < 0:
        handles.append(Patch(color=np.array(UNLABELLED) / 255, label="unlabelled"))
    cut = any(v.ceiling.any() for v in views)
    figure.legend(
        handles=handles,
        title="Ceilings and the walls before the camera are left out." if cut else None,
        **LEGEND,
        ncols=8,
    )


def _affinity_scale(figure, cut: bool) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour) for colour in GREEN_TO_RED]
    for handle, text in zip(handles, ("low affinity", "", "", "", "high"), strict=True):
        handle.set_label(text)
    figure.legend(handles=handles, title="Ceilings are left out." if cut else None, **LEGEND, ncols=5)


def _png(figure) -> bytes:
    """The figure as a PNG of 256 colours, which is a third as large as one of all its colours and looks the same."""
    from PIL import Image  # matplotlib needs it, too

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=DPI)
    image = Image.open(whole).convert("RGB")
    image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
