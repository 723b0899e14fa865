"""Files of tensors: what breaks a write off is told, not where torch was in its file."""

import pytest
import torch

from dsp_sparse.tensor_files import write_tensors


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), RuntimeError("DataLoader worker is killed")])
def test_what_breaks_a_write_off_is_what_is_raised(cause, tmp_path, monkeypatch):
    def broken(value, file):
        try:
            raise cause
        finally:
            raise RuntimeError("unexpected pos 143296 vs 143216")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(type(cause)) as raised:
        write_tensors(tmp_path / "x.pt", {})
    assert raised.value is cause
