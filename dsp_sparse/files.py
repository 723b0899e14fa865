"""Files that are either whole or absent: written under a temporary name, then renamed."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is renamed to `path`, else removed.

    It is on the disk before it is renamed: after a power cut, too, `path` is the old file or the new one.

    Raises:
        OSError: it cannot be written, for lack of space perhaps; the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
            os.chmod(temporary, 0o644)
            flush(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and wait until it is on the disk. OSError: it cannot be written; it names the file."""
    with naming(path):
        with path.open("a") as file:
            file.write(line + "\n")
        flush(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an OSError that does not say which file it is about, as those of failed writes do not, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def flush(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it replaces `path`, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(name: str, path: str | os.PathLike, *, folder: bool) -> None:
    """Raise a UserError unless there is a folder or a file to write at `path`, or can be; nothing is written.

    Args:
        name: the argument that `path` is the value of, for the message.
        path: where something is to be written when all the work is done.
        folder: whether it is a folder, not a file.
    """
    expected = f"{name} must be a {'folder' if folder else 'file'} to write, got {path}"
    if os.path.exists(path) and os.path.isdir(path) != folder:
        raise UserError(f"{expected}, which is a {'file' if folder else 'folder'}")
    place = Path(path) if folder else Path(path).parent
    while not os.path.exists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{expected}; {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{expected}; nothing can be written into {place}")


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what `atomic_path` and `atomic_folder` left of `name` in a folder when their process was killed."""
    for path in folder.glob(f".{name}.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


_held: set[int] = set()


def _release_in_child() -> None:
    """A forked process, such as a worker of a loader, holds nothing: it may live on for a while after its parent."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Inside, this process alone holds a folder; the lock leaves no file and ends with the process, however that ends.

    Raises:
        UserError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is writing this folder; wait until it is done") from error
        yield
    finally:
        if handle in _held:  # in a forked process it is closed
            _held.remove(handle)
            os.close(handle)
