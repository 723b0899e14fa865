from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsp_sparse.config import AugmentConfig, DataConfig
from dsp_sparse.data import PairSampler, collate_pairs, prepare, scannet, train_loader, weak_labels
from dsp_sparse.errors import UserError

HEAVY = AugmentConfig(scale_min=0.2, scale_max=5, jitter=1.0, feature_drop=0.5)


def data(**changes) -> DataConfig:
    return DataConfig(store="", train_groups=[], test_groups=[], **{"radius": 1.0, "batch_size": 4, **changes})


def sampler(store, labels, steps=10, seed=0, epoch=0, batch_size=4):
    return PairSampler(store.scenes, labels, radius=1.0, batch_size=batch_size, steps=steps, seed=seed, epoch=epoch)


def classes(batch, sample):
    labels = batch.labels[batch.input.rows(sample)]
    return set(labels[labels >= 0].tolist())


@pytest.mark.parametrize("rate", [0.001, 0.05, 1])
@pytest.mark.parametrize("max_points", [None, 40, 1])
def test_partners_share_a_labelled_class(rooms_store, rate, max_points):
    """For any seed, label rate, cap on points and augmentation, samples 2k and 2k + 1 have a common labelled class."""
    labels = weak_labels(rooms_store, rate, 0)
    for seed in range(8):
        loader = train_loader(
            rooms_store.scenes, labels, data(max_points=max_points), HEAVY, steps=5, seed=seed, epoch=seed, pairs=True
        )
        for batch in loader:
            assert batch.partner.tolist() == [1, 0, 3, 2]
            for first in (0, 2):
                assert classes(batch, first) & classes(batch, first + 1)
            assert max_points is None or max(batch.input.lengths) <= max_points


def test_partners_share_a_class_in_real_scenes(real_data, tmp_path):
    dataset = scannet.scenes(real_data / "scannet")
    store = prepare(replace(dataset, scenes=dataset.scenes[:3]), tmp_path / "store", 0.06, progress=False)
    labels = weak_labels(store, 0.01, 0)
    settings = data(radius=2.0, max_points=500)
    for batch in train_loader(store.scenes, labels, settings, AugmentConfig(), steps=20, seed=0, epoch=0, pairs=True):
        assert classes(batch, 0) & classes(batch, 1)
        assert classes(batch, 2) & classes(batch, 3)


def test_partners_come_from_different_clouds_when_they_can(rooms_store):
    """A pair stays in one cloud only if no other cloud has a label of its class."""
    labels = weak_labels(rooms_store, 0.05, 0)
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
    labels = weak_labels(rooms_store, 0.05, 0)[:1]
    pairs = PairSampler(rooms_store.scenes[:1], labels, radius=1.0, batch_size=2, steps=100, seed=0, epoch=0)
    for first, second in pairs:
        assert first.anchor != second.anchor
        assert labels[0][first.anchor] == labels[0][second.anchor]


def test_rare_classes_are_not_starved(rooms_store):
    """Every class that can form a pair is drawn equally often, however few labels it has."""
    labels = weak_labels(rooms_store, 0.02, 0)
    drawn = Counter(int(labels[b[0].scene][b[0].anchor]) for b in sampler(rooms_store, labels, 1300, batch_size=2))
    assert len(drawn) >= 12
    expected = 1300 / len(drawn)
    assert all(0.6 * expected < count < 1.5 * expected for count in drawn.values())


def test_a_batch_of_pairs_needs_an_even_size(rooms_store):
    labels = weak_labels(rooms_store, 0.05, 0)
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
    labels = weak_labels(rooms_store, 1, 0)
    loader = train_loader(rooms_store.scenes, labels, data(), AugmentConfig(), steps=1, seed=0, epoch=0, pairs=True)
    samples = [loader.dataset[ball] for ball in next(iter(loader.batch_sampler))]
    assert torch.equal(collate_pairs(samples).partner, torch.tensor([1, 0, 3, 2]))
    samples[3] = replace(samples[3], labels=np.full_like(samples[3].labels, -1))
    message = rf"a pair without a common labelled class: sample 2 of scene {samples[2].scene} .* and sample 3 of scene"
    with pytest.raises(RuntimeError, match=message):
        collate_pairs(samples)
