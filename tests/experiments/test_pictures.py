"""Pictures: what is in front hides what is behind, and everything that is to be seen is there."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest

from dsp_sparse.errors import UserError
from dsp_sparse.experiments import pictures
from dsp_sparse.experiments.affinity_views import AffinityView
from dsp_sparse.experiments.pictures import (
    RIGHT,
    UNLABELLED,
    WRONG,
    affinity_picture,
    class_colours,
    error_colours,
    look,
    segmentation_picture,
    walls_before,
)
from dsp_sparse.experiments.render import Camera, Drawing, spacing_of
from dsp_sparse.experiments.views import SceneView

RED, BLUE = np.array([[255, 0, 0]], np.uint8), np.array([[0, 0, 255]], np.uint8)
CLASSES = ["ceiling", "floor", "wall"]


def room(step=0.2):
    """A room of 4 x 4 x 2 m around the origin: a floor, four walls and a lid, points and labels."""
    edge, height = np.arange(-2, 2 + step / 2, step), np.arange(-1, 1, step)
    ground = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    along, up = (grid.ravel() for grid in np.meshgrid(edge, height))
    walls = [np.c_[along, np.full(len(up), at), up] for at in (-2.0, 2.0)]
    walls += [np.c_[np.full(len(up), at), along, up] for at in (-2.0, 2.0)]
    parts = [np.c_[ground, np.full(len(ground), 1.0)], np.c_[ground, np.full(len(ground), -1.0)], np.concatenate(walls)]
    labels = np.repeat(np.arange(3), [len(part) for part in parts])
    return np.concatenate(parts).astype(np.float32), labels.astype(np.int16)


@pytest.fixture
def scene():
    """The room as two runs see it, one of which is right."""
    points, labels = room()
    return SceneView(
        name="room_1",
        points=points,
        colours=np.full((len(points), 3), 90, np.uint8),
        labels=labels,
        ceiling=labels == 0,
        predictions={"weak": np.full(len(points), 1, np.int16), "full": labels},
        confidence={},
        classes=CLASSES,
        palette=np.array([[10, 60, 200], [0, 255, 0], [255, 0, 255]], np.uint8),
    )


@pytest.fixture
def views(scene):
    """Affinity of a point of the floor and one of the wall, through both modules."""
    shown = []
    for module in ("csfr", "isfr"):
        for label in (1, 2):
            weights = (scene.labels[::7] == label).astype(np.float32)
            shown.append(
                AffinityView(
                    module=module,
                    label=label,
                    classes=CLASSES,
                    target_scene="room_1",
                    point=scene.points[scene.labels == label][0],
                    target=scene.points,
                    target_colours=scene.colours,
                    target_labels=scene.labels,
                    target_ceiling=scene.ceiling,
                    source_scene="room_2",
                    source=scene.points[::7],
                    affinity=weights / weights.sum(),
                    source_colours=scene.colours[::7],
                    source_labels=scene.labels[::7],
                    source_ceiling=scene.ceiling[::7],
                    context=scene.points,
                    context_colours=scene.colours,
                    context_ceiling=scene.ceiling,
                )
            )
    return shown


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pictures of few pixels."""
    monkeypatch.setattr(pictures, "DPI", 100)
    monkeypatch.setattr(pictures, "PIXELS", 300)


def pixels(png):
    """A PNG as an array."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def share(image, colour, within=40):
    """The share of an image's pixels that have a colour, or are a little darker."""
    return (np.abs(image - np.array(colour)).max(-1) <= within).mean()


