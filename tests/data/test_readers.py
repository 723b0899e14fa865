"""Reading clouds of any format: NumPy files and LAS, and what all formats share."""

import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsp_sparse.data import dataset
from dsp_sparse.data.readers import SUFFIXES, cloud_of, columns_of, read_chunks, text
from dsp_sparse.data.readers.ply import write_ply
from dsp_sparse.errors import UserError


def read(path, columns=None) -> np.ndarray:
    return np.concatenate(list(read_chunks(path, columns)))


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1e6, 1e6, (count, 6)).round(3)


def table(values: np.ndarray) -> np.ndarray:
    names = ("x", "y", "z", "red", "green", "blue")
    return np.ascontiguousarray(values).view([(name, values.dtype) for name in names])[:, 0]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_arrays_of_any_layout(tmp_path, monkeypatch, order, chunk):
    """Rows or columns first, in a file or compressed: the points are the same, in the same order."""
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    values = np.asarray(rows(20), order=order)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "alone.npz", anything=values)
    np.savez(tmp_path / "named.npz", points=values[:, :3], colors=np.asarray(values[:, 3:], order=order))
    for name in ("a.npy", "alone.npz", "named.npz"):
        chunks = list(read_chunks(tmp_path / name))
        assert max(map(len, chunks)) <= chunk
        np.testing.assert_array_equal(np.concatenate(chunks), table(rows(20)))
    names = ["a", "b", "c", "d", "e", "f"]
    assert list(read(tmp_path / "a.npy", names).dtype.names) == names


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    kind=st.sampled_from(["<f4", ">f8", "<f2", ">i2", "u1", "?", "<i8", ">u4"]),
    count=st.integers(1, 20),
    chunk=st.integers(1, 25),
    order=st.sampled_from("CF"),
    save=st.sampled_from(["npy", "npz", "compressed"]),
)
def test_types_survive(tmp_path, monkeypatch, kind, count, chunk, order, save):
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    values = np.asarray((rows(count)[:, :3] % 100).astype(kind), order=order)
    path = tmp_path / ("a.npy" if save == "npy" else "a.npz")
    {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[save](path, values)
    found = read(path)
    for column, name in enumerate("xyz"):
        assert found[name].dtype == np.dtype(kind).newbyteorder("=")
        np.testing.assert_array_equal(found[name], values[:, column])


def test_structured_arrays(tmp_path):
    """Fields keep their names and types; fields of several columns are taken apart."""
    cloud = np.zeros(3, [("points", ">f8", (3,)), ("rgb", "u1", (3,)), ("normal", "f4", (2,)), ("label", "i8")])
    cloud["points"] = rows(3)[:, :3]
    cloud["label"] = [5, 6, 7]
    np.save(tmp_path / "a.npy", cloud)
    np.savez(tmp_path / "a.npz", cloud)
    for name in ("a.npy", "a.npz"):
        found = read(tmp_path / name)
        assert " ".join(found.dtype.names) == "x y z red green blue normal_0 normal_1 label"
        assert (found.dtype["x"], found.dtype["red"], found.dtype["label"]) == (np.float64, np.uint8, np.int64)
        np.testing.assert_array_equal(found["y"], rows(3)[:, 1])
        assert found["label"].tolist() == [5, 6, 7]


def test_an_archive_of_fields(tmp_path, monkeypatch):
    """Fields of their own, or `points` and others; a scalar is no field."""
    monkeypatch.setattr(dataset, "CHUNK", 2)
    values = rows(5)
    np.savez(
        tmp_path / "a.npz", scale=2.5, x=values[:, 0], y=values[:, 1], z=values[:, 2], label=np.arange(5, dtype="u1")
    )
    np.savez(tmp_path / "b.npz", label=np.arange(5, dtype="u1")[:, None], points=values[:, :3])
    for name in ("a.npz", "b.npz"):
        found = read(tmp_path / name)
        assert sorted(found.dtype.names) == ["label", "x", "y", "z"]
        assert found["label"].tolist() == [0, 1, 2, 3, 4] and found["label"].dtype == np.uint8
        np.testing.assert_array_equal(found["z"], values[:, 2])
    np.savez(tmp_path / "c.npz", points=values[:, :3], colors=values[:, :4])
    names = read(tmp_path / "c.npz").dtype.names
    assert " ".join(names) == "x y z colors_0 colors_1 colors_2 colors_3"


def test_an_array_of_many_fields(tmp_path):
    """A header may be longer than NumPy's own limit."""
    cloud = np.zeros(2, [("points", "f8", (3,)), *((f"a_feature_with_number_{i}", "f4") for i in range(500))])
    np.save(tmp_path / "a.npy", cloud)
    np.savez(tmp_path / "a.npz", cloud)
    for name in ("a.npy", "a.npz"):
        assert len(read(tmp_path / name).dtype) == 503


def encrypted(path):
    np.savez(path, rows(2))
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)


