"""Batch normalisation of any number of rows."""

import pytest
import torch
from torch import nn

from dsp_sparse.backbones.norm import BatchNorm


@pytest.fixture
def pair():
    """Ours and torch's, with the same weights and statistics."""
    generator = torch.Generator().manual_seed(0)
    ours, torchs = BatchNorm(5, momentum=0.02), nn.BatchNorm1d(5, momentum=0.02)
    for tensor in (ours.weight.data, ours.bias.data, ours.running_mean, ours.running_var):
        tensor.copy_(torch.rand(5, generator=generator) + 0.5)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


@pytest.mark.parametrize("training", [False, True])
def test_two_rows_or_more_are_torchs(pair, training):
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    ours, torchs = (norm.train(training) for norm in pair)
    assert torch.equal(ours(rows), torchs(rows))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), torchs.buffers(), strict=True))


@pytest.mark.parametrize("count", [0, 1])
def test_one_row_or_none_uses_and_keeps_the_running_statistics(pair, count):
    rows = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    ours, torchs = pair[0].train(), pair[1].eval()
    before = [buffer.clone() for buffer in ours.buffers()]
    assert torch.equal(ours(rows), torchs(rows))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), before, strict=True))
