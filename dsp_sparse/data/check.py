"""Whether a store's files are those that were written."""

import hashlib
import json
from pathlib import Path

from tqdm import tqdm

from .store import SceneStore, scene_folder

PART = 2**20


def check(store: SceneStore, progress: bool = True) -> tuple[list[str], int, int]:
    """Compare every file of the scenes with its checksum.

    Args:
        store: the store.
        progress: show a progress bar of bytes.

    Returns:
        problems: a line for every file that is missing, altered or of another length; none if all is well.
        files: number of files that there should be.
        size: bytes read.
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
        elif not _holds(path, entries):
            problems.append(f"{path}: differs from the manifest")
    total = sum(path.stat().st_size for path in files if path.is_file())
    with tqdm(total=total, desc="check", unit="B", unit_scale=True, disable=not progress) as bar:
        for path, checksum in files.items():
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif _sha256(path, bar) != checksum:
                problems.append(f"{path}: truncated or altered, differs from its checksum")
    return problems, len(files) + len(clouds), total


def _holds(path: Path, value: object) -> bool:
    try:
        return json.loads(path.read_text()) == value
    except ValueError:  # not JSON, or not text
        return False


def _sha256(path: Path, bar: tqdm) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART):
            checksum.update(part)
            bar.update(len(part))
    return checksum.hexdigest()
