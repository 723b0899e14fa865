"""Rows of any length, one after the other (CSR): their bounds."""

import torch
from torch import Tensor


def splits_of(counts: Tensor) -> Tensor:
    """Bounds `[N + 1]` int64 of N rows of these lengths."""
    splits = counts.new_zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=splits[1:])
    return splits
