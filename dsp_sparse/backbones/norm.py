"""Batch normalisation of packed rows, of one process or of all that train together."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import world


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of `[N, C]` rows, for any N.

    Coarse levels of a small sample may hold a single row or none, which have no variance. Such a batch is normalised
    with the running statistics, and leaves them as they are, in training too.

    Attributes:
        synchronised: in training, the batch is that of all ranks together (see `synchronise`).
    """

    synchronised = False

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and self.synchronised and world() > 1:
            return self._forward_together(rows)
        if self.training and len(rows) < 2:
            return self._normalised(rows)
        return super().forward(rows)

    def _normalised(self, rows: Tensor) -> Tensor:
        """The rows by the running statistics."""
        return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _forward_together(self, rows: Tensor) -> Tensor:
        count, mean, var = statistics_of_ranks(rows.detach())
        # Chosen without a branch: the host does not wait for the device, and all ranks build the same graph.
        enough = count >= 2
        kind = self.running_mean.dtype
        unbiased = torch.where(enough, (var * (count / (count - 1).clamp(min=1))).to(kind), self.running_var)
        mean = torch.where(enough, mean.to(kind), self.running_mean)
        var = torch.where(enough, var.to(kind), self.running_var)
        if self.track_running_stats:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += enough
        return _Normalisation.apply(rows, self.weight, self.bias, mean, var, enough / count.clamp(min=1), self.eps)


def synchronise(net: nn.Module) -> None:
    """From now on the network's normalisations take the statistics of the batches of all ranks together.

    As torch's `SyncBatchNorm`, on the CPU too; ranks may have different numbers of rows, or none. Every rank must run
    the network forward and backward in step with the others.
    """
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.synchronised = True


def statistics_of_ranks(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and biased variance of the rows `[N, C]` of all ranks; the latter `[C]`; all of them float64."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    count, channels = rows.shape
    mean = rows.sum(0) / max(count, 1)
    spread = (rows - mean).square_().sum(0)
    own = torch.cat([mean.new_tensor([count], dtype=torch.float64), mean.double(), spread.double()])
    every = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(every, own)
    counts, means, spreads = torch.stack(every).split([1, channels, channels], dim=1)
    total = counts.sum()
    shared = total.clamp(min=1)
    mean = (counts * means).sum(0) / shared
    # Chan et al. 1979: the spread about the common mean, without the cancellation of sums of squares.
    var = (spreads + counts * (means - mean).square()).sum(0) / shared
    return total, mean, var


class _Normalisation(torch.autograd.Function):
    """`(x - mean) / √(var + eps) · weight + bias`, where mean and variance are functions of the rows of all ranks.

    `share` is one over the number of those rows; 0 if mean and variance do not come from them.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, mean, var, share, eps):
        ctx.save_for_backward(rows, weight, mean, torch.rsqrt(var + eps), share.to(mean.dtype))
        return F.batch_norm(rows, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, gradient):
        rows, weight, mean, scale, share = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normal = (rows.to(mean.dtype) - mean) * scale
        for_weight, for_bias = (gradient * normal).sum(0), gradient.sum(0)
        both = torch.stack([for_weight, for_bias]) * share
        dist.all_reduce(both)  # the statistics that a row moved moved the rows of every rank
        for_rows = weight * scale * (gradient - both[1] - normal * both[0])
        return for_rows.to(rows.dtype), for_weight.to(weight.dtype), for_bias.to(weight.dtype), None, None, None, None
