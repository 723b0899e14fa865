"""Batch normalisation of packed rows."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of `[N, C]` rows, for any N.

    Coarse levels of a small sample may hold a single row or none, which have no variance. Such a batch is normalised
    with the running statistics, and leaves them as they are, in training too.
    """

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and len(rows) < 2:
            return F.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(rows)