def broken_lzma(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("points.npy", bytes(1000))
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)


def save(**arrays):
    return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("a.npy", lambda path: path.write_bytes(b""), "not a whole .npy file"),
        ("a.npy", lambda path: path.write_bytes(b"text"), "not a whole .npy file"),
        ("a.npy", lambda path: np.save(path, rows(2)[0]), r"an array of shape \(6,\), expected"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 3, 3))), r"an array of shape \(2, 3, 3\), expected"),
        ("a.npy", lambda path: np.save(path, np.array(7.0)), r"an array of shape \(\), expected"),
        ("a.npy", lambda path: np.save(path, rows(2)[:, :4]), "4 columns without names, expected `columns`"),
        ("a.npy", lambda path: np.save(path, np.array([["a", "b", "c"]])), "points is of type <U1, expected numbers"),
        ("a.npy", lambda path: np.save(path, np.array([[1, None, 3]])), "not a whole .npy file"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\1\0\4\0{'[("), "not a whole .npy file of numbers"),
        ("a.npy", lambda path: path.write_bytes(b"PK\3\4"), "not a whole .npy file of numbers"),
        ("a.npz", encrypted, "not a whole .npz file of numbers .File 'arr_0.npy' is encrypted"),
        ("a.npz", broken_lzma, "not a whole .npz file of numbers"),
        ("a.npz", lambda path: path.write_bytes(b"PK"), "not a whole .npz file"),
        ("a.npz", lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "1"), "no arrays"),
        ("a.npz", lambda path: zipfile.ZipFile(path, "w").writestr("a.npy", "1"), "not a whole .npz file"),
        ("a.npz", save(x=np.zeros(3), y=np.zeros(4)), r"y has the shape \[4\], expected 3 rows"),
        ("a.npz", save(label=np.zeros(2), points=rows(3)), r"label has the shape \[2\], expected 3 rows"),
        ("a.npz", save(x=np.zeros(3), y=np.zeros((3, 2, 2))), r"y has the shape \[3, 2, 2\], expected 3 rows"),
        ("a.npz", save(x=np.zeros(2), points=np.zeros((2, 3))), "the field x occurs twice"),
        ("a.npz", save(x=np.zeros(2), name=np.array(["a", "b"])), "name is of type <U1, expected numbers"),
        ("a.npz", save(x=np.zeros(2), name=np.array([None, 1])), "name holds Python objects"),
        ("a.ply", lambda path: None, "no such file, expected a point cloud"),
        ("a.pcd", lambda path: path.write_bytes(b""), "unknown suffix '.pcd', expected one of .ply .las"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, write, problem):
    write(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: {problem}") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "b.npz"])
def test_a_truncated_array_is_named(tmp_path, name):
    path = tmp_path / name
    {"a.npy": np.save, "a.npz": np.savez, "b.npz": np.savez_compressed}[name](path, rows(200))
    complete = path.read_bytes()
    for size in (5, 100, len(complete) // 2, len(complete) - 8):
        path.write_bytes(complete[:size])
        with pytest.raises(UserError, match=rf"{name}: not a whole .np. file"):
            read(path)


def test_an_altered_archive_is_named(tmp_path):
    """The check sum of the archive is read with the last chunk."""
    path = tmp_path / "a.npz"
    np.savez(path, rows(200))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.npz: not a whole .npz file of numbers \(Bad CRC"):
        read(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_empty_array_has_no_chunks(tmp_path, name):
    {"a.npy": np.save, "a.npz": np.savez}[name](tmp_path / name, np.empty((0, 3)))
    assert list(read_chunks(tmp_path / name)) == []


def las(path, count: int = 20):
    laspy = pytest.importorskip("laspy")
    generator = np.random.default_rng(0)
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales, header.offsets = [0.001] * 3, [771_000, 6_277_000, 0]
    header.add_extra_dim(laspy.ExtraBytesParams("normal", "3f4"))
    header.add_extra_dim(laspy.ExtraBytesParams("YZ", "u1"))
    cloud = laspy.LasData(header)
    cloud.x = 771_000 + generator.uniform(0, 1000, count)
    cloud.y = 6_277_000 + generator.uniform(0, 1000, count)
    cloud.z = generator.uniform(-5, 90, count)
    cloud.classification = generator.integers(0, 30, count)
    cloud.red = generator.integers(0, 65536, count)
    cloud.return_number = generator.integers(1, 6, count)
    cloud.YZ = generator.integers(0, 256, count)
    cloud.normal = generator.uniform(-1, 1, (count, 3))
    cloud.write(str(path))
    return cloud


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("suffix", [".las", ".laz", ".LAZ"])
def test_las_holds_metres_and_every_dimension(tmp_path, monkeypatch, suffix, chunk):
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    path = tmp_path / f"wölke{suffix}"
    cloud = las(path)
    chunks = list(read_chunks(path))
    assert max(map(len, chunks)) <= chunk
    found = np.concatenate(chunks)
    for axis in "xyz":
        assert found[axis].dtype == np.float64
        np.testing.assert_array_equal(found[axis], np.asarray(getattr(cloud, axis)))
    for name in ("classification", "red", "return_number", "gps_time", "YZ"):
        np.testing.assert_array_equal(found[name], np.asarray(cloud[name]))
    assert (found.dtype["red"], found.dtype["classification"]) == (np.uint16, np.uint8)
    np.testing.assert_array_equal(np.stack([found[f"normal_{i}"] for i in range(3)], 1), cloud.normal)
    assert not {"X", "Y", "Z"} & set(found.dtype.names)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_a_truncated_las_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    las(path, 500)
    complete = path.read_bytes()
    for size in (0, 100, 400, len(complete) // 2, len(complete) - 10):
        path.write_bytes(complete[:size])
        with pytest.raises(UserError, match=rf"a{suffix}: not a whole LAS file") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_without_laspy_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "laspy", None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(UserError, match=r"a.las: LAS files need laspy: pip install 'dsp-sparse\[las\]'"):
        read(tmp_path / "a.las")


def test_a_chunk_becomes_a_piece_of_a_cloud(tmp_path):
    """Features are divided by the value that stands for 1 and clipped; coordinates stay float64."""
    chunk = np.zeros(2, [("X", "f8"), ("Y", "f8"), ("Z", "f4"), ("heat", "i4")])
    chunk["X"], chunk["heat"] = 771234.123, [-5, 300]
    cloud = cloud_of(chunk, tmp_path / "a.ply", {"heat": 200.0}, ["X", "Y", "Z"])
    assert (cloud.points.dtype, cloud.features.dtype, cloud.labels.dtype) == (np.float64, np.float32, np.int64)
    assert cloud.points.tolist() == [[771234.123, 0, 0]] * 2
    assert cloud.features.tolist() == [[0], [1]] and cloud.labels.tolist() == [-1, -1]
    with pytest.raises(UserError, match=r"a.ply: no field x, y, z; it has X, Y, Z, heat"):
        cloud_of(chunk, tmp_path / "a.ply", {})
    assert columns_of(chunk, tmp_path, []).shape == (2, 0)


def test_known_suffixes():
    assert SUFFIXES == (".ply", ".las", ".laz", ".npy", ".npz", ".txt", ".xyz", ".pts", ".csv", ".asc")


@pytest.mark.parametrize("name", ["text.xyz", "ascii.ply", "binary.ply", "plain.npy", "fields.npz", "columns.npz"])
def test_memory_is_bounded_by_a_chunk(tmp_path, monkeypatch, name):
    """A file of a million points is read in a tenth of the memory that its points fill."""
    monkeypatch.setattr(dataset, "CHUNK", 10_000)
    monkeypatch.setattr(text, "BLOCK", 1 << 18)
    path, count = tmp_path / name, 1_000_000
    values = np.tile(rows(1000), (1000, 1)).astype(np.float64)
    lines = "".join(" ".join(map(str, row)) + "\n" for row in values[:1000].tolist()) * 1000
    header = "".join(f"property double {name}\n" for name in table(values[:1]).dtype.names)
    if name == "text.xyz":
        path.write_text(lines)
    elif name == "ascii.ply":
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex {count}\n{header}end_header\n{lines}")
    elif name == "binary.ply":
        write_ply(path, count, [table(values)])
    elif name == "plain.npy":
        np.save(path, values)
    elif name == "fields.npz":
        np.savez_compressed(path, **{field: table(values)[field] for field in table(values).dtype.names})
    else:
        np.savez_compressed(path, points=np.asfortranarray(values))
    del lines
    next(iter(read_chunks(path)))
    tracemalloc.start()
    try:
        total = sum(map(len, read_chunks(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == count
    assert peak < values.nbytes / 10
