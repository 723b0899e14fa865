from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsp_sparse.config import AugmentConfig, DataConfig
from dsp_sparse.data import Labelling, PairSampler, collate_pairs, prepare, scannet, train_loader, weak_labels
from dsp_sparse.errors import UserError

HEAVY = AugmentConfig(scale_min=0.2, scale_max=5, jitter=1.0, feature_drop=0.5)


def settings_of(**changes) -> DataConfig:
    return DataConfig(store="none", test_groups=[], **{"radius": 1.0, "batch_size": 4, **changes})


def sampler(store, labels, steps=10, batch_size=4):
    where = {"radius": 1.0, "batch_size": batch_size, "steps": steps, "seed": 0, "epochs": range(1)}
    return PairSampler(store.scenes, labels, **where)


def classes(batch, sample):
    labels = batch.labels[batch.input.rows(sample)]
    return set(labels[labels >= 0].tolist())


@pytest.mark.parametrize("rate", [0.001, 0.05, 1])
@pytest.mark.parametrize("max_points", [None, 40, 1])
def test_partners_share_a_labelled_class(rooms_store, rate, max_points):
    """For any seed, label rate, cap on points and augmentation, samples 2k and 2k + 1 have a common labelled class."""
    labels = weak_labels(rooms_store, Labelling(rate=rate))
    limits = settings_of(max_points=max_points)
    for seed in range(8):
        where = {"steps": 5, "seed": seed, "epochs": range(seed, seed + 1), "pairs": True}
        loader = train_loader(rooms_store.scenes, labels, limits, HEAVY, **where)
        for batch in loader:
            assert batch.partner.tolist() == [1, 0, 3, 2]
            for first, chosen in zip((0, 2), batch.pair_classes, strict=True):
                assert chosen in classes(batch, first) & classes(batch, first + 1)
            assert max_points is None or max(batch.input.lengths) <= max_points


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_partners_share_a_class_whatever_is_labelled(rooms_store, data):
    """Any two labelled points of one class, anywhere, are enough for pairs; any cap, radius, seed and rank."""
    labels = [np.full(scene.num_points, -1, np.int16) for scene in rooms_store.scenes]
    places = st.tuples(st.integers(0, len(labels) - 1), st.integers(0, min(map(len, labels)) - 1))
    for label, (scene, row) in enumerate(data.draw(st.lists(places, max_size=6))):
        labels[scene][row] = label % 3
    for scene, row in data.draw(st.lists(places, min_size=2, max_size=2, unique=True)):
        labels[scene][row] = 1
    config = settings_of(
        radius=data.draw(st.floats(0.01, 1.5)),
        max_points=data.draw(st.none() | st.integers(1, 50)),
        batch_size=2 * data.draw(st.integers(1, 2)),
    )
    world = data.draw(st.integers(1, 3))
    where = {"seed": data.draw(st.integers(0, 99)), "epochs": range(2), "rank": data.draw(st.integers(0, world - 1))}
    for batch in train_loader(rooms_store.scenes, labels, config, HEAVY, steps=1, pairs=True, world=world, **where):
        for pair, chosen in enumerate(batch.pair_classes):
            assert chosen in classes(batch, 2 * pair) & classes(batch, 2 * pair + 1)


def test_partners_share_a_class_in_real_scenes(real_data, tmp_path):
    dataset = scannet.scenes(real_data / "scannet")
    store = prepare(replace(dataset, scenes=dataset.scenes[:3]), tmp_path / "store", 0.06, progress=False)
    labels = weak_labels(store, Labelling(rate=0.01))
    limits = settings_of(radius=2.0, max_points=500)
    where = {"steps": 20, "seed": 0, "epochs": range(1), "pairs": True}
    for batch in train_loader(store.scenes, labels, limits, AugmentConfig(), **where):
        assert classes(batch, 0) & classes(batch, 1)
        assert classes(batch, 2) & classes(batch, 3)


def test_partners_come_from_different_clouds_when_they_can(rooms_store):
    """A pair stays in one cloud only if no other cloud has a label of its class."""
    labels = weak_labels(rooms_store, Labelling(rate=0.05))
    pairs = sampler(rooms_store, labels, steps=200)
    alone = Counter()
    for batch in pairs:
        for first, second in zip(batch[::2], batch[1::2], strict=True):
            shared = labels[first.scene][first.anchor]
            assert shared == labels[second.scene][second.anchor] >= 0
            alone[len(pairs.labelled[shared]) == 1, first.scene == second.scene] += 1
            assert (first.scene, first.anchor) != (second.scene, second.anchor)
    assert alone[False, True] == 0
    assert alone[True, False] == 0
    assert alone[False, False] > 0


def test_within_one_cloud_partners_are_different_points(rooms_store):
    labels = list(weak_labels(rooms_store, Labelling(rate=0.05)))[:1]
    pairs = PairSampler(rooms_store.scenes[:1], labels, radius=1.0, batch_size=2, steps=100, seed=0, epochs=range(1))
    for first, second in pairs:
        assert first.anchor != second.anchor
        assert labels[0][first.anchor] == labels[0][second.anchor]


def test_rare_classes_are_not_starved(rooms_store):
    """Every class that can form a pair is drawn equally often, however few labels it has."""
    labels = weak_labels(rooms_store, Labelling(rate=0.02))
    drawn = Counter(int(labels[b[0].scene][b[0].anchor]) for b in sampler(rooms_store, labels, 1300, batch_size=2))
    assert len(drawn) >= 12
    expected = 1300 / len(drawn)
    assert all(0.6 * expected < count < 1.5 * expected for count in drawn.values())


def test_a_batch_of_pairs_needs_an_even_size(rooms_store):
    labels = weak_labels(rooms_store, Labelling(rate=0.05))
    for size in (0, 3):
        with pytest.raises(UserError, match=f"batch_size must be even and at least 2 to hold pairs, got {size}"):
            sampler(rooms_store, labels, batch_size=size)


def test_no_two_samples_with_a_common_class_is_an_error(rooms_store):
    labels = [np.full(scene.num_points, -1) for scene in rooms_store.scenes]
    for index in range(4):
        labels[index][10] = index  # one point of a class of its own in every cloud
    with pytest.raises(UserError, match=r"no two samples with a common class: none of the 4 labelled classes"):
        sampler(rooms_store, labels)


def test_a_batch_that_breaks_the_guarantee_names_the_pair(rooms_store):
    """The guarantee is checked on the finished batch, whoever made it."""
    labels = weak_labels(rooms_store, Labelling(rate=1))
    loader = train_loader(
        rooms_store.scenes, labels, settings_of(), AugmentConfig(), steps=1, seed=0, epochs=range(1), pairs=True
    )
    samples = [loader.dataset[ball] for ball in next(iter(loader.batch_sampler))]
    assert torch.equal(collate_pairs(samples).partner, torch.tensor([1, 0, 3, 2]))
    samples[3] = replace(samples[3], labels=np.full_like(samples[3].labels, -1))
    message = (
        rf"a pair without the common labelled class \d+: sample 2 of scene {samples[2].scene} .* and sample 3 of scene"
    )
    with pytest.raises(RuntimeError, match=message):
        collate_pairs(samples)
