import numpy as np
import pytest
from clouds import whole

from dsp_sparse.data import dataset, s3dis
from dsp_sparse.data.readers import text
from dsp_sparse.errors import UserError


@pytest.fixture
def annotations(tmp_path):
    """The Annotations folder of a room with one chair of two points."""
    folder = tmp_path / "Area_5" / "hallway_6" / "Annotations"
    folder.mkdir(parents=True)
    (folder / "chair_1.txt").write_text("1.5 2.5 -0.25 255 0 51\n2 3 4 0 0 0\n")
    return folder


def load(annotations):
    (scene,) = s3dis.scenes(annotations.parents[2]).scenes
    return whole(scene)


def test_a_room_is_its_annotation_files_in_order(annotations):
    (annotations / "ceiling_1.txt").write_text("0 0 3 255 255 255\n")
    (annotations / "chair_2.txt").write_text("")
    (annotations / "._chair_1.txt").write_bytes(b"\0\5\x16\7 written by macOS")
    dataset = s3dis.scenes(annotations.parents[2])
    assert [(s.name, s.group) for s in dataset.scenes] == [("Area_5_hallway_6", "Area_5")]
    cloud = whole(dataset.scenes[0])
    assert cloud.points.dtype == np.float64
    np.testing.assert_array_equal(cloud.points, [[0, 0, 3], [1.5, 2.5, -0.25], [2, 3, 4]])
    np.testing.assert_allclose(cloud.features, [[1, 1, 1], [1, 0, 0.2], [0, 0, 0]], rtol=1e-6)
    assert [dataset.classes[label] for label in cloud.labels] == ["ceiling", "chair", "chair"]


def test_rooms_are_sorted_folders_of_areas(annotations):
    """What else lies beside rooms and areas, like an area's alignment angles, is left alone."""
    root, names = annotations.parents[2], [f"office_{i}" for i in range(9)]
    for name in reversed(names):
        (annotations.parents[1] / name / "Annotations").mkdir(parents=True)
        (annotations.parents[1] / name / "Annotations" / "wall_1.txt").write_text("0 0 0 0 0 0\n")
    (root / "Area_5.zip").write_text("")
    (root / "Area_5" / "Area_5_alignmentAngle.txt").write_text("")
    (root / "Area_5" / ".hidden").mkdir()
    assert [scene.source.name for scene in s3dis.scenes(root).scenes] == ["hallway_6", *names]


def test_files_are_named_for_their_class(annotations):
    for name in s3dis.CLASSES:
        (annotations / f"{name}_1.txt").write_text("0 0 0 0 0 0\n")
    assert load(annotations).labels.tolist() == [s3dis.CLASSES.index(name) for name in sorted(s3dis.CLASSES)]


def test_unknown_class_names_count_as_clutter(annotations):
    (annotations / "stairs_1.txt").write_text("0 0 0 1 2 3\n")
    assert load(annotations).labels.tolist() == [s3dis.CLASSES.index("chair")] * 2 + [s3dis.CLASSES.index("clutter")]


