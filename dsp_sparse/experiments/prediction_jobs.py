"""What is to be predicted and where it goes: the clouds of a folder, and the folder that their predictions fill."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data.dataset import files_below
from ..data.readers import SUFFIXES
from ..errors import UserError
from ..files import locked, require_writable, write_json
from .labelled_files import EXTENSIONS, SCANNET_MESH, Format, written

RECORD = "prediction.json"


@dataclass(frozen=True)
class Job:
    """One cloud to label: the file it is read from, and the file that is written."""

    source: Path
    out: Path


def single_job(source: Path, out: Path, format: Format) -> Job:
    """The job of one file. UserError: `out` cannot be written, or is the source itself."""
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"out must be a file in an existing folder, got {out}")
    if source.resolve() in (file.resolve() for file in written(format, out)):
        raise UserError(f"out must not be the cloud itself, got {out}")
    return Job(source, out)


def folder_jobs(source: Path, out: Path, format: Format, pattern: str | None = None) -> list[Job]:
    """The jobs of a folder, see `predict`. Hidden files, and those below `out`, are not looked at.

    Raises:
        UserError: `out` cannot be written, there are no clouds, they would be in `out`, or two would be one file.
    """
    require_writable("out", out, folder=True)
    place = out.resolve()
    if place in (source.resolve(), *source.resolve().parents):
        raise UserError(f"out must be another folder than the clouds' and not above it, got {out} for {source}")
    if pattern and Path(pattern).is_absolute():
        raise UserError(f"pattern {pattern!r} must be relative to {source}, like **/*.ply")
    chosen = pattern or (f"**/*{SCANNET_MESH}.ply" if format == "scannet" else None)
    jobs, sources = [], {}
    for path in files_below(source, chosen or "**/*"):
        if not (chosen or path.suffix.lower() in SUFFIXES) or place in path.resolve().parents:
            continue
        if format == "scannet":
            target = out / f"{path.stem.removesuffix(SCANNET_MESH)}.txt"
        else:
            target = out / path.relative_to(source).with_suffix(EXTENSIONS[format])
        jobs.append(Job(path, target))
        for file in written(format, target):
            if (other := sources.setdefault(file, path)) != path:
                raise UserError(f"{file}: to be written for both {other} and {path}; choose with pattern")
    if not jobs:
        raise UserError(f"{source}: no point clouds, expected {chosen or 'files ending in ' + ' '.join(SUFFIXES)}")
    return jobs


@contextmanager
def claimed(out: Path, settings: dict) -> Iterator[None]:
    """Inside, the folder `out` belongs to this process. What a killed one left half written is removed.

    Raises:
        UserError: another process has it, or it holds something else than predictions made with these settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        claim(out, settings)
        for leftover in out.rglob(".*.*.*"):  # the names of `files.atomic_path`
            leftover.unlink()
        yield


def claim(out: Path, settings: dict) -> None:
    """Note in the folder `out` what its predictions are made with. UserError: it holds something else."""
    settings = json.loads(json.dumps(settings))
    file = out / RECORD
    if file.is_file():
        try:
            found = json.loads(file.read_text())
            differing = [name for name, value in settings.items() if found[name] != value]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}: not readable; choose another folder") from None
        if differing:
            name = differing[0]
            raise UserError(f"{file}: {name} is {found[name]!r}, not {settings[name]!r}; choose another folder")
    elif not all(path.match(f".{RECORD}.*") for path in out.iterdir()):
        raise UserError(f"{out}: the folder is not empty and holds no predictions; expected a new folder")
    else:
        write_json(file, settings)


def digest(run: str | Path) -> str:
    """SHA-256 of a run's model."""
    path = Path(run)
    path = path / "model.pt" if path.is_dir() else path
    return hashlib.sha256(path.read_bytes()).hexdigest()
