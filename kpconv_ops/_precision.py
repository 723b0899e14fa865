"""What half precision needs: autocast for native operators, and sums in a wider type."""

import torch
from torch import Tensor


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, in the autocast type where autocast is on; float64 stays, as in torch's own operators."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over features of `dtype` are formed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, where `total` may be wider than the factors."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def add_products(totals: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left.T @ right` to the sum over `totals [parts, *, *]`: each gets a part of the rows.

    Rows that one thread wrote are so multiplied by one thread. A single product is divided by columns instead, and
    where the cores share no cache every row then travels from one to the other, and back when it is written again.
    """
    rows = len(left) // len(totals) * len(totals)
    parts = left[:rows].unflatten(0, (len(totals), -1)).mT, right[:rows].unflatten(0, (len(totals), -1))
    if totals.dtype == left.dtype:
        totals.baddbmm_(*parts)
    else:
        totals += torch.bmm(*parts)
    if rows < len(left):
        add_product(totals[0], left[rows:].t(), right[rows:])
