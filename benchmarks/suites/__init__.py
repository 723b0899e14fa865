"""The benchmarks, a module each, named as on the command line. A suite has

    inputs(points)              -> dict of tensors and numbers, on the CPU, made from `points` raw points
    describe(inputs)            -> dict of the sizes that the report states
    rows(inputs, device, peers) -> list of Row; `peers`: whether other libraries are measured too

Inputs and rows are made again in the fresh process that measures the memory of an implementation.
"""

import importlib
import pkgutil
from types import ModuleType

NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
