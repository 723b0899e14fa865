"""Scores of a semantic segmentation, from one confusion matrix summed over a whole split."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .losses import UNLABELLED


class ConfusionMatrix:
    """Counts of points by true and predicted class.

    Args:
        num_classes: C.

    Attributes:
        counts: `[C, C]` int64; rows are the truth, columns the prediction.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), dtype=np.int64)

    @classmethod
    def of(cls, counts: np.ndarray) -> "ConfusionMatrix":
        """The matrix with the counts `[C, C]`."""
        matrix = cls(len(counts))
        matrix.counts += counts
        return matrix

    def update(self, labels: Tensor | np.ndarray, predictions: Tensor | np.ndarray) -> None:
        """Count points.

        Args:
            labels: `[N]` true classes; points labelled -1 do not count.
            predictions: `[N]` predicted classes.

        Raises:
            ValueError: different lengths, or a class outside 0 … C - 1.
        """
        labels, predictions = _array(labels), _array(predictions)
        if labels.shape != predictions.shape or labels.ndim != 1:
            raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must both be [N]")
        counted = labels != UNLABELLED
        size = len(self.counts)
        for name, values in (("labels", labels[counted]), ("predictions", predictions[counted])):
            if len(values) and not 0 <= values.min() <= values.max() < size:
                raise ValueError(f"{name} must lie in 0 … {size - 1}, got {values.min()} … {values.max()}")
        cells = labels[counted].astype(np.int64) * size + predictions[counted]
        self.counts += np.bincount(cells, minlength=size * size).reshape(size, size)

    def iou(self) -> np.ndarray:
        """`[C]` intersection over union; nan for a class that neither the truth nor the prediction holds."""
        return _ratio(np.diag(self.counts), self.counts.sum(0) + self.counts.sum(1) - np.diag(self.counts))

    def accuracy(self) -> np.ndarray:
        """`[C]` share of each class's points that are predicted right; nan for a class the truth does not hold."""
        return _ratio(np.diag(self.counts), self.counts.sum(1))

    def miou(self) -> float:
        """Mean of the IoU over the classes that have one."""
        return _mean(self.iou())

    def mean_accuracy(self) -> float:
        """Mean of the accuracy over the classes of the truth."""
        return _mean(self.accuracy())

    def overall_accuracy(self) -> float:
        """Share of all points that are predicted right."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))

    def scores(self, classes: Sequence[str]) -> dict:
        """Everything above as a dict that JSON can hold; None in place of nan.

        Args:
            classes: the C class names.

        Returns:
            `miou`, `overall_accuracy`, `mean_accuracy`; `iou` and `accuracy` by class name; `confusion`, the counts;
            `points`, their sum.
        """

        def number(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        return {
            "miou": number(self.miou()),
            "overall_accuracy": number(self.overall_accuracy()),
            "mean_accuracy": number(self.mean_accuracy()),
            "iou": dict(zip(classes, map(number, self.iou()), strict=True)),
            "accuracy": dict(zip(classes, map(number, self.accuracy()), strict=True)),
            "confusion": self.counts.tolist(),
            "points": int(self.counts.sum()),
        }


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return values.astype(np.int64, copy=False)


def _ratio(part, whole) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")
