import numpy as np
import pytest
import torch

from dsp_sparse.config import AugmentConfig, DataConfig
from dsp_sparse.data import train_loader, weak_labels


def epoch_of(store, pairs, workers=0, steps=5, **changes):
    data = DataConfig(store="", train_groups=[], test_groups=[], radius=1.0, batch_size=4, workers=workers)
    where = {"steps": steps, "seed": 0, "epoch": 0, "pairs": pairs, **changes}
    return list(train_loader(store.scenes, weak_labels(store, 0.05, 0), data, AugmentConfig(), **where))


def tensors(batch):
    partner = torch.empty(0) if batch.partner is None else batch.partner
    scenes = torch.tensor(batch.scenes)
    return batch.input.feat, batch.input.coord, batch.input.offsets, batch.labels, batch.rows, scenes, partner


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(tensors(x), tensors(y), strict=True)
    )


@pytest.mark.parametrize("pairs", [False, True])
def test_batches_do_not_depend_on_the_number_of_workers(rooms_store, pairs):
    alone = epoch_of(rooms_store, pairs)
    assert len(alone) == 5
    assert same(alone, epoch_of(rooms_store, pairs, workers=1))
    assert same(alone, epoch_of(rooms_store, pairs, workers=2))


@pytest.mark.parametrize("pairs", [False, True])
def test_an_epoch_is_a_function_of_seed_and_epoch(rooms_store, pairs):
    """Global random states neither decide the batches nor are moved by them."""
    first = epoch_of(rooms_store, pairs)
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1]
    assert same(first, epoch_of(rooms_store, pairs))
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert same(first[:2], epoch_of(rooms_store, pairs, steps=2))
    assert not same(first[:1], first[1:2])
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not same(first, epoch_of(rooms_store, pairs, **other))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_says_where_its_points_come_from(rooms_store, pairs):
    weak = weak_labels(rooms_store, 0.05, 0)
    for batch in epoch_of(rooms_store, pairs):
        assert batch.input.feat.shape[1] == rooms_store.in_channels
        assert (batch.partner is None) == (not pairs)
        for sample, index in enumerate(batch.scenes):
            where = batch.input.rows(sample)
            rows = batch.rows[where].numpy()
            assert len(rows) == len(set(rows.tolist())) > 0
            np.testing.assert_array_equal(batch.labels[where], weak[index][rows])
            # Before scale, mirror and rotation, points were this far from the centre at most.
            assert np.linalg.norm(batch.input.coord[where], axis=1).max() < 1.1 + 0.01


def test_scenes_are_named_by_their_index_in_the_store(rooms_store):
    scenes = rooms_store.group(["Area_2"])
    weak = weak_labels(rooms_store, 0.05, 0)
    data = DataConfig(store="", train_groups=[], test_groups=[], radius=1.0, batch_size=4)
    labels = [weak[scene.number] for scene in scenes]
    for batch in train_loader(scenes, labels, data, AugmentConfig(), steps=3, seed=0, epoch=0, pairs=True):
        assert set(batch.scenes) <= {scene.number for scene in scenes} == {2, 3}


@pytest.mark.parametrize("pairs", [False, True])
def test_a_moved_batch_is_the_same_batch(rooms_store, pairs):
    batch = epoch_of(rooms_store, pairs, steps=1)
    assert same(batch, [b.to("cpu") for b in batch])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_moves_as_a_whole(rooms_store):
    batch = epoch_of(rooms_store, True, steps=1)[0].to("cuda")
    assert {t.device.type for t in (batch.input.feat, batch.labels, batch.rows, batch.partner)} == {"cuda"}