@pytest.mark.parametrize(
    "line",
    [b"-22.5 -4.75 3.0 1\x1085 187 182\n", b"-22.5 -4.75 3.0 185\x10187 182\n", b"-22.5 -4.75 3.0 1\x7f85 187 182"],
)
def test_a_stray_control_byte_does_not_change_the_numbers(annotations, line):
    (annotations / "chair_1.txt").write_bytes(b"1 2 3 4 5 6\n" + line)
    cloud = load(annotations)
    np.testing.assert_array_equal(cloud.points[1], [-22.5, -4.75, 3.0])
    np.testing.assert_allclose(cloud.features[1] * 255, [185, 187, 182], rtol=1e-6)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1 2 3 4 5", "chair_1.txt:3: '1 2 3 4 5'"),
        ("1 2 3 4 5 6 7", "chair_1.txt:3"),
        ("1 2 three 4 5 6", "chair_1.txt:3"),
        ("1 2 nan 4 5 6", "chair_1.txt:3: '1 2 nan 4 5 6', expected six numbers"),
        ("1 2 3 4 5 -1", "chair_1.txt:3: '1 2 3 4 5 -1', expected six numbers"),
        ("1 2 3 4 5 600", "chair_1.txt:3: '1 2 3 4 5 600', expected six numbers x y z r g b, colours from 0 to 255"),
    ],
)
def test_a_bad_line_is_named(annotations, line, problem):
    with (annotations / "chair_1.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=problem) as error:
        load(annotations)
    assert "\n" not in str(error.value)


def test_a_file_whose_lines_all_have_five_numbers_is_bad(annotations):
    (annotations / "chair_1.txt").write_text("1 2 3 4 5\n" * 6)
    with pytest.raises(UserError, match=r"chair_1.txt:1: '1 2 3 4 5', expected six numbers"):
        load(annotations)


def test_lines_of_wrong_length_do_not_make_up_for_each_other(annotations):
    (annotations / "chair_1.txt").write_text("1 2 3 4 5\n1 2 3 4 5 6 7\n")
    with pytest.raises(UserError, match=r"chair_1.txt:1: '1 2 3 4 5'"):
        load(annotations)


def test_a_room_is_the_same_in_pieces_of_any_size(annotations, monkeypatch):
    """A stray byte is mended wherever a chunk or a block begins, and a bad line keeps its number."""
    lines = [b"%d.5 2 3 4 5 6" % i for i in range(50)]
    lines[33:35] = b"33\x10.5 2 3 4 5 6", b"34.5 2 3 4\x055 6"
    (annotations / "chair_1.txt").write_bytes(b"\r\n".join(lines))
    (annotations / "table_1.txt").write_bytes(b"9 9 9 9 9 9\n\n8 8 8 8 8 8\n")
    expected = load(annotations)
    assert expected.points[:50, 0].tolist() == [i + 0.5 for i in range(50)]
    for chunk, block in ((1, 40), (7, 1000), (1000, 64)):
        monkeypatch.setattr(dataset, "CHUNK", chunk)
        monkeypatch.setattr(text, "BLOCK", block)
        (scene,) = s3dis.scenes(annotations.parents[2]).scenes
        assert max(len(piece.points) for piece in scene.read()) <= chunk
        for name in ("points", "features", "labels"):
            np.testing.assert_array_equal(getattr(load(annotations), name), getattr(expected, name))
        (annotations / "wall_1.txt").write_bytes(b"\n".join([*lines, b"1 2 3 4 5 x", b"1"]))
        with pytest.raises(UserError, match=r"wall_1.txt:51: '1 2 3 4 5 x'"):
            load(annotations)
        (annotations / "wall_1.txt").unlink()


def test_what_is_missing_is_named(annotations, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        s3dis.scenes(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no rooms found"):
        s3dis.scenes(annotations)
    (annotations / "chair_1.txt").write_text("")
    with pytest.raises(UserError, match="hallway_6: the cloud is empty"):
        load(annotations)
    (annotations / "chair_1.txt").rename(annotations / ".chair_1.txt")
    with pytest.raises(UserError, match="hallway_6: no Annotations"):
        s3dis.scenes(tmp_path)


def test_real_room(real_data):
    (scene,) = s3dis.scenes(real_data / "s3dis" / "Stanford3dDataset_v1.2_Aligned_Version").scenes
    cloud = whole(scene)
    assert (scene.name, scene.group, len(cloud.points)) == ("Area_3_hallway_3", "Area_3", 175_075)
    names = {s3dis.CLASSES[label] for label in np.unique(cloud.labels)}
    assert names == {"ceiling", "clutter", "door", "floor", "wall"}
    floor, ceiling = (np.median(cloud.points[cloud.labels == s3dis.CLASSES.index(c), 2]) for c in ("floor", "ceiling"))
    assert 2 < ceiling - floor < 3
