"""Files of torch, read without running code from them. Our own say in a header what they hold."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import UserError


def write_tensors(path: Path, value: Any) -> None:
    """Write what `torch.save` can write. OSError: there is no room, or whatever else the system says."""
    with path.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            # torch tells where in its own file it was when a write was broken off; by what, it only has as the context:
            # a full disk, or the end of a loader's worker, which torch tells in the midst of whatever is done then.
            raise error.__context__ or error from None


def read_tensors(path: Path, what: str = "file of weights") -> Any:
    """The content of a file of torch, on the CPU. UserError, naming the file as `what`: damaged, or not such a file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to run the code
        reason = "no file of torch, or one that holds more than tensors: save only its `state_dict` again"
    except Exception as error:  # torch.load raises whatever the broken bytes lead it to
        unopened = isinstance(error, OSError) and error.filename is not None
        reason = error.strerror if unopened else "damaged, perhaps cut off, or no file of torch"
    raise UserError(f"{path}: not a readable {what} ({reason})")


def unpack(file: Any, place: str | Path, *kinds: str) -> Mapping[str, Any]:
    """What stands behind the header of a file of ours. UserError: a file of another kind, version or form."""
    formats = [f"dsp-sparse {kind} 1" for kind in kinds]
    found = file.get("format") if isinstance(file, Mapping) else type(file).__name__
    if found not in formats:
        raise UserError(f"{place}: holds {found!r}, expected {' or '.join(map(repr, formats))}")
    content = file.get("content")
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: its content must be a mapping, got {type(content).__name__}")
    return content
