"""The benchmarks, a module each, named as on the command line. A suite has

    inputs(points)              -> dict of tensors and numbers, on the CPU, made from `points` raw points
    describe(inputs)            -> dict of the sizes that the report states
    rows(inputs, device, peers) -> list of Row; `peers`: whether other libraries are measured too

Inputs and rows are made again in the fresh process that measures the memory of an implementation.
"""

import importlib
import pkgutil
from types import ModuleType

from ..inputs import SMALL

NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def row_names(suite: str, device: str) -> list[str]:
    """Names of the rows of a suite; they do not depend on the number of points."""
    module = load(suite)
    return [row.name for row in module.rows(module.inputs(SMALL), device, False)]