@pytest.mark.parametrize("azimuth", [0, 45, 200])
def test_what_is_nearer_to_the_camera_hides_what_is_behind_it(azimuth):
    """Two points on one line of sight: the nearer shows, whichever comes first."""
    corners = np.array([[-1.0, -1, -1], [1, 1, 1], [-1, 1, 0], [1, -1, 0]])
    camera = Camera.over(corners, 100, azimuth)
    near, far = 0.3 * camera.rotation[2], -0.3 * camera.rotation[2]
    for points, colours in ((np.stack([near, far]), (RED, BLUE)), (np.stack([far, near]), (BLUE, RED))):
        image = Drawing.of(points, camera, 0.1).paint(np.concatenate(colours))
        drawn = image[image[..., 3] == 255]
        assert 0 < len(drawn) < image.shape[0] * image.shape[1] / 4 and (drawn[:, :3] == RED).all()


def test_the_camera_looks_down_and_keeps_lengths():
    """Higher is up, east is right for a camera in the south; a metre is as long across as along an image."""
    points = np.array([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    camera = Camera.over(points, 400, -90)
    flat, near = camera.project(points)
    origin, up, east, north = flat
    assert up[1] < origin[1] and up[0] == pytest.approx(origin[0])
    assert east[0] - origin[0] == pytest.approx(camera.scale) and east[1] == pytest.approx(origin[1])
    assert near[1] > near[0] > near[3] and north[1] < origin[1]
    # An orthographic image of three orthogonal unit lengths: their squares sum to twice the scale's square.
    assert sum(((point - origin) ** 2).sum() for point in (up, east, north)) == pytest.approx(2 * camera.scale**2)


def test_discs_close_the_gaps_of_a_surface():
    """A floor leaves no hole; where there is nothing, the image is transparent."""
    ground = np.stack(np.meshgrid(np.arange(0, 3, 0.1), np.arange(0, 3, 0.1)), -1).reshape(-1, 2)
    floor = np.c_[ground, np.zeros(len(ground))]
    camera = Camera.over(floor, 300, 45)
    image = Drawing.of(floor, camera, 0.1).paint(np.repeat(RED, len(floor), 0))
    middle = image[image.shape[0] // 3 : -image.shape[0] // 3, image.shape[1] // 3 : -image.shape[1] // 3]
    assert (middle[..., 3] == 255).all() and (image[0, 0] == 0).all()
    assert len(Drawing.of(floor, camera, 0.1).visible) == len(floor)


def test_edges_in_depth_are_darker():
    """A step of a tower above the floor draws a line around it; a plane alone has none."""
    ground = np.stack(np.meshgrid(np.arange(0, 3, 0.05), np.arange(0, 3, 0.05)), -1).reshape(-1, 2)
    tower = np.abs(ground - 1.5).max(1) < 0.5
    colours = np.full((len(ground), 3), 200, np.uint8)
    for height, dark in ((0.0, False), (0.5, True)):
        points = np.c_[ground, height * tower]
        image = Drawing.of(points, Camera.over(points, 300, 0), 0.05).paint(colours)
        assert bool((image[image[..., 3] == 255][:, 0] < 170).any()) == dark


def test_walls_before_the_camera_are_left_out():
    """On its side, above half a metre; those behind stay, and so does what stands in the room."""
    points = np.concatenate([room()[0], [[1.0, 0, 0]]])
    before = walls_before(points, 0)
    assert before[(points[:, 0] == 2) & (points[:, 2] > -0.4) & (np.abs(points[:, 1]) < 1.5)].all()
    assert not before[(points[:, 0] < 0) | (points[:, 2] < -0.6)].any() and not before[-1]


def test_the_look_into_a_room_shows_its_floor():
    """Without lid and front walls most of the floor is seen; with nothing but ceiling, that is shown."""
    points, labels = room()
    camera, shown = look(points, labels == 0, 0.2)
    floor = np.flatnonzero(labels[shown] == 1)
    assert not shown[labels == 0].any()
    assert np.isin(floor, Drawing.of(points[shown], camera, 0.2).visible).mean() > 0.6
    closed = Drawing.of(points[labels > 0], camera, 0.2).visible
    assert np.isin(np.flatnonzero(labels[labels > 0] == 1), closed).mean() < 0.5
    assert look(points, np.ones(len(points), bool), 0.2)[1].any()


def test_colours_tell_classes_and_errors(scene):
    labels = np.array([0, 2, -1], np.int16)
    assert class_colours(scene, labels).tolist() == [[10, 60, 200], [255, 0, 255], list(UNLABELLED)]
    some = replace(scene, labels=labels, predictions={"weak": np.array([0, 1, 1])})
    assert error_colours(some, "weak").tolist() == [list(RIGHT), list(WRONG), list(UNLABELLED)]


def test_spacing_is_that_of_the_grid():
    points, _ = room(step=0.1)
    assert spacing_of(points) == pytest.approx(0.1, rel=1e-3)


def test_segmentations_are_drawn_in_columns(scene):
    """Full supervision has a column of its own; the picture of classes is where their points are."""
    with_full, without = (pixels(segmentation_picture([scene, scene], "weak", full)) for full in ("full", None))
    assert with_full.shape[1] > without.shape[1] and with_full.shape[0] == without.shape[0]
    width = without.shape[1] // 4
    truth, weak, errors = (without[: without.shape[0] // 2, i * width : (i + 1) * width] for i in (1, 2, 3))
    wall, floor, paper = (255, 0, 255), (0, 255, 0), (255, 255, 255)
    assert share(truth, wall) > 0.1 and share(truth, floor) > 0.1 and share(truth, paper) > 0.1
    assert share(weak, wall) < 0.01 and share(weak, floor) > 0.2
    assert share(errors, WRONG) > 0.1 and share(errors, RIGHT) > 0.1  # walls are wrong, the floor is right


def test_a_scene_without_labels_can_be_drawn(scene):
    """Ground truth and errors are of one grey."""
    bare = replace(scene, labels=np.full(len(scene.labels), -1, np.int16))
    image = pixels(segmentation_picture([bare], "weak"))
    assert share(image, UNLABELLED) > 0.1 and share(image, WRONG) == 0


def test_affinity_is_drawn_from_green_to_red(views):
    """A row a class, a column a module and one for the target; what takes all affinity is red, the rest green."""
    both, one, first = (pixels(affinity_picture(*arguments)) for arguments in ((views,), (views[:2],), (views, 1)))
    assert both.shape[1] > one.shape[1] and both.shape[0] > first.shape[0]
    source = both[:, : both.shape[1] // 3]
    assert share(source, (0xD7, 0x30, 0x27), 20) > 0.001 and share(source, (0x1A, 0x98, 0x50), 20) > 0.001
    chosen = both[:, 2 * both.shape[1] // 3 :]
    assert share(chosen, (255, 0, 0), 20) > 0.0005


def test_what_a_point_keeps_for_itself_is_told(views):
    """It is of the point's class, but of no merit."""
    csfr, _, isfr, _ = views
    assert pictures.share_of(csfr) == f"100 % of its affinity on {CLASSES[1]}"
    weights = np.array([0.5, 0.25, 0.25], np.float32)
    few = {"source": isfr.target[:3], "source_labels": np.array([1, 1, 2]), "affinity": weights}
    own = replace(isfr, point=isfr.target[1], **few)
    assert pictures.share_of(own) == f"75 % of its affinity on {CLASSES[1]} (25 % on itself)"


def test_a_class_without_source_leaves_its_place_empty(views):
    """A class that training scenes lack is shown with its own ball alone; a lone ceiling is shown after all."""
    assert pixels(affinity_picture(views[1:])).shape == pixels(affinity_picture(views)).shape
    ceiling = [replace(view, label=0) for view in views[:1]]
    assert share(pixels(affinity_picture(ceiling)), (255, 0, 0), 20) > 0


def test_pictures_without_matplotlib_are_refused(scene, views, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: segmentation_picture([scene], "weak"), lambda: affinity_picture(views)):
        with pytest.raises(UserError, match=r"pictures need matplotlib.*dsp-sparse\[report\]"):
            draw()
