from pathlib import Path

import numpy as np
import pytest
import yaml
from clouds import whole
from plyfile import PlyData, PlyElement

from dsp_sparse.data import grid_cloud
from dsp_sparse.data.ply import PlyConfig, read_cloud, scenes
from dsp_sparse.errors import UserError

LIDAR = Path(__file__).resolve().parents[2] / "configs" / "data" / "lidar.yaml"
FIELDS = [("X", "f8"), ("Y", "f8"), ("Z", "f8"), ("intensity", "u2"), ("kind", "i4")]
CONFIG = {
    "name": "mine",
    "coordinates": ["X", "Y", "Z"],
    "features": {"intensity": 100},
    "label": "kind",
    "classes": {"ground": [2], "plant": [3, 4]},
    "ignore": [0],
    "groups": {"train": ["a/*.ply"], "test": ["b.ply"]},
}


def write(path, rows, text=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    PlyData([PlyElement.describe(np.array(rows, FIELDS), "vertex")], text=text).write(str(path))


def config(tmp_path, **changes) -> PlyConfig:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}, sort_keys=False))
    return PlyConfig.load(path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data" / "a" / "one.ply", [(7e5, 6e6, 1, 50, 2), (7e5 + 0.001, 6e6, 1, 500, 4), (0, 0, 0, 0, 0)])
    write(tmp_path / "data" / "b.ply", [(1, 2, 3, 4, 3)], text=True)
    return tmp_path / "data"


def test_fields_classes_features_and_groups_come_from_the_yaml(folder, tmp_path):
    dataset = scenes(folder, config(tmp_path))
    assert (dataset.name, dataset.classes, dataset.features) == ("mine", ["ground", "plant"], {"intensity": 100})
    assert [(s.name, s.group) for s in dataset.scenes] == [("a_one", "train"), ("b", "test")]
    cloud = whole(dataset.scenes[0])
    np.testing.assert_array_equal(cloud.points[:2], [[7e5, 6e6, 1], [7e5 + 0.001, 6e6, 1]])
    np.testing.assert_allclose(cloud.features, [[0.5], [1], [0]])
    assert cloud.labels.tolist() == [0, 1, -1]
    np.testing.assert_allclose(whole(dataset.scenes[1]).features, [[0.04]])


def test_labels_and_features_are_optional(folder, tmp_path):
    dataset = scenes(folder, config(tmp_path, label=None, classes={}, features={}))
    cloud = whole(dataset.scenes[0])
    assert cloud.features.shape == (3, 0)
    assert (cloud.labels == -1).all()
    assert grid_cloud(cloud, 0.1).features.shape == (2, 0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"typo": 1}, "mine.yaml: .*typo"),
        ({"groups": 3}, "mine.yaml: .*groups"),
        ({"classes": {"ground": ["two"]}}, "mine.yaml: .*classes"),
        ({"classes": {}}, "mine.yaml: label is 'kind' but classes is empty"),
        ({"classes": {"ground": [2], "plant": [2]}}, "mine.yaml: id 2 is listed twice"),
        ({"coordinates": ["X", "Y"]}, "mine.yaml: coordinates names 2 fields"),
        ({"features": {"intensity": 0}}, "mine.yaml: features.intensity is 0"),
    ],
)
def test_a_bad_yaml_is_named_with_its_key(tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem) as error:
        config(tmp_path, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": {"ground": [2]}}, r"one.ply: kind has the ids \[4\], expected only ids listed"),
        ({"label": "class"}, "one.ply: no vertex field class; it has X, Y, Z, intensity, kind"),
        ({"features": {"red": 255, "green": 255}}, "one.ply: no vertex field red, green"),
    ],
)
def test_a_file_that_does_not_fit_the_yaml_is_named(folder, tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        whole(scenes(folder, config(tmp_path, **changes)).scenes[0])


def test_files_are_in_one_group_and_patterns_match(folder, tmp_path):
    with pytest.raises(UserError, match=r"no file matches 'c/\*.ply' of group 'test'"):
        scenes(folder, config(tmp_path, groups={"test": ["c/*.ply"]}))
    with pytest.raises(UserError, match=r"b.ply: in the groups 'train' and 'test'"):
        scenes(folder, config(tmp_path, groups={"train": ["**/*.ply"], "test": ["b.ply"]}))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        scenes(tmp_path / "nowhere", config(tmp_path))
    with pytest.raises(UserError, match=r"none.yaml: no such file"):
        PlyConfig.load(tmp_path / "none.yaml")


def test_broken_clouds_are_named(tmp_path):
    def read(features=("intensity",)):
        return read_cloud(tmp_path / "x.ply", dict.fromkeys(features, 1.0), ["X", "Y", "Z"])

    with pytest.raises(UserError, match=r"x.ply: no such file"):
        read()
    write(tmp_path / "x.ply", [(np.nan, 0, 0, 1, 1), (0, 0, np.inf, 1, 1), (0, 0, 0, 1, 1)])
    with pytest.raises(UserError, match=r"x.ply: point 1 has coordinates"):
        read()
    write(tmp_path / "x.ply", np.empty(0, FIELDS))
    with pytest.raises(UserError, match=r"x.ply: the cloud is empty"):
        read()
    for text in (False, True):
        write(tmp_path / "x.ply", [(0, 0, 0, 1, 1)] * 20, text)
        complete = (tmp_path / "x.ply").read_bytes()
        for size in (0, 3, 60, len(complete) - 5):
            (tmp_path / "x.ply").write_bytes(complete[:size])
            with pytest.raises(UserError, match=r"x.ply: not a whole PLY file") as error:
                read()
            assert "\n" not in str(error.value)
    (tmp_path / "x.ply").write_bytes(b"\x89PNG\r\n\x1a\n" * 9)
    with pytest.raises(UserError, match=r"x.ply: not a whole PLY file"):
        read()
    PlyData([PlyElement.describe(np.zeros(1, FIELDS), "splat")]).write(str(tmp_path / "x.ply"))
    with pytest.raises(UserError, match=r"x.ply: no element 'vertex'"):
        read()


def test_real_lidar_tiles_lose_nothing(real_data):
    """Projected metres survive: origin + float32 points give every cell's float64 barycentre to a hundredth of 1 mm."""
    dataset = scenes(real_data / "custom_lidar", PlyConfig.load(LIDAR))
    assert sorted(s.group for s in dataset.scenes) == ["test", "train", "train"]
    cloud = whole(dataset.scenes[0])
    grid = grid_cloud(cloud, 0.5)
    counts = np.bincount(grid.inverse)
    means = np.stack([np.bincount(grid.inverse, cloud.points[:, axis]) / counts for axis in range(3)], 1)
    assert np.abs(grid.origin + grid.points.astype(float) - means).max() < 1e-5
    assert set(np.unique(cloud.labels)) == {-1, 0, 1, 2, 3, 4}
