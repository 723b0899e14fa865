"""What pictures show, against the scenes and networks it comes from."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dsp_sparse.data import collate
from dsp_sparse.errors import UserError
from dsp_sparse.experiments.affinity_views import affinity_view, partner_with, richest_ball
from dsp_sparse.experiments.trained import TrainedRun
from dsp_sparse.experiments.views import ceiling_of, centre_of, colours_of, scene_view
from dsp_sparse.inference import BasicBranch, Voting, predict_probabilities
from dsp_sparse.palette import palette
from dsp_sparse.training.checkpoint import load_model, save_modules


@pytest.fixture
def run(make_run, rooms_store):
    """A run folder with both modules."""
    folder = make_run(rooms_store)
    channels = load_model(folder).net.tap.channels
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: {"weight": 0.2 * torch.randn(channels, channels, generator=generator)} for name in ("csfr", "isfr")
    }
    save_modules(folder / "modules.pt", weights)
    return folder


def test_a_scene_is_shown_as_its_run_predicts_it(run, rooms_store):
    """Points, colours, labels, predictions and confidence are those of the scene's grid points."""
    scene = rooms_store.group(["Area_2"])[0]
    view = scene_view({"ours": run}, rooms_store, scene)
    branch = BasicBranch(load_model(run).net)
    expected = predict_probabilities(branch, scene, Voting(radius=1.5, votes=1), scene.number)
    assert np.array_equal(view.predictions["ours"], expected.argmax(1))
    np.testing.assert_allclose(view.confidence["ours"], expected.max(1)[0], rtol=1e-6)
    middle = (scene.points.min(0) + scene.points.max(0)) / 2
    np.testing.assert_allclose(view.points + middle, scene.points, atol=1e-5)
    assert np.array_equal(view.labels, scene.labels)
    assert np.array_equal(view.colours, np.rint(255 * scene.features[:, :3]))
    assert view.classes == rooms_store.classes and np.array_equal(view.palette, palette(len(view.classes)))
    assert view.points.dtype == view.confidence["ours"].dtype == np.float32


def test_of_a_large_scene_the_same_part_is_shown_each_time(run, rooms_store):
    """All arrays are of the same points, and a limit that is not reached leaves out none."""
    scene = rooms_store.group(["Area_2"])[0]
    whole = scene_view({"ours": run}, rooms_store, scene, max_points=scene.num_points)
    part, again = (scene_view({"ours": run}, rooms_store, scene, max_points=500) for _ in range(2))
    assert len(whole.points) == scene.num_points and len(part.points) == 500
    rows = [np.flatnonzero((whole.points == point).all(1))[0] for point in part.points]
    assert len(set(rows)) == 500
    for one in (part, again):
        for name in ("points", "colours", "labels", "ceiling"):
            assert np.array_equal(getattr(one, name), getattr(whole, name)[rows])
        assert np.array_equal(one.predictions["ours"], whole.predictions["ours"][rows])
    # Evenly spread: every quarter of the room has its share.
    quarter = (part.points[:, 0] > 0) * 2 + (part.points[:, 1] > 0)
    of_whole = (whole.points[:, 0] > 0) * 2 + (whole.points[:, 1] > 0)
    np.testing.assert_allclose(np.bincount(quarter) / 500, np.bincount(of_whole) / len(of_whole), atol=0.07)


def test_a_scene_without_colour_is_grey(rooms_store):
    scene = rooms_store.scenes[0]
    for features in ({"intensity": 255.0}, {"red": 255.0, "green": 255.0}):
        grey = colours_of(SimpleNamespace(features=features), scene)
        assert grey.shape == (scene.num_points, 3) and len(np.unique(grey)) == 1


def box(*, lid):
    """A floor, four walls, 2.5 m high, and perhaps a lid, on a grid of 10 cm."""
    edge, height = np.arange(0, 4, 0.1), np.arange(0, 2.5, 0.1)
    floor = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    parts = [np.c_[floor, np.zeros(len(floor))]]
    along, up = (grid.ravel() for grid in np.meshgrid(edge, height))
    for at in (0.0, 4.0):
        parts += [np.c_[along, np.full(len(up), at), up], np.c_[np.full(len(up), at), along, up]]
    if lid:
        parts.append(np.c_[floor, np.full(len(floor), 2.5)])
    points = np.concatenate(parts).astype(np.float32)
    return SimpleNamespace(points=points, labels=np.full(len(points), -1, np.int16), grid=0.1)


def test_a_ceiling_is_found_by_its_class_or_by_what_it_covers():
    """The class where it is, the top of a closed box, and nothing of an open one."""
    closed, opened = box(lid=True), box(lid=False)
    lid = closed.points[:, 2] == np.float32(2.5)
    assert ceiling_of(closed, ["wall"])[lid].all() and not ceiling_of(closed, ["wall"])[closed.points[:, 2] < 2.2].any()
    assert not ceiling_of(opened, ["wall"]).any()
    opened.labels[:7] = 1
    assert np.flatnonzero(ceiling_of(opened, ["wall", "ceiling"])).tolist() == list(range(7))


