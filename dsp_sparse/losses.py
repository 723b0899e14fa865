"""The losses of dense supervision propagation."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

UNLABELLED = -1


def segmentation_loss(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """Weak segmentation loss: softmax cross-entropy, mean over the labelled points of the batch (paper Eq. 1, 10).

    Args:
        logits: `[N, C]`.
        labels: `[N]` int64; -1 marks a point without a label.
        count: labelled points of the whole of which this batch is a part: the losses of the parts add up to that of the
            whole. None: this batch is the whole.

    Returns:
        A scalar; exactly 0, with a zero gradient, where no point is labelled.

    Raises:
        ValueError: a label outside -1 … C - 1 (checked on the CPU only, as it would stall a GPU).
    """
    if labels.device.type == "cpu" and len(labels):
        low, high = torch.stack(labels.aminmax()).tolist()
        if low < UNLABELLED or high >= logits.shape[1]:
            raise ValueError(f"labels must lie in -1 … {logits.shape[1] - 1}, got {low} … {high}")
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / ((labels != UNLABELLED).sum().clamp(min=1) if count is None else max(count, 1))


def consistency_loss(
    logits: Tensor,
    other: Tensor,
    offsets: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
    count: int | None = None,
) -> Tensor:
    """Squared distance between the logits of two branches (paper Eq. 5 and 9); gradients reach both.

    The paper prints the squared Frobenius norm of a sample, which grows with its points: `sum`. Either way the batch
    counts as the average of its samples, so that a pair counts as the average of its two directions.

    Args:
        logits: `[N, C]` of the basic branch.
        other: `[N, C]` of the cross or intra branch.
        offsets: `[B + 1]` int64, the samples' rows; empty samples do not count.
        reduction: over the points of one sample, "mean" or "sum" (the sum over classes is taken first).
        count: samples with points of the whole of which this batch is a part, as in `segmentation_loss`.

    Returns:
        A scalar; exactly 0, with a zero gradient, for an empty batch.
    """
    lengths = offsets.diff()
    squared = F.mse_loss(logits, other, reduction="none").sum(dim=1)
    if reduction == "mean":
        points = lengths.repeat_interleave(lengths, output_size=len(squared))
        squared = squared / points
    return squared.sum() / ((lengths > 0).sum().clamp(min=1) if count is None else max(count, 1))
