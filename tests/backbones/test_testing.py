"""The helpers that users' tests import."""

import pytest
import torch

from dsp_sparse.testing import devices, random_ragged, tiny_backbone


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_ragged(device, dtype):
    """Samples of the given lengths inside the cube, a function of the seed alone."""
    batch = random_ragged((5, 0, 300), 4, size=2.0, seed=3, dtype=dtype, device=device)
    assert batch.lengths == [5, 0, 300]
    assert batch.feat.shape == (305, 4)
    assert (batch.feat.dtype, batch.coord.dtype, batch.coord.device.type) == (dtype, dtype, device)
    assert 0 <= batch.coord.min() < 0.1 and 1.9 < batch.coord.max() <= 2
    again, other = (random_ragged((5, 0, 300), 4, size=2.0, seed=seed, dtype=dtype) for seed in (3, 4))
    assert torch.equal(batch.coord.cpu(), again.coord) and torch.equal(batch.feat.cpu(), again.feat)
    assert not torch.equal(again.coord, other.coord)


def test_tiny_backbone_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    tiny_backbone("kpfcnn", 3, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
