"""Prediction on a user's own cloud: every original point gets a label."""

from pathlib import Path

import numpy as np
from numpy.lib import recfunctions
from plyfile import PlyData, PlyElement

from ..data import grid_cloud
from ..data.dataset import checked
from ..data.ply import cloud_of, read_vertices
from ..errors import UserError
from ..files import atomic_path
from ..inference import BasicBranch, Voting, predict_probabilities
from ..training.checkpoint import load_model
from ..training.loop import pick_device


def predict_file(
    run: str | Path,
    path: str | Path,
    out: str | Path,
    votes: int = 3,
    device: str = "auto",
    engine: str | None = None,
) -> None:
    """Label every vertex of a PLY file.

    Args:
        run: run folder, or a model file.
        path: PLY file with x, y, z and the measured features the model was trained on.
        out: PLY file to write: all vertex fields of `path`, and `label` (int32 class id, replacing a field of that
            name) and `confidence` (float32, its probability). Its comments name the classes.
        votes: how often every point is seen at least; probabilities are averaged.
        device: torch device; auto takes the GPU when there is one.
        engine: engine of a MinkUNet; the model's own by default.

    Raises:
        UserError: not a model, or a file that is broken, empty, not finite or without the needed fields; an
            engine that is missing.
    """
    out = Path(out)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"out must be a file in an existing folder, got {out}")
    model = load_model(run, pick_device(device), engine)
    path = Path(path)
    vertices = read_vertices(path)
    (raw,) = checked([cloud_of(vertices, path, model.features)], path)
    cloud = grid_cloud(raw, model.grid)
    voting = Voting(radius=model.radius, max_points=model.max_points, votes=votes)
    confidence, label = predict_probabilities(BasicBranch(model.net), cloud, voting).max(1)
    fields = recfunctions.drop_fields(vertices, ["label", "confidence"], usemask=False)
    predicted = recfunctions.append_fields(
        fields,
        ["label", "confidence"],
        [label.numpy().astype(np.int32)[cloud.inverse], confidence.numpy()[cloud.inverse]],
        usemask=False,
    )
    comments = [f"label {index} {name}" for index, name in enumerate(model.classes)]
    with atomic_path(out) as temporary:
        PlyData([PlyElement.describe(predicted, "vertex")], comments=comments).write(str(temporary))
