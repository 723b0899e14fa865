"""PLY: plyfile is the oracle."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from plyfile import PlyData, PlyElement

from dsp_sparse.data import dataset
from dsp_sparse.data.readers import ply, read_chunks
from dsp_sparse.data.readers.ply import write_ply
from dsp_sparse.errors import UserError

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]
ALL = np.dtype([(f"field_{kind}", kind) for kind in TYPES])
FORMATS = ["ascii", "little", "big"]


def read(path) -> np.ndarray:
    return np.concatenate(list(read_chunks(path)))


def all_types(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    vertices = np.empty(count, ALL)
    for name, (kind, _) in ALL.fields.items():
        if kind.kind == "f":
            vertices[name] = generator.normal(0, 1e6, count)
        else:
            limits = np.iinfo(kind)
            vertices[name] = generator.integers(limits.min, limits.max, count, kind, endpoint=True)
    return vertices


def faces(count: int, name: str = "face", longest: int = 7) -> PlyElement:
    lists = np.empty(count, [("vertex_indices", object), ("quality", "f4")])
    lists["quality"] = 0.5
    for i in range(count):
        lists["vertex_indices"][i] = np.arange(i % longest, dtype=np.int32)
    return PlyElement.describe(lists, name)


def write(path, form: str, *elements: PlyElement) -> None:
    order = {"little": "<", "big": ">", "ascii": "="}[form]
    data = PlyData(elements, text=form == "ascii", byte_order=order, comments=["a comment"], obj_info=["info"])
    data.write(str(path))


def equal(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype.newbyteorder("=")
    for name in a.dtype.names:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.filterwarnings("ignore:loadtxt")  # plyfile, on an empty list in text
@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("form", FORMATS)
def test_every_type_and_encoding(tmp_path, monkeypatch, form, chunk):
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    path = tmp_path / "wölke.ply"
    vertices = all_types(20)
    cameras = PlyElement.describe(np.zeros(3, [("f", "f8"), ("id", "u1")]), "camera")
    write(path, form, cameras, faces(5, "strip"), PlyElement.describe(vertices, "vertex"), faces(4))
    chunks = list(read_chunks(path))
    assert max(map(len, chunks)) <= chunk
    assert {part.dtype for part in chunks} == {ALL}
    equal(np.concatenate(chunks), PlyData.read(str(path))["vertex"].data)
    np.testing.assert_array_equal(np.concatenate(chunks)["field_f8"], vertices["field_f8"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    vertices=arrays.arrays(ALL, st.integers(1, 30)), chunk=st.integers(1, 40), form=st.sampled_from([*FORMATS, "ours"])
)
def test_round_trips(tmp_path, monkeypatch, vertices, chunk, form):
    """What plyfile or write_ply writes is read back bit by bit, NaN and infinities too."""
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    path = tmp_path / "a.ply"
    if form == "ours":
        write_ply(path, len(vertices), [vertices[:3], vertices[3:]])
        equal(PlyData.read(str(path))["vertex"].data, vertices)
    else:
        write(path, form, PlyElement.describe(vertices, "vertex"))
        if form == "ascii":
            vertices = PlyData.read(str(path))["vertex"].data
    equal(read(path), vertices)


@pytest.mark.parametrize("form", FORMATS)
def test_faces_are_never_read(tmp_path, form):
    """A header may promise more faces than any disk holds."""
    path = tmp_path / "a.ply"
    write(path, form, PlyElement.describe(all_types(3), "vertex"), faces(2))
    content = path.read_bytes().replace(b"element face 2", b"element face 999999999999")
    path.write_bytes(content)
    assert len(read(path)) == 3


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_named(tmp_path, form):
    """Wherever it ends: in the header, in an element before the vertices, in a vertex."""
    path = tmp_path / "a.ply"
    write(path, form, faces(3, "strip"), PlyElement.describe(all_types(5), "vertex"))
    complete = path.read_bytes()
    header = complete.index(b"end_header") + 11
    for size in (0, 2, 5, 40, header - 3, header, header + 3, header + 20, len(complete) - 70, len(complete) - 40):
        path.write_bytes(complete[:size])
        with pytest.raises(UserError, match=r"a.ply(:\d+)?: ") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_list_of_negative_length_is_empty(tmp_path):
    header = "element strip 1\nproperty list int double vertex_indices\nelement vertex 1\nproperty uchar x\n"
    content = f"ply\nformat binary_little_endian 1.0\n{header}end_header\n".encode() + b"\xff\xff\xff\xff\x07"
    (tmp_path / "a.ply").write_bytes(content)
    assert read(tmp_path / "a.ply").tolist() == [(7,)]


HEADER = "ply\nformat ascii 1.0\ncomment c\nelement vertex {0}\nproperty float x\nproperty uchar red\nend_header\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (HEADER.format(2) + "0 1\n0 256\n", "a.ply:9: '0 256', expected vertex x .float. red .uchar."),
        (HEADER.format(2) + "0 1\n0 -1\n", "a.ply:9: '0 -1'"),
        (HEADER.format(2) + "0 1\n0 1.5\n", "a.ply:9: '0 1.5'"),
        (HEADER.format(2) + "0 1\n0 nan\n", "a.ply:9: '0 nan'"),
        (HEADER.format(2) + "0 1\n0 1 2\n", "a.ply:9: '0 1 2'"),
        (HEADER.format(2) + "0\n0 1 2\n", "a.ply:8: '0'"),
        (HEADER.format(3) + "0 1\n0 1\n", "a.ply: not a whole PLY file: 2 vertices, expected the 3 of its header"),
        (HEADER.format(1) + "0 1\n\n0 1\n", "a.ply:10: more vertices, expected the 1 of its header"),
        (HEADER.format("²"), "a.ply:4: 'element vertex ²', expected a line of a PLY header"),
        (HEADER.format("-1"), "a.ply:4: 'element vertex -1', expected a line of a PLY header"),
        (HEADER.format("9" * 5000), "a.ply:4: 'element vertex 99"),
        (HEADER.format("many"), "a.ply:4: 'element vertex many', expected a line of a PLY header"),
        (HEADER.replace("float", "real").format(1), "a.ply:5: 'property real x'"),
        (HEADER.replace("ascii 1.0", "ascii 2.0").format(1), "a.ply:2: 'format ascii 2.0'"),
        (HEADER.replace("format ascii 1.0", "comment").format(1), "a.ply: the header has no format"),
        (HEADER.replace("red", "x").format(1), "a.ply: element vertex has two properties of the same name"),
        (HEADER.replace("vertex", "splat").format(1), "a.ply: no element 'vertex', expected a point cloud"),
        (HEADER.replace("property float x", "property list uchar float x").format(1), "a.ply: vertices with a list"),
        (HEADER.replace("property float x", "property list float float x").format(1), "a.ply:5: 'property list float"),
        ("PLY\n", "a.ply:1: no PLY file"),
        ("ply\ncomment c", "a.ply:2: not a whole PLY file, its header has no end_header"),
        ("ply\n" + "comment " + "c" * 2_000_000, "a.ply:2: no end_header so far, expected it within 1048576 bytes"),
        ("ply\n" + "comment c\n" * 200_000 + "end_header\n", "a.ply:104859: no end_header so far"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, monkeypatch, content, problem):
    path = tmp_path / "a.ply"
    path.write_text(content)
    for chunk in (1, 1000):
        monkeypatch.setattr(dataset, "CHUNK", chunk)
        with pytest.raises(UserError, match=problem) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_more_bytes_than_vertices_are_named(tmp_path):
    write_ply(tmp_path / "a.ply", 3, [all_types(3)])
    with (tmp_path / "a.ply").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match=r"a.ply: 2 bytes after the 3 vertices of its header"):
        read(tmp_path / "a.ply")


def test_a_text_of_other_systems_and_blank_lines(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes((HEADER.format(2) + "0.5 1\n\n1e3 255  \n\n").replace("\n", "\r\n").encode())
    assert read(path).tolist() == [(0.5, 1), (1000, 255)]
    path.write_bytes(HEADER.format(0).encode())
    assert list(read_chunks(path)) == []


def test_written_files_hold_types_that_ply_has(tmp_path):
    chunk = np.zeros(2, [("a b", "i8"), ("flag", "?"), ("half", "f2"), ("big", ">f4")])
    chunk["a b"] = [-(2**40), 7]
    chunk["flag"] = [True, False]
    chunk["half"], chunk["big"] = 0.5, 0.25
    write_ply(tmp_path / "a.ply", 4, iter([chunk, chunk]), comments=["two\nlines"])
    written = PlyData.read(str(tmp_path / "a.ply"))
    assert written.comments == ["two lines"]
    assert written["vertex"].data.dtype == [("a_b", "f8"), ("flag", "u1"), ("half", "f4"), ("big", "f4")]
    assert written["vertex"].data.tolist() == [(-(2.0**40), 1, 0.5, 0.25), (7, 0, 0.5, 0.25)] * 2
    with pytest.raises(UserError, match=r"b.ply: the field name is of type <U3, which PLY does not have"):
        write_ply(tmp_path / "b.ply", 1, [np.zeros(1, [("name", "U3")])])


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.ply").write_text("before")
    with pytest.raises(UserError, match=r"a.ply: 4 points, expected 5"):
        write_ply(tmp_path / "a.ply", 5, [all_types(4)])

    def broken():
        yield all_types(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_ply(tmp_path / "a.ply", 5, broken())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.ply", "before")]


def test_real_files(real_data):
    for path in sorted(Path(real_data).glob("**/*.ply"))[:6]:
        equal(read(path), PlyData.read(str(path))["vertex"].data)


def test_every_name_of_a_type_is_known():
    assert set(ply.TYPES.values()) == set(TYPES)
