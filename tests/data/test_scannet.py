import numpy as np
import pytest
from clouds import whole
from plyfile import PlyData, PlyElement

from dsp_sparse.data import scannet
from dsp_sparse.data.ply import read_cloud
from dsp_sparse.errors import UserError

FIELDS = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("alpha", "u1")]
NAME = "scene0000_00"


def write(path, dtype, rows):
    faces = PlyElement.describe(np.array([([0, 1, 2],)], [("vertex_indices", "i4", (3,))]), "face")
    PlyData([PlyElement.describe(np.array(rows, dtype), "vertex"), faces]).write(str(path))


@pytest.fixture
def root(tmp_path):
    """One scene of three points with faces: wall, a class outside the benchmark, other furniture."""
    folder = tmp_path / "scans" / NAME
    folder.mkdir(parents=True)
    (tmp_path / "scannetv2_train.txt").write_text(f"{NAME}\n")
    points = [(i, 2, 3, 255, 0, 51, 255) for i in range(3)]
    write(folder / f"{NAME}_vh_clean_2.ply", FIELDS, points)
    labelled = [(*p, label) for p, label in zip(points, (1, 13, 39), strict=True)]
    write(folder / f"{NAME}_vh_clean_2.labels.ply", [*FIELDS, ("label", "u2")], labelled)
    return tmp_path


def test_a_scene_has_colours_and_the_benchmark_classes(root):
    dataset = scannet.scenes(root)
    assert [(s.name, s.group) for s in dataset.scenes] == [(NAME, "train")]
    cloud = whole(dataset.scenes[0])
    np.testing.assert_array_equal(cloud.points, [[0, 2, 3], [1, 2, 3], [2, 2, 3]])
    np.testing.assert_allclose(cloud.features, [[1, 0, 0.2]] * 3, rtol=1e-6)
    assert cloud.labels.tolist() == [0, -1, 19]
    assert len(dataset.classes) == 20


def test_a_cloud_for_prediction_needs_no_labels_file(root):
    path = root / "scans" / NAME / f"{NAME}_vh_clean_2.ply"
    path.with_suffix(".labels.ply").unlink()
    cloud = read_cloud(path, scannet.COLOURS)
    assert len(cloud.points) == 3
    assert (cloud.labels == -1).all()


def test_what_is_missing_or_broken_is_named(root):
    path = root / "scans" / NAME / f"{NAME}_vh_clean_2.ply"
    labels = path.with_suffix(".labels.ply")
    (scene,) = scannet.scenes(root).scenes

    complete = labels.read_bytes()
    write(labels, [*FIELDS, ("label", "u2")], [(0, 0, 0, 0, 0, 0, 0, 1)])
    with pytest.raises(UserError, match=r"labels.ply: 1 labels, expected 3"):
        whole(scene)
    labels.write_bytes(complete[:-40])
    with pytest.raises(UserError, match=r"labels.ply: not a whole PLY file"):
        whole(scene)
    labels.unlink()
    with pytest.raises(UserError, match=r"labels.ply: no such file"):
        whole(scene)
    (root / "scannetv2_train.txt").write_text("scene0707_00\n")
    with pytest.raises(UserError, match=r"scene0707_00: no such folder, expected the scene that scannetv2_train.txt"):
        scannet.scenes(root)
    (root / "scannetv2_train.txt").unlink()
    with pytest.raises(UserError, match="no split file"):
        scannet.scenes(root)


def test_real_scenes(real_data):
    dataset = scannet.scenes(real_data / "scannet")
    assert [s.group for s in dataset.scenes].count("val") == 2
    for scene in dataset.scenes[:2]:
        cloud = whole(scene)
        assert len(cloud.points) == 50_000
        assert cloud.labels.min() == -1
        assert {"wall", "floor"} <= {dataset.classes[label] for label in np.unique(cloud.labels) if label >= 0}
