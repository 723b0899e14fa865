"""Scores against a hand-counted example."""

import json

import numpy as np
import pytest
import torch

from dsp_sparse.metrics import ConfusionMatrix

LABELS = [0, 0, 0, 1, 1, 2, -1, -1]
PREDICTIONS = [0, 0, 1, 1, 0, 0, 3, 0]


@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_scores_of_a_hand_counted_example(convert):
    """Unlabelled points do not count; a class in neither truth nor prediction is left out of the means."""
    confusion = ConfusionMatrix(4)
    confusion.update(convert(LABELS), convert(PREDICTIONS))
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(confusion.iou(), [2 / 5, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(confusion.accuracy(), [2 / 3, 1 / 2, 0, np.nan])
    assert confusion.miou() == pytest.approx((2 / 5 + 1 / 3) / 3)
    assert confusion.mean_accuracy() == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert confusion.overall_accuracy() == pytest.approx(3 / 6)


def test_a_class_that_is_only_predicted_counts_as_zero():
    """Predicting a class the truth lacks costs IoU, but has no accuracy."""
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([0, 0]), np.array([0, 1]))
    assert confusion.miou() == pytest.approx(1 / 4)
    assert confusion.mean_accuracy() == pytest.approx(1 / 2)


def test_parts_add_up_to_the_whole():
    """The matrix of a split is the sum of its scenes' matrices, whatever the integer types."""
    whole, parts = ConfusionMatrix(4), [ConfusionMatrix(4), ConfusionMatrix(4)]
    labels, predictions = np.array(LABELS, dtype=np.int16), np.array(PREDICTIONS, dtype=np.uint8)
    whole.update(labels, predictions)
    parts[0].update(labels[:3], predictions[:3])
    parts[1].update(labels[3:], predictions[3:])
    total = ConfusionMatrix.of(parts[0].counts + parts[1].counts)
    assert np.array_equal(total.counts, whole.counts) and total.miou() == whole.miou()


def test_scores_are_what_json_can_hold():
    """By class name, with null for a class that has no score."""
    confusion = ConfusionMatrix(4)
    confusion.update(np.array(LABELS), np.array(PREDICTIONS))
    scores = json.loads(json.dumps(confusion.scores("abcd"), allow_nan=False))
    assert scores["iou"] == {"a": 2 / 5, "b": 1 / 3, "c": 0, "d": None}
    assert scores["accuracy"] == {"a": 2 / 3, "b": 1 / 2, "c": 0, "d": None}
    assert scores["miou"] == confusion.miou() and scores["mean_accuracy"] == confusion.mean_accuracy()
    assert scores["overall_accuracy"] == 1 / 2 and scores["points"] == 6
    assert scores["confusion"] == confusion.counts.tolist()
    assert ConfusionMatrix(1).scores("a")["miou"] is None


def test_no_point_at_all_has_no_score():
    """Without points every score is nan, not an error and not a perfect score."""
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([-1]), np.array([0]))
    assert np.isnan([confusion.miou(), confusion.mean_accuracy(), confusion.overall_accuracy(), *confusion.iou()]).all()


def test_bad_input_is_named():
    """A class out of range, or lists of different length, are refused by name."""
    confusion = ConfusionMatrix(3)
    for labels, predictions, message in (
        ([0, 3], [0, 0], "labels must lie in 0 … 2"),
        ([0, -2], [0, 0], "labels must lie in 0 … 2"),
        ([0, 1], [0, 3], "predictions must lie in 0 … 2"),
        ([0, 1], [0], "must both be"),
    ):
        with pytest.raises(ValueError, match=message):
            confusion.update(np.array(labels), np.array(predictions))
