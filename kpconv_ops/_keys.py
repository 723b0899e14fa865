"""Keys of cells: sorting them, and which rows share one."""

import torch
from torch import Tensor

from . import _native
from ._csr import splits_of

MAX_CELLS = 2**62  # so that the key of a cell fits int64


def sort_keys(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Keys `[N]` in [0, num_keys), ascending, and where each was `[N]` int32, ascending among equal ones."""
    if _native.on_cuda(keys):
        keys, order = torch.sort(keys, stable=True)
        return keys, order.int()
    ascending, order = torch.empty_like(keys), torch.empty_like(keys, dtype=torch.int32)
    _native.call("kp_sort_keys", keys, keys, len(keys), num_keys, ascending, order)
    return ascending, order


def cells_of(keys: Tensor, order: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of each of M cells are `order[splits[m]:splits[m + 1]]`: splits, for each row its cell, cells' offsets.

    Keys and order as of `sort_keys`; the keys of a sample come before those of the next. Waits for the device, to learn
    how many cells there are.
    """
    begins = keys.new_ones(len(keys), dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=begins[1:])
    ranks = splits_of(begins)  # cells that begin before a row
    splits, inverse = keys.new_zeros(int(ranks[-1]) + 1), torch.empty_like(keys)
    _native.call("kp_cells", keys, keys, order, ranks, len(keys), splits, inverse)
    return splits, inverse, ranks[offsets]
