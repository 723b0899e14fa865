"""The interactive view: a scene, its predictions and affinities as the data of `viewer.js`."""

import base64
import json
from importlib import resources

import numpy as np

from ..affinity_views import AffinityView
from ..render import spacing_of
from ..views import SceneView, shown_rows
from .html import paragraph, section, text

UNLABELLED = 255
LIMIT = 6000  # points of a cloud that is shown beside a scene


def viewer_section(view: SceneView, affinity: list[tuple[str, AffinityView]], spacing: float) -> str:
    """The view and its script; without WebGL or scripts its text stays.

    Args:
        view: the scene.
        affinity: chosen points, each with the name of its run.
        spacing: distance of neighbouring points of the scene, metres.
    """
    clouds = Clouds()
    chosen = [
        {
            "name": f"{one.module.upper()}, {one.classes[one.label]}{f' ({run})' if run else ''}",
            "label": one.label,
            "ceiling": one.of_ceiling,
            "source": clouds.add(one.source, one.source_colours, one.source_labels, one.source_ceiling),
            "context": clouds.add(one.context, one.context_colours, None, one.context_ceiling),
            "target": clouds.add(one.target, one.target_colours, one.target_labels, one.target_ceiling),
            "weight": _encoded(one.affinity[shown_rows(len(one.source), LIMIT)].astype("<f4")),
            "point": [round(float(x), 4) for x in one.point],
        }
        for run, one in sorted(affinity, key=lambda pair: pair[1].of_ceiling)
    ]
    data = {
        "scene": packed(view.points, view.colours, view.labels, view.ceiling, spacing),
        "runs": [
            {
                "name": name,
                "label": _encoded(_labels(view.predictions[name])),
                "confidence": _encoded((255 * view.confidence[name]).round().astype(np.uint8)),
            }
            for name in view.predictions
        ],
        "classes": view.classes,
        "palette": view.palette.tolist(),
        "clouds": clouds.packed,
        "affinity": chosen,
    }
    content = json.dumps(data).replace("<", "\\u003c")  # no text of the data can end the element, nor keep it open
    script = resources.files(__package__).joinpath("viewer.js").read_text()
    return section(
        "scene",
        "A scene in 3D",
        paragraph(f"{view.name}, {len(view.points):,} points, with the classes that the runs give them."),
        f'<div id="viewer"><p>{text(FALLBACK)}</p></div>',
        f'<script type="application/json" id="scene-data">{content}</script>',
        f"<script>{script}</script>",
    )


FALLBACK = (
    "This view needs scripts and WebGL, which this browser does not have or does not allow; the pictures on this page "
    "show the same scenes."
)


class Clouds:
    """Clouds of points that several affinities share, each packed once."""

    def __init__(self):
        self.packed: list[dict] = []
        self._numbers: dict[tuple, int] = {}

    def add(self, points: np.ndarray, colours: np.ndarray, labels: np.ndarray | None, ceiling: np.ndarray) -> int:
        """The number of a cloud, see `packed`; None: labels that are not told."""
        labels = np.full(len(points), -1) if labels is None else labels
        key = (points.tobytes(), labels.tobytes())
        if key not in self._numbers:
            self._numbers[key] = len(self.packed)
            rows = shown_rows(len(points), LIMIT)
            arrays = (array[rows] for array in (points, colours, labels, ceiling))
            self.packed.append(packed(*arrays, spacing_of(points[rows])))
        return self._numbers[key]


def packed(points: np.ndarray, colours: np.ndarray, labels: np.ndarray, ceiling: np.ndarray, spacing: float) -> dict:
    """A cloud as JSON. Coordinates are 65535ths of the bounding box: in a scene of 20 m, steps of 0.3 mm.

    Args:
        points: `[n, 3]` metres, n at least 1.
        colours: `[n, 3]` uint8.
        labels: `[n]`, -1 where there is none.
        ceiling: `[n]` bool.
        spacing: distance of neighbouring points, metres.
    """
    low, size = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-6)
    steps = ((points - low) / size * 65535).round().astype("<u2")
    return {
        "low": [float(x) for x in low],
        "size": [float(x) for x in size],
        "spacing": round(spacing, 5),
        "position": _encoded(steps),
        "colour": _encoded(colours.astype(np.uint8)),
        "label": _encoded(_labels(labels)),
        "ceiling": _encoded(ceiling.astype(np.uint8)),
    }


def _labels(labels: np.ndarray) -> np.ndarray:
    return np.where(labels < 0, UNLABELLED, labels).astype(np.uint8)


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
