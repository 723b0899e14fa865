import shutil

import numpy as np
import pytest

from dsp_sparse.cli import main
from dsp_sparse.data import Labelling, SceneStore, prepare, weak_labels
from dsp_sparse.data.check import check


@pytest.fixture(params=[10_000, 150], ids=["whole", "tiled"])
def store(request, tiny_dataset, tmp_path):
    return prepare(tiny_dataset, tmp_path / "store", 0.25, tile_points=request.param, progress=False)


def test_an_undamaged_store_has_no_problems(store, capsys):
    problems, files, size = check(store, progress=False)
    arrays = list(store.path.rglob("*.npy"))
    assert problems == []
    assert files == len(arrays) + 3
    assert size == sum(path.stat().st_size for path in arrays)
    with pytest.raises(SystemExit) as exit:
        main(["check", str(store.path)])
    assert exit.value.code == 0
    assert f"all is well: {len(store.scenes)} scenes, {files} files" in capsys.readouterr().out


def test_every_damaged_file_is_listed(store, capsys):
    """Truncated, altered in one bit, lengthened and missing: all are named, and nothing else."""
    first, last = store.scenes[0].folder, store.scenes[-1].folder
    for path, damage in (
        (first / "points.npy", lambda data: data[:-1]),
        (first / "labels.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        (last / "inverse.npy", lambda data: data + b"\0"),
        (last / "block_keys.npy", lambda data: b""),
    ):
        path.write_bytes(damage(path.read_bytes()))
    (last / "features.npy").unlink()
    (store.path / "scenes" / "scene1" / "scene.json").write_text("[]")
    (store.path / "scenes" / "scene2" / "scene.json").unlink()
    bad = [first / "points.npy", first / "labels.npy"]
    bad += [last / f"{name}.npy" for name in ("inverse", "block_keys", "features")]
    bad += [store.path / "scenes" / f"scene{k}" / "scene.json" for k in (1, 2)]
    problems, *_ = check(store, progress=False)
    assert sorted(line.split(":")[0] for line in problems) == sorted(map(str, bad))
    with pytest.raises(SystemExit) as exit:
        main(["check", str(store.path)])
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert all(f"{path}: " in printed.err for path in bad)
    assert "7 of" in printed.err and "are damaged" in printed.err and not printed.out


def test_every_array_of_a_scene_is_checked(store):
    for name in store.manifest["scenes"][0]["sha256"]:
        path = store.scenes[0].folder / f"{name}.npy"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert check(store, progress=False)[0] == [f"{path}: truncated or altered, differs from its checksum"]
        path.write_bytes(whole)
    assert set(store.manifest["scenes"][0]["sha256"]) == {p.stem for p in store.scenes[0].folder.glob("*.npy")}


def test_weak_labels_are_those_of_their_scenes(store):
    """Labels that differ from those of the scene, are none of the classes, are too few or are no labels: all named."""
    drawn = weak_labels(store, Labelling(rate=0.5))
    assert check(store, progress=False) == ([], *check(store, progress=False)[1:])
    name = store.scenes[0].name
    (file,) = store.path.glob(f"weak/*/{name}.npy")
    mask = store.path / "weak" / "mask-0" / f"{name}.npy"
    mask.parent.mkdir()
    labels = np.array(drawn[0])
    other = np.where(labels == 0, 1, labels).astype(np.int16)
    np.save(mask, other)  # a mask may give a cell another label
    files = check(store, progress=False)
    assert files[0] == [] and files[1] == len(list(store.path.rglob("*.npy"))) + 3
    for path, bad in ((file, other), (file, labels[1:]), (file, labels.astype(int)), (mask, labels + np.int16(3))):
        whole = path.read_bytes()
        np.save(path, bad)
        assert check(store, progress=False)[0] == [f"{path}: damaged, or drawn from another cloud; delete it"]
        path.write_bytes(whole)
    file.write_bytes(file.read_bytes()[:-1])
    assert len(check(store, progress=False)[0]) == 1


def test_a_folder_without_a_store_is_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["check", str(tmp_path)])
    assert exit.value.code == 2
    assert "not a scene store" in capsys.readouterr().err


def test_a_moved_store_is_still_whole(store, tmp_path):
    shutil.move(store.path, tmp_path / "elsewhere")
    assert check(SceneStore.open(tmp_path / "elsewhere"), progress=False)[0] == []
