import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsp_sparse.config import AugmentConfig, DataConfig
from dsp_sparse.data import Labelling, fetched, split, train_loader, weak_labels
from dsp_sparse.errors import UserError


def loader_of(store, pairs, workers=0, steps=5, batch_size=4, **changes):
    data = DataConfig(store="none", test_groups=[], radius=1.0, batch_size=batch_size, workers=workers)
    where = {"steps": steps, "seed": 0, "epochs": range(1), "pairs": pairs, **changes}
    return train_loader(store.scenes, weak_labels(store, Labelling(rate=0.05)), data, AugmentConfig(), **where)


def epoch_of(*arguments, **changes):
    return list(loader_of(*arguments, **changes))


def tensors(batch):
    return {
        "feat": batch.input.feat,
        "coord": batch.input.coord,
        "offsets": batch.input.offsets,
        "labels": batch.labels,
        "rows": batch.rows,
        "scenes": torch.tensor(batch.scenes),
        "partner": torch.empty(0) if batch.partner is None else batch.partner,
        "classes": torch.tensor(batch.pair_classes),
    }


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(tensors(x).values(), tensors(y).values(), strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("pairs", [False, True])
def test_batches_do_not_depend_on_the_number_of_workers(rooms_store, pairs, workers):
    alone = epoch_of(rooms_store, pairs)
    assert len(alone) == 5
    assert same(alone, epoch_of(rooms_store, pairs, workers))


@pytest.mark.parametrize("pairs", [False, True])
def test_batches_do_not_depend_on_how_workers_start(rooms_store, pairs):
    """A worker that starts afresh maps the files of scenes and labels itself: what it is sent is small."""
    loader = loader_of(rooms_store, pairs, workers=2)
    assert len(pickle.dumps(loader.dataset)) < 5000
    loader.multiprocessing_context = "spawn"
    assert same(epoch_of(rooms_store, pairs), list(loader))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("pairs", [False, True])
def test_ranks_share_the_batches_of_one_process(rooms_store, pairs, world):
    """W ranks with batches of b samples see what one process sees in batches of W · b, each a contiguous part."""
    whole = epoch_of(rooms_store, pairs, batch_size=4 * world)
    parts = [epoch_of(rooms_store, pairs, batch_size=4, rank=rank, world=world) for rank in range(world)]
    for batch, *pieces in zip(whole, *parts, strict=True):
        whole_tensors, piece_tensors = tensors(batch), [tensors(piece) for piece in pieces]
        for name in ("feat", "coord", "labels", "rows", "scenes", "classes"):
            assert torch.equal(whole_tensors[name], torch.cat([piece[name] for piece in piece_tensors])), name
        assert all(piece.partner is None or piece.partner.tolist() == [1, 0, 3, 2] for piece in pieces)


@pytest.mark.parametrize("pairs", [False, True])
def test_an_epoch_can_be_resumed_at_any_step(rooms_store, pairs):
    """The batches that are left are the same, bit for bit, on every rank; also none."""
    for rank in (0, 1):
        whole = epoch_of(rooms_store, pairs, rank=rank, world=2)
        for first_step in range(6):
            rest = epoch_of(rooms_store, pairs, rank=rank, world=2, first_step=first_step)
            assert len(rest) == 5 - first_step and same(whole[first_step:], rest)


@pytest.mark.parametrize("pairs", [False, True])
def test_epochs_follow_each_other(rooms_store, pairs):
    """One loader gives what a loader an epoch would; only the first epoch is one that is resumed."""
    each = [epoch_of(rooms_store, pairs, epochs=range(epoch, epoch + 1)) for epoch in (2, 3, 4)]
    for workers in (0, 2):
        loader = loader_of(rooms_store, pairs, workers, epochs=range(2, 5), first_step=3)
        assert len(loader) == 12
        assert same([*each[0][3:], *each[1], *each[2]], list(loader))


@pytest.mark.parametrize("pairs", [False, True])
def test_ranks_and_steps_that_do_not_exist_are_refused(rooms_store, pairs):
    for wrong, cause in (
        ({"rank": 2, "world": 2}, "rank must be at least 0 and less than world, got rank 2 of 2"),
        ({"rank": -1}, "rank must be at least 0 and less than world, got rank -1 of 1"),
        ({"first_step": 6}, "first_step must be at least 0 and at most steps, got 6 of 5"),
    ):
        with pytest.raises(UserError, match=cause):
            loader_of(rooms_store, pairs, **wrong)


@pytest.mark.parametrize("pairs", [False, True])
def test_every_ball_and_every_draw_has_random_numbers_of_its_own(rooms_store, pairs, monkeypatch):
    """Over ranks, steps and epochs: no two balls are augmented alike, and none as its sampler draws."""
    original, drawn = np.random.default_rng, set()
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.add(original(seed).random()) or original(seed))
    balls = [
        original(ball.seed).random()
        for rank in (0, 1)
        for batch in loader_of(rooms_store, pairs, epochs=range(2), rank=rank, world=2).batch_sampler
        for ball in batch
    ]
    assert len(drawn) == (10 if pairs else 2)  # a generator a step, or one for all steps
    assert len(drawn.union(balls)) == len(drawn) + len(balls) == len(drawn) + 2 * 2 * 5 * 4


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
    for other in ({"seed": 1}, {"epochs": range(1, 2)}):
        assert not same(first, epoch_of(rooms_store, pairs, **other))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_says_where_its_points_come_from(rooms_store, pairs):
    weak = weak_labels(rooms_store, Labelling(rate=0.05))
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
    weak = weak_labels(rooms_store, Labelling(rate=0.05))
    data = DataConfig(store="none", train_groups=[], test_groups=[], radius=1.0, batch_size=4)
    labels = [weak[scene.number] for scene in scenes]
    for batch in train_loader(scenes, labels, data, AugmentConfig(), steps=3, seed=0, epochs=range(1), pairs=True):
        assert set(batch.scenes) <= {scene.number for scene in scenes} == {2, 3}


