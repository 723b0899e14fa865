"""Semantic segmentation of 3D point clouds with few labels, by dense supervision propagation."""

from importlib import import_module
from typing import Any

from .errors import UserError

__version__ = "0.1.0"

__all__ = ["CSFR", "ISFR", "Ragged", "UserError", "__version__", "build_backbone"]

_HOMES = {"CSFR": "reallocation", "ISFR": "reallocation", "Ragged": "ragged", "build_backbone": "backbones"}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `dsp-sparse doctor` must run where torch does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
