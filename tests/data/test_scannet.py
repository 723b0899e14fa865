import json

import numpy as np
import pytest
from clouds import whole
from plyfile import PlyData, PlyElement

from dsp_sparse.data import dataset as dataset_module
from dsp_sparse.data import scannet
from dsp_sparse.data.clouds import read_cloud
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
    (cloud,) = read_cloud(path, scannet.COLOURS)
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
    with pytest.raises(UserError, match=rf"{NAME}: no labels, expected {NAME}_vh.*.ply or {NAME}.aggregation"):
        whole(scene)
    (root / "scannetv2_train.txt").write_text("scene0707_00\n")
    with pytest.raises(UserError, match=r"scene0707_00: no such folder, expected the scene that scannetv2_train.txt"):
        scannet.scenes(root)
    (root / "scannetv2_train.txt").unlink()
    with pytest.raises(UserError, match="no split file"):
        scannet.scenes(root)


def test_more_labels_than_points_are_named(root, monkeypatch):
    labels = root / "scans" / NAME / f"{NAME}_vh_clean_2.labels.ply"
    for count in (2, 4):
        for chunk in (1, 2, 10):
            monkeypatch.setattr(dataset_module, "CHUNK", chunk)
            write(labels, [("label", "u2")], [(1,)] * count)
            with pytest.raises(UserError, match=rf"labels.ply: {count} labels, expected 3, one a point of"):
                whole(scannet.scenes(root).scenes[0])


def test_scenes_of_the_test_split_lie_apart_and_need_no_labels(root):
    name = "scene0707_00"
    (root / "scannetv2_test.txt").write_text(f"{name}\n{NAME}\n")
    (root / "scans_test" / name).mkdir(parents=True)
    write(root / "scans_test" / name / f"{name}_vh_clean_2.ply", FIELDS, [(1, 2, 3, 4, 5, 6, 7)])
    dataset = scannet.scenes(root)
    assert [(s.name, s.group) for s in dataset.scenes] == [(NAME, "train"), (name, "test"), (NAME, "test")]
    assert whole(dataset.scenes[1]).labels.tolist() == [-1]
    assert whole(dataset.scenes[2]).labels.tolist() == [0, -1, 19]


def test_every_split_has_its_folder(root):
    """Only the test split lies in `scans_test/` and only it may lack labels; blanks in its list mean nothing."""
    (root / "scans_test" / NAME).mkdir(parents=True)
    (root / "scannetv2_train.txt").write_text(f"\n{NAME} \n\n")
    for split in ("val", "test"):
        (root / f"scannetv2_{split}.txt").write_text(NAME)
    dataset = scannet.scenes(root)
    assert [scene.source.parent.name for scene in dataset.scenes] == ["scans", "scans", "scans_test"]
    (root / "scans" / NAME / f"{NAME}_vh_clean_2.labels.ply").unlink()
    for scene in dataset.scenes[:2]:
        with pytest.raises(UserError, match=f"{NAME}: no labels"):
            whole(scene)


def test_a_labels_file_goes_before_the_annotators_words(root):
    (root / "scans" / NAME / f"{NAME}.aggregation.json").write_text("not read")
    assert whole(scannet.scenes(root).scenes[0]).labels.tolist() == [0, -1, 19]


TABLE = """id\traw_category\tcategory\tnyu40id\n1\t"L" desk\tdesk\t14\n2\tfloor\tfloor\t2\n3\trug\trug\t20\n"""


@pytest.fixture
def annotated(root):
    """The labels as the annotators gave them: segments, groups of them, and the table of their words."""
    folder = root / "scans" / NAME
    (folder / f"{NAME}_vh_clean_2.labels.ply").unlink()
    (folder / f"{NAME}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": [7, 5, 3]}))
    groups = [{"label": '"L" desk', "segments": [5]}, {"label": "rug", "segments": [3]}]
    (folder / f"{NAME}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    (root / "scannetv2-labels.combined.tsv").write_text(TABLE)
    return root


def test_labels_come_from_the_annotators_words(annotated):
    """A vertex of no group has no label, and neither has one of a category outside the benchmark."""
    (scene,) = scannet.scenes(annotated).scenes
    assert whole(scene).labels.tolist() == [-1, scannet.CLASSES.index("desk"), -1]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("scannetv2-labels.combined.tsv", None, "combined.tsv: no such file, expected the table of raw categories"),
        ("scannetv2-labels.combined.tsv", "a\tb\n", "combined.tsv:1: no column nyu40id, raw_category"),
        ("scannetv2-labels.combined.tsv", TABLE + "4\tcat\tcat\t\n", "combined.tsv:5: nyu40id '', expected a whole"),
        ("scannetv2-labels.combined.tsv", TABLE + "4\tcat\tcat\t²\n", "combined.tsv:5: nyu40id '²', expected a whole"),
        ("scannetv2-labels.combined.tsv", TABLE + "4\tcat\n", "combined.tsv:5: nyu40id None, expected a whole"),
        ("{0}.aggregation.json", "[]", "aggregation.json: not a JSON file with a list 'segGroups'"),
        ("{0}.aggregation.json", "{}", "aggregation.json: not a JSON file with a list 'segGroups'"),
        (
            "{0}.aggregation.json",
            '{"segGroups": [{"label": "rug", "segments": null}]}',
            "segments None, expected a list of whole numbers",
        ),
        ("{0}_vh_clean_2.0.010000.segs.json", '{"segIndices": []}', "segs.json: 0 labels, expected 3"),
        ("{0}_vh_clean_2.0.010000.segs.json", '{"segIndices": [[1], [2], [3]]}', "segments .*, expected a list"),
        ("{0}.aggregation.json", "{{", "aggregation.json: not a JSON file with a list 'segGroups'"),
        (
            "{0}.aggregation.json",
            '{"segGroups": [{"label": "cat", "segments": []}]}',
            "label 'cat', expected a raw_cat",
        ),
        (
            "{0}.aggregation.json",
            '{"segGroups": [{"segments": [3]}]}',
            "a group .*expected one with label",
        ),
        (
            "{0}.aggregation.json",
            '{"segGroups": [{"label": "rug", "segments": ["a"]}]}',
            "segments .*, expected a list",
        ),
        ("{0}_vh_clean_2.0.010000.segs.json", None, "segs.json: not a JSON file"),
        ("{0}_vh_clean_2.0.010000.segs.json", '{"segIndices": [1, 2]}', "segs.json: 2 labels, expected 3"),
        ("{0}_vh_clean_2.0.010000.segs.json", '{"segIndices": [1, 2, "x"]}', "segments .*, expected a list"),
        ("{0}_vh_clean_2.0.010000.segs.json", '{"segIndices": [1, 2, -1]}', "segments .*, expected a list"),
    ],
)
def test_a_broken_annotation_is_named(annotated, file, content, problem):
    folder = annotated if file.endswith(".tsv") else annotated / "scans" / NAME
    path = folder / file.format(NAME)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=problem) as error:
        whole(scannet.scenes(annotated).scenes[0])
    assert "\n" not in str(error.value)


def test_real_scenes(real_data):
    dataset = scannet.scenes(real_data / "scannet")
    assert [s.group for s in dataset.scenes].count("val") == 2
    for scene in dataset.scenes[:2]:
        cloud = whole(scene)
        assert len(cloud.points) == 50_000
        assert cloud.labels.min() == -1
        assert {"wall", "floor"} <= {dataset.classes[label] for label in np.unique(cloud.labels) if label >= 0}