def test_groups_to_train_on(rooms_store):
    """Those that are named; without a word every group with labels that is not tested."""

    def groups(**settings):
        return [{scene.group for scene in part} for part in split(rooms_store, DataConfig(store="none", **settings))]

    assert groups(test_groups=["Area_1"]) == [{"Area_2"}, {"Area_1"}]
    assert groups(test_groups=[], train_groups=["Area_1"]) == [{"Area_1"}, set()]
    with pytest.raises(UserError, match="no group 'Area_9'"):
        groups(test_groups=["Area_9"])
    hidden = copy.copy(rooms_store)
    bare = [replace(scene, group="hidden", class_counts=[0] * 13) for scene in rooms_store.scenes]
    hidden.scenes = [*rooms_store.scenes, *bare]
    train_scenes, _ = split(hidden, DataConfig(store="none", test_groups=["Area_1"]))
    assert {scene.group for scene in train_scenes} == {"Area_2"}


@pytest.mark.parametrize("pairs", [False, True])
def test_a_moved_batch_is_the_same_batch(rooms_store, pairs):
    batch = epoch_of(rooms_store, pairs, steps=1)
    assert same(batch, [b.to("cpu") for b in batch])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_moves_as_a_whole(rooms_store):
    batch = epoch_of(rooms_store, True, steps=1)[0].to("cuda")
    assert {t.device.type for t in (batch.input.feat, batch.labels, batch.rows, batch.partner)} == {"cuda"}


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_that_ends_while_it_sends_is_told_as_any_other_that_ends(error):
    """Such an end shows as an error of the connection; whoever reads it takes it for a file or a peer."""

    def batches():
        yield "first"
        raise error

    left = fetched(batches())
    assert next(left) == "first"
    with pytest.raises(RuntimeError, match="DataLoader worker ended while it sent a batch"):
        next(left)
