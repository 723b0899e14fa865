"""Shares of affinity, against loops over single points and against what uniform affinity must give."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsp_sparse.backbones import build_backbone
from dsp_sparse.data import collate
from dsp_sparse.errors import UserError
from dsp_sparse.experiments.affinity import FILE, affinity_scores, affinity_shares, draw_pairs, tap_labels
from dsp_sparse.experiments.trained import TrainedRun
from dsp_sparse.files import write_json
from dsp_sparse.ragged import Ragged
from dsp_sparse.reallocation import CSFR, ISFR
from dsp_sparse.training.checkpoint import load_model, save_model, save_modules

PAIRS = 5
NETS = {
    "kpfcnn": {"grid_size": 0.1, "first_width": 8, "blocks": (1, 1, 1)},
    "minkunet": {"variant": "14A", "voxel_size": 0.1, "planes": (8,) * 8},
}


def set_modules(folder, channels, scale=0.3, names=("csfr", "isfr")):
    """Give a run modules with random weights."""
    generator = torch.Generator().manual_seed(1)
    weights = {name: {"weight": scale * torch.randn(channels, channels, generator=generator)} for name in names}
    save_modules(folder / "modules.pt", weights)


@pytest.fixture
def run(make_run, rooms_store):
    """A run folder with both modules."""
    folder = make_run(rooms_store)
    set_modules(folder, load_model(folder).net.tap.channels)
    return folder


def majority(tap, points, labels):
    """The labels of tap points by brute force, in numpy."""
    votes = [Counter() for _ in tap]
    for point, label in zip(points, labels, strict=True):
        if label >= 0:
            votes[((tap - point) ** 2).sum(1).argmin()][int(label)] += 1
    return np.array([min(v, key=lambda c: (-v[c], c)) if v else -1 for v in votes])


@pytest.mark.parametrize("name", NETS)
def test_a_tap_point_has_the_label_of_most_points_it_stands_for(name, run):
    """Nearest tap point, most votes; unlabelled points do not vote, and none reaches into another sample."""
    opened = TrainedRun.open(run)
    net = build_backbone(name, opened.store.in_channels, len(opened.store.classes), **NETS[name])
    batch = collate([opened.ball(opened.store.scenes[i], 10) for i in (0, 2)])
    labels = torch.where(torch.arange(len(batch.labels)) % 3 == 0, -1, batch.labels)
    tap, _ = net.encode(batch.input)
    found = tap_labels(tap, batch.input, labels)
    for sample in (0, 1):
        at, of = tap.rows(sample), batch.input.rows(sample)
        assert np.array_equal(found[at], majority(tap.coord[at].numpy(), batch.input.coord[of].numpy(), labels[of]))
    assert len(found[found >= 0].unique()) > 2


def test_ties_go_to_the_smallest_label_and_points_without_a_vote_have_none():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0]])
    tap = Ragged(torch.zeros(3, 1), line, torch.tensor([0, 3]))
    near = torch.tensor([[0.1, 0, 0], [0.2, 0, 0], [0.9, 0, 0], [5, 0, 0]])
    batch = Ragged(torch.zeros(4, 1), near, torch.tensor([0, 4]))
    assert tap_labels(tap, batch, torch.tensor([2, 1, 0, -1])).tolist() == [1, 0, -1]
    assert tap_labels(tap, batch, torch.full((4,), -1)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("kind", [CSFR, ISFR])
def test_scores_are_what_the_modules_take_the_softmax_of(kind):
    generator = torch.Generator().manual_seed(0)
    tap = Ragged(torch.randn(9, 4, generator=generator), torch.zeros(9, 3), torch.tensor([0, 5, 9]))
    module = kind(4)
    with torch.no_grad():
        module.weight.normal_(generator=generator)
    points = torch.tensor([0, 3, 4])
    expected = module.affinity_rows(tap, points, *([torch.tensor([1, 0])] if kind is CSFR else []))
    torch.testing.assert_close(affinity_scores(module, tap, points).softmax(1).float(), torch.stack(expected))


def by_loops(opened, name):
    """`after` and `chance` of a module, a point at a time."""
    found = []
    for pair in draw_pairs(opened, PAIRS, np.random.default_rng(0)):
        batch = collate(pair)
        with torch.no_grad():
            tap, _ = opened.model.net.encode(batch.input)
        labels = majority_of(tap, batch)
        first = tap.lengths[0]
        source = np.arange(first) if name == "isfr" else np.arange(first, len(labels))
        for point in range(first):
            others = [s for s in source if labels[s] >= 0 and s != point]
            if labels[point] < 0 or not any(labels[s] == labels[point] for s in others):
                continue
            module = opened.modules[name]
            partner = [] if name == "isfr" else [torch.tensor([1, 0])]
            row = module.affinity_rows(tap, torch.tensor([point]), *partner)[0].double().numpy()
            mass = {s: row[s - source[0]] for s in others}
            same = [s for s in others if labels[s] == labels[point]]
            own = row[point] if name == "isfr" else None
            found.append((labels[point], sum(mass[s] for s in same) / sum(mass.values()), len(same) / len(others), own))
    return found


def majority_of(tap, batch):
    """The labels at the tap of a pair."""
    parts = [(tap.rows(i), batch.input.rows(i)) for i in (0, 1)]
    coord = tap.coord.numpy(), batch.input.coord.numpy()
    return np.concatenate([majority(coord[0][at], coord[1][of], batch.labels[of].numpy()) for at, of in parts])


def test_shares_are_those_of_loops_over_points(run, rooms_store):
    """Of both modules: mean, mean of every class, chance, and what ISFR keeps for itself."""
    shares, opened = affinity_shares(run, PAIRS), TrainedRun.open(run)
    assert list(shares) == ["csfr", "isfr"]
    for name, part in shares.items():
        expected = by_loops(opened, name)
        assert (part["points"], part["balls"]) == (len(expected), PAIRS)
        labels, after, chance, own = map(np.array, zip(*expected, strict=True))
        assert part["after"]["mean"] == pytest.approx(after.mean(), abs=1e-4)
        assert part["chance"]["mean"] == pytest.approx(chance.mean())
        for label, title in enumerate(rooms_store.classes):
            of = labels == label
            for key, values in (("after", after), ("chance", chance)):
                mean = pytest.approx(values[of].mean(), abs=1e-4) if of.any() else None
                assert part[key]["by_class"][title] == mean
        if name == "isfr":
            assert part["after"]["self"] == pytest.approx(own.mean(), abs=1e-4)
        else:
            assert "self" not in part["after"]


def test_affinity_that_is_the_same_to_all_gives_chance(run):
    """W = 0: the measure has no bias towards the same class, in ISFR neither."""
    set_modules(run, load_model(run).net.tap.channels, scale=0.0)
    for part in affinity_shares(run, PAIRS).values():
        assert part["after"]["mean"] == pytest.approx(part["chance"]["mean"])
        assert part["before"]["mean"] != pytest.approx(part["chance"]["mean"], rel=1e-3)


def test_affinity_that_one_point_takes_has_a_share_all_the_same(run):
    """The point with the largest features takes all affinity, its own, too; of that, what is left still counts."""
    channels = load_model(run).net.tap.channels
    save_modules(run / "modules.pt", {"isfr": {"weight": 1e4 * torch.eye(channels)}})
    shares = affinity_shares(run, PAIRS)
    assert list(shares) == ["isfr"] and 0 < shares["isfr"]["after"]["self"] < 0.2
    assert 0 < shares["isfr"]["after"]["mean"] < 1


def test_only_after_depends_on_what_was_trained(run):
    """Another model in the folder: it is measured anew, and the beginning is what it was."""
    first = affinity_shares(run, PAIRS)
    model = load_model(run)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.mul_(1.5)
    save_model(run / "model.pt", model)
    second = affinity_shares(run, PAIRS)
    for name in first:
        assert first[name]["before"] == second[name]["before"] != second[name]["after"]
        assert first[name]["after"] != second[name]["after"]


def test_shares_are_measured_once(run, monkeypatch):
    """They are read again where the settings are the same, and measured where they are not or cannot be read."""
    shares = affinity_shares(run, PAIRS)
    assert shares == json.loads((run / FILE).read_text())["shares"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainedRun, "open", lambda folder: pytest.fail("measured again"))
        assert affinity_shares(run, PAIRS) == shares
    assert affinity_shares(run, PAIRS, seed=1) != shares
    (run / FILE).write_text('{"shares"')
    assert affinity_shares(run, PAIRS) == shares


def test_another_store_in_the_place_of_the_first_is_measured_anew(run, rooms_store, tmp_path):
    """Shares are of the scenes, too: those that were kept are not of the scenes that are there now."""
    place = tmp_path / "store"
    shutil.copytree(rooms_store.path, place)
    config = (run / "config.yaml").read_text().replace(str(rooms_store.path), str(place))
    (run / "config.yaml").write_text(config)
    first = affinity_shares(run, PAIRS)
    groups = {"Area_1": "Area_2", "Area_2": "Area_1"}
    scenes = [{**scene, "group": groups[scene["group"]]} for scene in rooms_store.manifest["scenes"]]
    write_json(place / "manifest.json", rooms_store.manifest | {"scenes": scenes})
    assert affinity_shares(run, PAIRS) != first


def test_a_run_without_modules_has_no_shares(run):
    save_modules(run / "modules.pt", {})
    assert affinity_shares(run, PAIRS) == {}


def test_what_cannot_be_measured_is_named(run, tmp_path, rooms_store):
    with pytest.raises(UserError, match="pairs must be at least 1, got 0"):
        affinity_shares(run, 0)
    with pytest.raises(UserError, match=r"model\.pt: cannot be read, expected the folder of a finished run"):
        affinity_shares(tmp_path)
    manifest = rooms_store.manifest | {"classes": ["other", *rooms_store.classes[1:]]}
    folder = tmp_path / "store"
    folder.mkdir()
    write_json(folder / "manifest.json", manifest)
    config = (run / "config.yaml").read_text().replace(str(rooms_store.path), str(folder))
    (run / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"the store has classes \['other'"):
        affinity_shares(run, PAIRS)


def test_pairs_share_the_class_of_their_centres(run):
    """A test ball and a training ball, around points of one class; the same seed draws the same."""
    opened = TrainedRun.open(run)
    first, again = (draw_pairs(opened, 20, np.random.default_rng(3)) for _ in range(2))
    classes = Counter()
    for pair, other in zip(first, again, strict=True):
        centres = [int(sample.labels[(sample.coord**2).sum(1).argmin()]) for sample in pair]
        assert centres[0] == centres[1] and all(map(np.array_equal, (p.rows for p in pair), (p.rows for p in other)))
        groups = [opened.store.scenes[sample.scene].group for sample in pair]
        assert groups == [opened.config.data.test_groups[0], opened.config.data.train_groups[0]]
        classes[centres[0]] += 1
    assert len(classes) > 4
    with pytest.raises(UserError, match="no class has a labelled point in both"):
        draw_pairs(replace(opened, train_scenes=[]), 1, np.random.default_rng(0))
