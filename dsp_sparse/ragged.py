"""Ragged batches: samples of different sizes, packed row after row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """A batch of B point sets without padding. Sample b owns rows `offsets[b]:offsets[b + 1]`; it may be empty.

    Args:
        feat: `[N, C]` features, any floating dtype.
        coord: `[N, 3]` coordinates in metres, float32 or float64.
        offsets: `[B + 1]` int64; starts with 0, never falls, ends with N.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or offsets that do not describe N rows.
    """

    feat: Tensor
    coord: Tensor
    offsets: Tensor

    def __post_init__(self):
        rows = self.coord.shape[0] if self.coord.dim() else -1
        if self.coord.dim() != 2 or self.coord.shape[1] != 3:
            raise ValueError(f"coord must have shape (N, 3), got {tuple(self.coord.shape)}")
        if self.feat.dim() != 2 or self.feat.shape[0] != rows:
            raise ValueError(f"feat must have shape ({rows}, C) to match coord, got {tuple(self.feat.shape)}")
        if not self.feat.is_floating_point():
            raise TypeError(f"feat must be floating point, got {self.feat.dtype}")
        if self.coord.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"coord must be float32 or float64, got {self.coord.dtype}")
        if self.offsets.dtype != torch.int64:
            raise TypeError(f"offsets must be int64, got {self.offsets.dtype}")
        if self.offsets.dim() != 1 or len(self.offsets) < 1:
            raise ValueError(f"offsets must have shape (B + 1,), got {tuple(self.offsets.shape)}")
        for name in ("feat", "offsets"):
            if getattr(self, name).device != self.coord.device:
                raise ValueError(f"{name} is on {getattr(self, name).device}, coord is on {self.coord.device}")
        bounds = self.offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != rows or any(a > b for a, b in pairwise(bounds)):
            raise ValueError(f"offsets must rise from 0 to {rows}, got {bounds}")

    @classmethod
    def pack(cls, samples: Sequence[tuple[Tensor, Tensor]]) -> "Ragged":
        """Pack `(feat [N_b, C], coord [N_b, 3])` pairs, at least one, in order."""
        feats, coords = zip(*samples, strict=True)
        offsets = torch.tensor([0, *(len(c) for c in coords)], device=coords[0].device).cumsum(0)
        return cls(torch.cat(feats), torch.cat(coords), offsets)

    @property
    def batch_size(self) -> int:
        """Number of samples, B."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of each sample, as B Python integers (one device synchronisation, then cached)."""
        return self.offsets.diff().tolist()

    @property
    def batch_index(self) -> Tensor:
        """`[N]` int64: the sample each row belongs to."""
        samples = torch.arange(self.batch_size, device=self.offsets.device)
        return samples.repeat_interleave(self.offsets.diff(), output_size=len(self.coord))

    def rows(self, sample: int) -> slice:
        """The rows of one sample."""
        start = sum(self.lengths[:sample])
        return slice(start, start + self.lengths[sample])

    def sample(self, index: int) -> "Ragged":
        """Sample `index` alone, as a batch of one (views, no copy)."""
        rows = self.rows(index)
        return Ragged(self.feat[rows], self.coord[rows], self.offsets.new_tensor([0, rows.stop - rows.start]))

    def with_feat(self, feat: Tensor) -> "Ragged":
        """The same points with other features `[N, C']`."""
        return Ragged(feat, self.coord, self.offsets)

    def pin_memory(self) -> "Ragged":
        """The same batch in page-locked memory."""
        return Ragged(*(t.pin_memory() for t in (self.feat, self.coord, self.offsets)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Ragged":
        """The same batch on another device."""
        return Ragged(*(t.to(device, non_blocking=non_blocking) for t in (self.feat, self.coord, self.offsets)))
