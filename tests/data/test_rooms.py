import os
import subprocess
import sys
import time

import numpy as np
import pytest
from clouds import whole

from dsp_sparse.data import generate_rooms, s3dis
from dsp_sparse.data.furniture import OPTIONAL, furnish
from dsp_sparse.data.rooms import format_lines, make_room
from dsp_sparse.errors import UserError
from dsp_sparse.files import locked


def room(area, number, points, seed):
    """A room: its points, and the class of each."""
    cloud, objects, names = make_room(area, number, points, seed)
    return cloud, np.array([name.rsplit("_", 1)[0] for name in names])[objects]


def test_two_rooms_of_an_area_have_all_classes_between_them():
    for area in range(2):
        for number in range(2):
            pair = [set(room(area, number + i, 10_000, seed=3)[1]) for i in range(2)]
            assert set.union(*pair) == set(s3dis.CLASSES)


def test_classes_a_room_must_have_are_there():
    everywhere = {"ceiling", "floor", "wall", "door", "table", "chair", "clutter"}
    for seed in range(25):
        for kind in ("office", "conferenceRoom", "lounge"):
            furnished = furnish(kind, set(OPTIONAL), np.random.default_rng(seed))
            assert everywhere | set(OPTIONAL) <= set(furnished.classes)


def test_a_room_depends_on_seed_area_and_number_alone():
    first, objects, names = make_room(0, 1, 3000, seed=5)
    again, same_objects, same_names = make_room(0, 1, 3000, seed=5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(objects, same_objects)
    assert names == same_names
    for other in (make_room(0, 1, 3000, seed=6), make_room(1, 1, 3000, seed=5), make_room(0, 4, 3000, seed=5)):
        assert not np.array_equal(first, other[0])


def test_a_room_looks_like_a_room():
    cloud, names = room(0, 0, 30_000, seed=1)
    height = cloud[:, 2]
    assert len(cloud) == 30_000
    assert abs(np.median(height[names == "floor"])) < 0.02
    assert 2.5 < np.median(height[names == "ceiling"]) < 3.3
    assert 0.4 < np.median(height[names == "chair"]) < 0.8
    assert (cloud[:, 3:] == cloud[:, 3:].round()).all()
    assert cloud[:, 3:].min() >= 0
    assert cloud[:, 3:].max() <= 255
    # Scanner noise: a flat floor is rough by some millimetres.
    assert 0.0005 < np.median(np.abs(height[names == "floor"])) < 0.01


def test_density_falls_with_distance_from_the_scanners():
    """A uniform sampling of the floor has a nearly even count a cell (Poisson); a scan has not."""
    cloud, names = room(0, 0, 60_000, seed=1)
    floor = cloud[names == "floor"]
    counts = np.unique((floor[:, :2] / 0.25).astype(int), axis=0, return_counts=True)[1]
    assert counts.var() > 3 * counts.mean()


def test_colour_alone_does_not_name_the_class():
    """The best class for every coarse colour is right in fewer than two thirds of the points of unseen rooms."""

    def colours(numbers):
        rooms = [room(0, number, 5000, seed=2) for number in numbers]
        cells = (np.concatenate([cloud for cloud, _ in rooms])[:, 3:] // 32).astype(int) @ [64, 8, 1]
        names = [s3dis.CLASSES.index(name) for _, names in rooms for name in names]
        return cells, np.array(names)

    counts = np.zeros((512, 13))
    np.add.at(counts, colours(range(12)), 1)
    cells, names = colours(range(12, 18))
    assert (counts.argmax(1)[cells] == names).mean() < 0.67


def test_rooms_are_written_in_the_layout_of_s3dis(tmp_path):
    out = generate_rooms(tmp_path / "rooms", rooms=3, points=2000, seed=0, areas=2)
    dataset = s3dis.scenes(out)
    assert [s.name for s in dataset.scenes] == ["Area_1_conferenceRoom_2", "Area_1_office_1", "Area_2_office_1"]
    cloud = whole(dataset.scenes[1])
    expected, objects, names = make_room(0, 0, 2000, 0)
    owners = np.array(names)[objects]
    order = np.argsort(owners, kind="stable")
    np.testing.assert_allclose(cloud.points, expected[order, :3], atol=0.00051)
    np.testing.assert_allclose(cloud.features * 255, expected[order, 3:], atol=1e-4)
    assert [s3dis.CLASSES[c] for c in cloud.labels] == [name.rsplit("_", 1)[0] for name in owners[order]]


def test_lines_are_those_of_a_format_string():
    """Numbers that are looked up read as `%.3f` and `%d` write them, signs, zeros and carries included."""
    generator = np.random.default_rng(0)
    edges = [0.0, -0.0, -0.0004, 0.0004, 0.9996, -0.9996, 9.9999, -9.9999, 1234.5, -1234.5, 100.0, 7.05]
    cloud = np.concatenate([generator.normal(0, 30, (5000, 3)), np.resize(edges, (9, 3))])
    cloud = np.column_stack([cloud, generator.integers(0, 256, cloud.shape)])
    expected = "".join(("{:.3f} " * 3 + "{:.0f} {:.0f} {:.0f}\n").format(*line) for line in cloud)
    assert format_lines(cloud).tobytes().replace(b"\0", b"").decode() == expected


def test_any_number_of_workers_makes_the_same_rooms(tmp_path):
    one, two = (generate_rooms(tmp_path / str(n), rooms=3, points=1000, seed=4, areas=2, workers=n) for n in (1, 2))
    files = sorted(path.relative_to(one) for path in one.rglob("*.txt"))
    assert files and files == sorted(path.relative_to(two) for path in two.rglob("*.txt"))
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_finished_rooms_are_skipped_and_other_arguments_refused(tmp_path):
    out = generate_rooms(tmp_path / "rooms", rooms=2, points=1000, seed=0, areas=1)
    files = sorted(out.rglob("*.txt"))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    removed = out / "Area_1" / "office_1" / "Annotations"
    for file in removed.iterdir():
        file.unlink()
    removed.rmdir()
    removed.parent.rmdir()
    generate_rooms(out, rooms=2, points=1000, seed=0, areas=1)
    for file in files:
        modified, data = before[file]
        assert file.read_bytes() == data
        assert (file.stat().st_mtime_ns == modified) == (removed not in file.parents)
    with pytest.raises(UserError, match=r"holds rooms made with .*'seed': 0.*not .*'seed': 1"):
        generate_rooms(out, rooms=2, points=1000, seed=1, areas=1)


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    out = generate_rooms(tmp_path / "rooms", rooms=2, points=1000, seed=0, areas=1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "Area_1" / ".office_1.abc" / "Annotations").mkdir(parents=True)
    (out / "Area_1" / ".office_1.abc" / "Annotations" / "wall_1.txt").write_text("1 2")
    (out / ".rooms.json.abc.json").write_text("{")
    generate_rooms(out, rooms=2, points=1000, seed=0, areas=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is writing this folder"):
        generate_rooms(tmp_path, rooms=2, points=1000, seed=0, areas=1)
    assert not any(tmp_path.iterdir())


def test_workers_of_a_killed_process_end(tmp_path):
    """After SIGKILL nothing is written any more and no process is left."""
    code = "from dsp_sparse.data import generate_rooms\nif __name__ == '__main__':"
    code += f" generate_rooms({str(tmp_path / 'rooms')!r}, rooms=60, points=30_000, seed=0, areas=1, workers=2)"
    (tmp_path / "program.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environment, stdout=subprocess.PIPE)
    try:
        end = time.monotonic() + 600
        while not [*tmp_path.glob("rooms/Area_1/[!.]*")]:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
    process.communicate(timeout=600)  # to the end of the output: no process that inherited it is left
    assert 0 < len([*tmp_path.glob("rooms/Area_1/[!.]*")]) < 60


@pytest.mark.parametrize("bad", [{"rooms": 1}, {"points": 10}, {"seed": -1}, {"areas": 0}, {"workers": 0}])
def test_arguments_out_of_range_are_named(tmp_path, bad):
    (name,) = bad
    with pytest.raises(UserError, match=f"{name} must be at least"):
        generate_rooms(tmp_path / "rooms", **{"rooms": 4, "points": 2000, "seed": 0, "areas": 2, **bad})
    assert not (tmp_path / "rooms").exists()