def test_affinity_is_shown_as_the_modules_give_it(run, rooms_store):
    """Weights are the rows of the module for the pair, from a point of the class that is most surely of it."""
    scene = rooms_store.group(["Area_2"])[0]
    shown, opened = affinity_view(run, scene), TrainedRun.open(run)
    ball = richest_ball(opened, scene)
    present = set(ball.labels[ball.labels >= 0].tolist())
    assert {view.module for view in shown} == {"csfr", "isfr"}
    for view in shown:
        assert view.label in present and view.affinity.sum() == pytest.approx(1, abs=1e-5)
        source = ball if view.module == "isfr" else partner_with(opened, view.label)
        batch = collate([ball, source])
        with torch.no_grad():
            tap, _ = opened.model.net.encode(batch.input)
            partner = [] if view.module == "isfr" else [torch.tensor([1, 0])]
            rows = opened.modules[view.module].affinity_rows(tap, torch.arange(tap.lengths[0]), *partner)
        assert (view.source == view.point).all(1).sum() == (view.module == "isfr"), (
            "the point is one of its own sources"
        )
        gaps = [np.abs(row.numpy() - view.affinity).max() for row in rows]
        assert min(gaps) < 1e-5
        chosen = int(np.argmin(gaps))
        # What the chosen tap point stands for lies around it, and has its class.
        near = np.linalg.norm(batch.input.coord[: batch.input.lengths[0]] - tap.coord[chosen], axis=1).argsort()[:5]
        target = scene.points[ball.rows] - centre_of(scene)
        assert np.linalg.norm(target[near] - view.point, axis=1).max() < 2 * opened.model.net.tap.stride * 0.1
    labels = [view.label for view in shown if view.module == "isfr"]
    assert labels == sorted(set(labels)) and len(labels) >= len(present) - 2  # a class may nowhere be the majority


def test_points_of_views_lie_in_their_scenes(run, rooms_store):
    """Targets in the scene that was asked for; sources of csfr in a training scene that has the class."""
    scene = rooms_store.group(["Area_2"])[1]
    by_name = {one.name: one for one in rooms_store.scenes}
    for view in affinity_view(run, scene):
        source = by_name[view.source_scene]
        assert view.target_scene == scene.name
        assert source.group == "Area_1" if view.module == "csfr" else source is scene
        for name, place in (("target", scene), ("context", source)):
            points, within = place.points - centre_of(place), getattr(view, name)
            assert max(((points - point) ** 2).sum(1).min() for point in within[::20]) < 1e-10
        if view.module == "csfr":
            assert (view.source_labels == view.label).any()
        near = np.linalg.norm(view.source[:, None] - view.context[None], axis=2).argmin(1)
        assert np.linalg.norm(view.source - view.context[near], axis=1).max() < 0.3
        sizes = {len(getattr(view, f"source{part}")) for part in ("", "_colours", "_labels", "_ceiling")}
        assert sizes == {len(view.affinity)}


def test_more_points_of_a_class_come_in_the_order_of_confidence(run, rooms_store):
    """The first is the one that a single point would be."""
    scene = rooms_store.group(["Area_2"])[0]
    one, three = affinity_view(run, scene), affinity_view(run, scene, per_class=3)
    assert len(one) < len(three) <= 3 * len(one)
    first = {}
    for view in three:
        first.setdefault((view.module, view.label), view)
    for view in one:
        np.testing.assert_array_equal(view.point, first[view.module, view.label].point)
    with pytest.raises(UserError, match="per_class must be at least 1, got 0"):
        affinity_view(run, scene, per_class=0)


def test_a_run_without_modules_has_no_affinity_to_show(run, rooms_store):
    save_modules(run / "modules.pt", {})
    assert affinity_view(run, rooms_store.scenes[0]) == []


def test_a_class_that_training_scenes_lack_has_no_partner(run):
    opened = TrainedRun.open(run)
    absent = [replace(scene, class_counts=[0] * len(scene.class_counts)) for scene in opened.train_scenes]
    for scene in absent:
        scene.__dict__["labels"] = np.full(scene.num_points, -1, np.int16)
    assert partner_with(replace(opened, train_scenes=absent), 1) is None


def test_a_store_that_does_not_fit_is_named(run, rooms_store):
    other = SimpleNamespace(**vars(rooms_store) | {"features": {}})
    with pytest.raises(UserError, match=r"the store has features \{\}"):
        scene_view({"ours": run}, other, rooms_store.scenes[0])
