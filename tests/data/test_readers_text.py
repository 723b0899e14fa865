"""Text files: what a line may look like, which line is wrong, and numbers that are exactly Python's."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsp_sparse.data import dataset
from dsp_sparse.data.readers import read_chunks, text
from dsp_sparse.errors import UserError


def read(path, columns=None) -> np.ndarray:
    return np.concatenate(list(read_chunks(path, columns)))


def values(chunk: np.ndarray) -> list:
    return [list(row) for row in chunk.tolist()]


@pytest.mark.parametrize(
    "content",
    [
        b"1 2 3\n4 5 6\n",
        b"1 2 3\n4 5 6",
        b"1 2 3\r\n4 5 6\r\n",
        b"1\t2\t3\n4   5\t 6  \n",
        b"\n  1 2 3\n\n\n4 5 6\n \n",
        b"1,2,3\n4, 5 ,6\n",
        b"1;2;3\n4;5;6\n",
        b"# made by a scanner\n1 2 3 # first\n#between\n4 5 6\n",
        b"// made by a scanner\n1 2 3\n4 5 6\n",
        b"x y z\n1 2 3\n4 5 6\n",
        b"X,Y,Z\n1,2,3\n4,5,6\n",
        b'"x";"y";"z"\n1;2;3\n4;5;6\n',
        b"# comment\n//X Y Z\n1 2 3\n4 5 6\n",
        b"\xef\xbb\xbfx y z\n1 2 3\n4 5 6\n",
        b"1.0 +2 3e0\n4. 0.5e1 600E-2\n",
    ],
)
def test_all_kinds_of_lines(tmp_path, content):
    for suffix in (".txt", ".xyz", ".csv", ".asc", ".pts", ".TXT"):
        path = tmp_path / f"wölke 1{suffix}"
        path.write_bytes(content)
        chunk = read(path)
        assert chunk.dtype == [("x", "f8"), ("y", "f8"), ("z", "f8")]
        assert values(chunk) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("suffix", "content", "columns", "names"),
    [
        (".txt", "0 0 0 1 2 3", None, "x y z red green blue"),
        (".pts", "2\n0 0 0 9\n0 0 0 9", None, "x y z intensity"),
        (".pts", "1\n0 0 0 9 1 2 3", None, "x y z intensity red green blue"),
        (".txt", "0 0 0 9", ["x", "y", "z", "heat"], "x y z heat"),
        (".txt", "//X Y Z R G B Scalar_field\n0 0 0 1 2 3 9", None, "x y z red green blue scalar_field"),
        (".csv", "x,y,z,label\n0,0,0,1", ["a", "b", "c", "d"], "x y z label"),
        (".txt", "# x y\n0 0 0", None, "x y z"),
        (".txt", "# three numbers a\n0 0 0", None, "x y z"),
        (".txt", "# x y z of a scanner\n0 0 0", None, "x y z"),
        (".txt", "# X Y Z Heat\n\n0 0 0 9", None, "x y z heat"),
        (".pts", "# X Y Z Heat\n1\n0 0 0 9", None, "x y z heat"),
        (".pts", "0\n", None, "x y z"),
    ],
)
def test_columns_are_named_by_the_file_or_else_by_the_user(tmp_path, suffix, content, columns, names):
    path = tmp_path / f"a{suffix}"
    path.write_text(content)
    for chunk in read_chunks(path, columns):
        assert " ".join(chunk.dtype.names) == names


@pytest.mark.parametrize(
    ("suffix", "content", "problem"),
    [
        (".txt", b"1 2 3\n1 2\n1 2 3 4\n", "a.txt:2: '1 2', expected 3 numbers x y z"),
        (".txt", b"1 2 3\n1 2 3 4\n1 2\n", "a.txt:2: '1 2 3 4', expected 3"),
        (".txt", b"# note\nx y z\n\n1 2 3\n1 2 three\n", "a.txt:5: '1 2 three'"),
        (".txt", b"x y z\n1 2\n", "a.txt:2: '1 2', expected 3 numbers x y z"),
        (".txt", b"1 2 three\n", "a.txt:1: '1 2 three'"),
        (".txt", b"1 2 3\n1 2 1_0\n", "a.txt:2"),
        (".txt", b"1 2 3\n1 2 0x10\n", "a.txt:2"),
        (".txt", b"1 2 3\n1 2\x00 3\n", "a.txt:2"),
        (".txt", b"1 2 3\n1\x105 2 3\n", "a.txt:2"),
        (".txt", b"1 2 3\n\xff\xfe 2 3\n", "a.txt:2"),
        (".txt", "1 2 3\n\u0661 2 3\n".encode(), "a.txt:2"),
        (".txt", b"1 2 3\n1\x0b2 3\n", "a.txt:2: '1.x0b2 3', expected 3"),
        (".txt", "1 2 3\r\n4 5 6\r\n".encode("utf-16"), "a.txt: a zero byte in the first line, expected text in UTF-8"),
        (".txt", "1 2 3".encode("utf-16-be"), "a.txt: a zero byte in the first line"),
        (".txt", b"1 2 3\n1 2 NA\n", "a.txt:2: '1 2 NA'"),
        (".txt", b"1 2 nan\n1 2\n", "a.txt:2: '1 2'"),
        (".csv", b"1,2,nan\n1,,3\n", "a.csv:2: '1,,3'"),
        (".pts", b"9" * 5000 + b"\n1 2 3\n", "a.pts"),
        (".csv", b"1,2,3\n1,,3\n", "a.csv:2: '1,,3'"),
        (".csv", b"1,2,3\n1 2 3\n", "a.csv:2"),
        (".csv", b"1;2,5;3\n", "a.csv:1: '1;2,5;3', expected 3 numbers"),
        (".txt", b"1 2 3 4\n", "a.txt: 4 columns without names, expected `columns` to name them"),
        (".txt", b"x y x\n1 2 3\n", "a.txt:1: the column name 'x' occurs twice"),
        (".pts", b"3\n1 2 3\n4 5 6\n", "a.pts: 2 points, expected the 3 that its first line says"),
        (".pts", b"1\n1 2 3\n4 5 6\n", "a.pts: 2 points, expected the 1"),
        (".txt", b"\x89PNG\r\n\x1a\n\x00\x01", "a.txt"),
    ],
)
def test_a_bad_line_is_named(tmp_path, monkeypatch, suffix, content, problem):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for chunk in (1, 2, 1000):
        monkeypatch.setattr(dataset, "CHUNK", chunk)
        with pytest.raises(UserError, match=problem) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_other_names_than_columns_are_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 2 3\n")
    for columns in (["x", "y"], ["x", "y", "y"]):
        with pytest.raises(UserError, match=r"a.txt: 3 columns, expected \d with distinct names: x y"):
            read(path, columns)


def test_a_file_without_lines_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 100)
    (tmp_path / "a.txt").write_bytes(b"1 2 3\n" + b"7" * 1000)
    with pytest.raises(UserError, match=r"a.txt:2: more than 100 bytes, expected lines of numbers"):
        read(tmp_path / "a.txt")


def test_not_a_number_and_infinity_are_numbers(tmp_path):
    """Whether they are wanted is for the data set to say."""
    (tmp_path / "a.txt").write_text("1 2 3\nnan -inf 1e400\n")
    assert math.isnan(read(tmp_path / "a.txt")["x"][1])
    assert values(read(tmp_path / "a.txt")[["y", "z"]]) == [[2, 3], [-math.inf, math.inf]]


@pytest.mark.parametrize("word", ["nan", "-nan", "NaN", "NAN"])
def test_not_a_number_does_not_slow_a_block_down(tmp_path, monkeypatch, word):
    """However programs spell it, the block is parsed at once."""
    monkeypatch.setattr(text, "_parse_by_line", None)
    (tmp_path / "a.txt").write_text(f"1 2 3\n4 5 {word}\n")
    np.testing.assert_array_equal(values(read(tmp_path / "a.txt")), [[1, 2, 3], [4, 5, np.nan]])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3), min_size=1, max_size=20),
    chunk=st.integers(1, 25),
    block=st.integers(100, 300),
    ends=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_chunks_are_invisible(tmp_path, monkeypatch, rows, chunk, block, ends):
    """Any numbers, in chunks and blocks of any size, are those that were written."""
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    monkeypatch.setattr(text, "BLOCK", block)
    path = tmp_path / "a.xyz"
    path.write_bytes(ends.join(" ".join(map(repr, row)) for row in rows).encode())
    chunks = list(read_chunks(path))
    assert max(map(len, chunks)) <= chunk
    np.testing.assert_array_equal(values(np.concatenate(chunks)), rows)


@pytest.mark.parametrize("digits", [0, 1, 3, 6, 9, 17])
def test_decimals_are_those_of_python(tmp_path, digits):
    """Coordinates of rooms and projected ones lose not a bit, whatever the number of digits."""
    generator = np.random.default_rng(digits)
    points = generator.uniform(-30, 30, (4000, 3)) + generator.choice([0, 771234, 6277551.123], (4000, 3))
    content = "".join(f"%.{digits}f %.{digits}f %.{digits}f\n" % tuple(row) for row in points.tolist())
    (tmp_path / "a.txt").write_text(content)
    expected = np.array([float(word) for word in content.split()]).reshape(-1, 3)
    np.testing.assert_array_equal(values(read(tmp_path / "a.txt")), expected)
