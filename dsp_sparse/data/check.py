"""Whether a store's files are those that were written."""

import glob
import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .store import Scene, SceneStore, map_array, scene_folder
from .weak_labels import require_labels_of

PART = 2**20


def check(store: SceneStore, progress: bool = True) -> tuple[list[str], int, int]:
    """Compare every file of the scenes with its checksum, and weak labels, which have none, with their scenes.

    Args:
        store: the store.
        progress: show a progress bar of bytes.

    Returns:
        problems: a line for every file that is missing, altered or of another length; none if all is well.
        files: number of files that there should be.
        size: bytes of the scenes' arrays.
    """
    files = {
        scene_folder(store.path, entry) / f"{name}.npy": checksum
        for entry in store.manifest["scenes"]
        for name, checksum in entry["sha256"].items()
    }
    clouds: dict[str, list[dict]] = {}
    for entry in store.manifest["scenes"]:
        clouds.setdefault(entry["cloud"], []).append(entry)
    problems = []
    for cloud, entries in clouds.items():
        path = store.path / "scenes" / cloud / "scene.json"
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif not _holds(path, [{key: value for key, value in e.items() if key != "group"} for e in entries]):
            problems.append(f"{path}: differs from the manifest")
    total = sum(path.stat().st_size for path in files if path.is_file())
    with tqdm(total=total, desc="check", unit="B", unit_scale=True, disable=not progress) as bar:
        for path, checksum in files.items():
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif _sha256(path, bar) != checksum:
                problems.append(f"{path}: truncated or altered, differs from its checksum")
    weak = [(path, s) for s in store.scenes for path in sorted(store.path.glob(f"weak/*/{glob.escape(s.name)}.npy"))]
    for path, scene in weak:
        if not _fits(path, scene):
            problems.append(f"{path}: damaged, or drawn from another cloud; delete it")
    return problems, len(files) + len(clouds) + len(weak), total


def _holds(path: Path, value: object) -> bool:
    try:
        return json.loads(path.read_text()) == value
    except ValueError:  # not JSON, or not text
        return False


def _fits(path: Path, scene: Scene) -> bool:
    """Whether weak labels can be those of a scene: drawn ones are its own, masked ones those of original points."""
    try:
        weak = map_array(path)
        labels = map_array(scene.folder / "labels.npy")
        require_labels_of(scene, path, weak)
    except (OSError, ValueError, KeyError):
        return False
    if weak.shape != labels.shape:
        return False
    labelled = weak >= 0
    return path.parent.name.startswith("mask-") or np.array_equal(weak[labelled], labels[labelled])


def _sha256(path: Path, bar: tqdm) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART):
            checksum.update(part)
            bar.update(len(part))
    return checksum.hexdigest()
