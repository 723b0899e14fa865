"""The losses against their formulas."""

import math

import pytest
import torch

from dsp_sparse.losses import consistency_loss, segmentation_loss


def logits_of(rows, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64).requires_grad_()


def test_segmentation_is_the_mean_negative_log_probability_of_the_labelled():
    """Eq. 1 with the log: -(1/B) Σ m log softmax(z)[y], and unlabelled points get no gradient."""
    logits, labels = logits_of(6), torch.tensor([2, -1, 0, -1, -1, 3])
    loss = segmentation_loss(logits, labels)
    by_hand = -sum(math.log(torch.softmax(logits[n], 0)[labels[n]].item()) for n in (0, 2, 5)) / 3
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    assert not logits.grad[labels < 0].any()
    assert logits.grad[labels >= 0].abs().sum(1).all()


@pytest.mark.parametrize("rows", [5, 0])
def test_no_label_at_all_gives_zero_with_a_gradient(rows):
    """B = 0 is exactly 0, differentiable, no NaN."""
    logits = logits_of(rows)
    loss = segmentation_loss(logits, torch.full((rows,), -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("label", [4, -2])
def test_a_label_out_of_range_is_an_error(label):
    """Only -1 … C - 1 are labels."""
    with pytest.raises(ValueError, match="labels must lie in -1 … 3"):
        segmentation_loss(logits_of(2), torch.tensor([0, label]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_consistency_averages_over_the_samples(reduction):
    """Per sample ‖Z - Z'‖² summed over classes, then mean or sum over its points, then the mean over the samples."""
    first, second, offsets = logits_of(7), logits_of(7, seed=1), torch.tensor([0, 2, 2, 7])
    distance = (first - second).square().sum(1)
    samples = [distance[:2], distance[2:]]  # the empty sample does not count
    by_hand = sum(getattr(s, reduction)() for s in samples) / 2
    torch.testing.assert_close(consistency_loss(first, second, offsets, reduction), by_hand)


def test_consistency_sends_gradients_into_both_branches():
    """Neither branch is a fixed target: the gradients are opposite and not zero."""
    first, second = logits_of(5), logits_of(5, seed=1)
    consistency_loss(first, second, torch.tensor([0, 5])).backward()
    assert first.grad.abs().sum(1).all()
    torch.testing.assert_close(first.grad, -second.grad)


def test_consistency_of_an_empty_batch_is_zero_with_a_gradient():
    """No point, no disagreement."""
    first, second = logits_of(0), logits_of(0)
    loss = consistency_loss(first, second, torch.tensor([0, 0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert first.grad.shape == (0, 4)
