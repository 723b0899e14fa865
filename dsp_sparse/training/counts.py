"""What the losses of a step are means over, and what the step drew."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import Batch
from ..distributed import sum_over_ranks


@dataclass(frozen=True, eq=False)
class Counts:
    """Numbers of a batch, or the sums of several.

    Args:
        points: points.
        samples: samples with points.
        labelled: `[C]` int64, labelled points of each class.
        pairs: `[C]` int64, pairs that each class was drawn for.
        rows: int64, one number a mean in the regularisation: `TapBackbone.regularized_rows`.
    """

    points: int
    samples: int
    labelled: np.ndarray
    pairs: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, batch: Batch, classes: int, rows: Sequence[int]) -> "Counts":
        """Those of one batch; on the CPU without waiting for a device."""
        labels = batch.labels[batch.labels >= 0].cpu().numpy()
        return cls(
            points=len(batch.labels),
            samples=sum(length > 0 for length in batch.input.lengths),
            labelled=np.bincount(labels, minlength=classes),
            pairs=np.bincount(np.array(batch.pair_classes, np.int64), minlength=classes),
            rows=np.array(rows, np.int64),
        )

    @classmethod
    def of_step(cls, parts: Sequence["Counts"]) -> "Counts":
        """Those of all batches of a step, on all ranks. Every rank waits for the others here."""
        vectors = [np.concatenate([[p.points, p.samples], p.labelled, p.pairs, p.rows]) for p in parts]
        total, classes = sum_over_ranks(np.sum(vectors, axis=0)), len(parts[0].labelled)
        labelled, pairs, rows = np.split(total[2:], [classes, 2 * classes])
        return cls(int(total[0]), int(total[1]), labelled, pairs, rows)
