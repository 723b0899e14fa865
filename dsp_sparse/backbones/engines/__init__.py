"""Libraries of sparse convolutions behind one interface."""

from ...errors import UserError
from .base import SparseEngine, VoxelGrid
from .minkowski import MinkowskiAdapter
from .native import NativeEngine

ENGINES = {"native": NativeEngine, "minkowski": MinkowskiAdapter}


def build_engine(name: str) -> SparseEngine:
    """The engine called `name`.

    Raises:
        UserError: no such engine, or its library is not installed or does not work.
    """
    if name not in ENGINES:
        raise UserError(f"engine must be one of {', '.join(ENGINES)}; got {name!r}")
    return ENGINES[name]()


__all__ = ["ENGINES", "SparseEngine", "VoxelGrid", "build_engine"]
