from pathlib import Path

import numpy as np
import pytest
import yaml
from clouds import whole
from plyfile import PlyData, PlyElement

from dsp_sparse.data import dataset as dataset_module
from dsp_sparse.data import prepare
from dsp_sparse.data.clouds import CloudConfig, read_cloud, scenes
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


def config(tmp_path, **changes) -> CloudConfig:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}, sort_keys=False))
    return CloudConfig.load(path)


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


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"typo": 1}, "mine.yaml: there is no setting typo, expected name, groups, "),
        ({"groups": 3}, "mine.yaml: groups must be names with values, got 3$"),
        ({"label": [3]}, r"mine.yaml: label must be text or null, got \[3\]$"),
        ({"features": {"intensity": "bright"}}, "mine.yaml: features must be a finite number, got bright$"),
        ({"coordinates": "x"}, r"mine.yaml: coordinates must be a list like \[a, b\], got x$"),
        ({"groups": {}}, "mine.yaml: groups is {}, expected group names, each with patterns of files"),
        ({"groups": {"train": []}}, r"mine.yaml: groups is {'train': \[\]}, expected group names"),
        (
            {"groups": {"train": [""]}},
            "mine.yaml: groups has the pattern '', expected one below the folder, not hidden",
        ),
        ({"groups": {"train": ["/a.ply"]}}, "mine.yaml: groups has the pattern '/a.ply', expected one below"),
        ({"groups": {"train": [".trash/*"]}}, r"mine.yaml: groups has the pattern '.trash/\*', expected one below"),
        ({"groups": {"train": ["a/../*"]}}, r"mine.yaml: groups has the pattern 'a/../\*', expected one below"),
        ({"classes": {"ground": ["two"]}}, "mine.yaml: classes must be a whole number, got two$"),
        ({"classes": {}}, "mine.yaml: label is 'kind' but classes is empty"),
        ({"classes": {"ground": [2], "plant": [2]}}, "mine.yaml: id 2 is listed twice"),
        ({"ignore": [3]}, "mine.yaml: id 3 is listed twice"),
        ({"features": {"intensity": float("nan")}}, "mine.yaml: features.intensity is nan"),
        ({"coordinates": ["X", "Y"]}, r"mine.yaml: coordinates names the fields \['X', 'Y'\], expected three"),
        ({"coordinates": ["X", "Y", "X"]}, "mine.yaml: coordinates names .*, expected three different ones"),
        ({"features": {"intensity": 0}}, "mine.yaml: features.intensity is 0"),
    ],
)
def test_a_bad_yaml_is_named_with_its_key(tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem) as error:
        config(tmp_path, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [x\n", "not YAML in line 2, column 1: .*expected ',' or ']', but got '<stream end>'$"),
        ("\tgroups: 3\n", "not YAML in line 1, column 1: .*that cannot start any token$"),
        ("- name\n- groups\n", "expected settings by name, got a list$"),
        ("", "expected settings by name, got nothing$"),
        ("name: x\n", "required: groups$"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path, text, problem):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=f"mine.yaml: .*{problem}") as error:
        CloudConfig.load(tmp_path / "mine.yaml")
    assert "unicode string" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": {"ground": [2]}}, "one.ply: kind has ids 4, expected ids of"),
        ({"label": "class"}, "one.ply: no field class; it has X, Y, Z, intensity, kind"),
        ({"features": {"red": 255, "green": 255}}, "one.ply: no field red, green"),
    ],
)
def test_a_file_that_does_not_fit_the_yaml_is_named(folder, tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        whole(scenes(folder, config(tmp_path, **changes)).scenes[0])


def test_files_are_in_one_group_and_patterns_match(folder, tmp_path):
    with pytest.raises(UserError, match=r"no file matches 'c/\*.ply' of group 'test'"):
        scenes(folder, config(tmp_path, groups={"test": ["c/*.ply"]}))
    assert len(scenes(folder, config(tmp_path, groups={"all": ["a/*.ply", "**/*.ply"]})).scenes) == 2
    with pytest.raises(UserError, match=r"b.ply: in the groups 'train' and 'test'"):
        scenes(folder, config(tmp_path, groups={"train": ["**/*.ply"], "test": ["b.ply"]}))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        scenes(tmp_path / "nowhere", config(tmp_path))
    with pytest.raises(UserError, match=r"b.ply: a file, expected a folder of point clouds"):
        scenes(folder / "b.ply", config(tmp_path))
    with pytest.raises(UserError, match=r"none.yaml: no such file"):
        CloudConfig.load(tmp_path / "none.yaml")


def test_hidden_files_are_no_clouds(folder, tmp_path):
    """Neither what macOS puts beside a file nor what lies in a hidden folder."""
    expected = [s.name for s in scenes(folder, config(tmp_path, groups={"all": ["**/*.ply"]})).scenes]
    assert expected == ["a_one", "b"]
    write(folder / "a" / "._one.ply", [(0, 0, 0, 0, 0)])
    write(folder / ".trash" / "two.ply", [(0, 0, 0, 0, 0)])
    assert [s.name for s in scenes(folder, config(tmp_path, groups={"all": ["**/*.ply"]})).scenes] == expected


def test_every_format_is_a_scene(tmp_path):
    """Text without a header and plain arrays take their columns from the YAML: coordinates, features, label."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = np.array([[7e5 + 0.125, 6e6, 1, 50, 2], [1, 2, 3, 100, 4]])
    np.savetxt(folder / "text.xyz", rows, "%.3f")
    np.save(folder / "plain.npy", rows)
    np.savez(folder / "fields.npz", **dict(zip(("X", "Y", "Z", "intensity", "kind"), rows.T, strict=True)))
    dataset = scenes(folder, config(tmp_path, groups={"all": ["*"]}))
    assert [s.name for s in dataset.scenes] == ["fields", "plain", "text"]
    for scene in dataset.scenes:
        cloud = whole(scene)
        np.testing.assert_array_equal(cloud.points, rows[:, :3])
        np.testing.assert_allclose(cloud.features, [[0.5], [1]])
        assert cloud.labels.tolist() == [0, 1]
    swapped = config(tmp_path, groups={"all": ["text.xyz"]}, columns=["Y", "X", "Z", "kind", "intensity"])
    with pytest.raises(UserError, match=r"text.xyz: kind has ids 50, 100, expected ids of"):
        whole(scenes(folder, swapped).scenes[0])
    with pytest.raises(UserError, match=r"text.xyz: 5 columns, expected 4 with distinct names: X Y Z kind"):
        whole(scenes(folder, config(tmp_path, groups={"all": ["text.xyz"]}, features={})).scenes[0])
    (folder / "notes.md").write_text("")
    with pytest.raises(UserError, match=r"notes.md: in the group 'all', expected one of \.ply"):
        scenes(folder, config(tmp_path, groups={"all": ["*"]}))


@pytest.mark.parametrize("label", ["2.5", "nan", "1e30"])
def test_a_label_is_a_whole_number(tmp_path, label):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(f"x y z intensity kind\n0 0 0 1 2\n0 0 0 1 {label}\n")
    settings = config(tmp_path, groups={"all": ["a.txt"]}, coordinates=["x", "y", "z"])
    with pytest.raises(UserError, match=r"a.txt: kind has ids (2.5|nan|1e\+30), expected ids of classes or ignore"):
        whole(scenes(tmp_path / "data", settings).scenes[0])


def test_a_cloud_is_the_same_in_pieces_of_any_size(folder, tmp_path, monkeypatch):
    expected = whole(scenes(folder, config(tmp_path)).scenes[0])
    monkeypatch.setattr(dataset_module, "CHUNK", 1)
    scene = scenes(folder, config(tmp_path)).scenes[0]
    assert [len(piece.points) for piece in scene.read()] == [1, 1, 1]
    for name in ("points", "features", "labels"):
        np.testing.assert_array_equal(getattr(whole(scene), name), getattr(expected, name))


def test_links_to_folders_are_followed(folder, tmp_path):
    """Scans often lie on another disk."""
    write(tmp_path / "disk" / "far.ply", [(0, 0, 0, 0, 0)])
    (folder / "link").symlink_to(tmp_path / "disk")
    found = scenes(folder, config(tmp_path, groups={"all": ["**/*.ply"]})).scenes
    assert [scene.name for scene in found] == ["a_one", "b", "link_far"]


def test_a_store_says_which_fields_are_coordinates(folder, tmp_path):
    """What is trained on it reads the same fields of new clouds."""
    store = prepare(scenes(folder, config(tmp_path)), tmp_path / "store", grid=0.5, progress=False)
    assert store.coordinates == CONFIG["coordinates"] == ["X", "Y", "Z"]


@pytest.mark.parametrize("chunk", [1, 100])
def test_a_cloud_for_prediction_is_checked(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(dataset_module, "CHUNK", chunk)
    path = tmp_path / "x.txt"
    path.write_text("0 0 0 51 0 0\n0 0 inf 1 1 1\n")
    with pytest.raises(UserError, match=r"x.txt: point 2 has coordinates \[0.0, 0.0, inf\], expected finite"):
        list(read_cloud(path, {"red": 255.0}))
    path.write_text("0 0 0 51 0 0\n0 0 0 1 2 3\n0 0 0 1 nan 1\n")
    with pytest.raises(UserError, match=r"x.txt: point 3 has features \[0.00\d+, nan, 0.00\d+\], expected finite"):
        list(read_cloud(path, {"red": 255.0, "green": 255.0, "blue": 255.0}))
    path.write_text("")
    with pytest.raises(UserError, match=r"x.txt: the cloud is empty"):
        list(read_cloud(path, {"red": 255.0}))
    path.write_text("0 0 0 51\n")
    (cloud,) = read_cloud(path, {"heat": 100.0}, columns=["x", "y", "z", "heat"])
    np.testing.assert_allclose(cloud.features, [[0.51]])
    assert cloud.labels.tolist() == [-1]
    (cloud,) = read_cloud(path, {}, ["heat", "y", "z"], ["x", "y", "z", "heat"])
    assert cloud.points.tolist() == [[51, 0, 0]]


def test_real_lidar_tiles_lose_nothing(real_data):
    """Projected metres are float64, every class of the file is there."""
    dataset = scenes(real_data / "custom_lidar", CloudConfig.load(LIDAR))
    assert sorted(s.group for s in dataset.scenes) == ["test", "train", "train"]
    cloud = whole(dataset.scenes[0])
    vertex = PlyData.read(str(dataset.scenes[0].source))["vertex"].data
    np.testing.assert_array_equal(cloud.points, np.stack([vertex[axis] for axis in "xyz"], 1))
    assert set(np.unique(cloud.labels)) == {-1, 0, 1, 2, 3, 4}
