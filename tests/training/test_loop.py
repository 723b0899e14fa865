"""The training program: it learns, resumes to the same numbers, and says what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CLASSES, DEFORMABLE, OPTIONS, tiny_net, with_optim

from dsp_sparse.backbones import build_backbone
from dsp_sparse.data import split, weak_labels
from dsp_sparse.errors import UserError
from dsp_sparse.files import locked
from dsp_sparse.inference import BasicBranch, Voting, predict_probabilities
from dsp_sparse.training import loop
from dsp_sparse.training.checkpoint import TrainingState, load_model, load_modules
from dsp_sparse.training.epoch import Progress
from dsp_sparse.training.loop import derived_seed, train
from dsp_sparse.training.run import Run, load_config
from dsp_sparse.training.stages import METHODS


def weights_of(folder) -> dict[str, torch.Tensor]:
    """Every number a run ends with."""
    modules = {f"{k}.{n}": v for k, m in load_modules(folder / "modules.pt").items() for n, v in m.state_dict().items()}
    return {**load_model(folder).net.state_dict(), **modules}


def assert_same_run(first, second):
    a, b = weights_of(first), weights_of(second)
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    assert [line["losses"] for line in metrics_of(first)] == [line["losses"] for line in metrics_of(second)]


def metrics_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupt_after(monkeypatch, epochs: int):
    """Press Ctrl-C in the middle of the epoch that follows `epochs` finished ones."""
    done = []
    original = loop.train_epoch

    def train_epoch(*arguments):
        if len(done) == epochs:
            original(*arguments)  # the network has moved on past the checkpoint
            raise KeyboardInterrupt
        done.append(True)
        return original(*arguments)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_learns(method, backbone, settings, tmp_path):
    """The segmentation loss falls, and the trained network beats chance (1/3) by far."""
    config = with_optim(replace(settings, method=method, backbone=backbone), epochs=8, steps_per_epoch=5)
    results = train(config, tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert [line["objective"] for line in lines] == [stage for stage in METHODS[method] for _ in range(8)]
    assert lines[7]["losses"]["seg"] < 0.9 * lines[0]["losses"]["seg"]
    assert results["overall_accuracy"] > 0.6
    assert results["steps"] == 40 * len(METHODS[method])


def test_a_run_is_a_function_of_its_seed(backbone, settings, tmp_path):
    """The same settings give the same numbers; another seed gives others."""
    config = with_optim(replace(settings, backbone=backbone, method="csfr"), epochs=1)
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        train(replace(config, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "other")
    assert not any(torch.equal(one[name], other[name]) for name in one if name.startswith(("csfr", "isfr")))


@pytest.mark.parametrize("done", [1, 2, 3])
def test_an_interrupted_run_ends_with_the_same_numbers(done, backbone, settings, tmp_path, monkeypatch):
    """Interrupted in the first stage, at the change of stages or in the second: as if it had run straight through."""
    config = replace(settings, backbone=backbone)
    train(config, tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, done)
        train(config, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "model.pt").exists()
    train(config, tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.fixture
def deformable(settings):
    """The settings with a deformable KPFCNN."""
    return replace(settings, backbone="kpfcnn", kpfcnn=replace(settings.kpfcnn, **DEFORMABLE))


def test_a_deformable_network_learns_and_resumes(deformable, tmp_path, monkeypatch):
    """The regularisation is a loss of its own name, and falls; interrupted, the run ends with the same numbers."""
    config = with_optim(replace(deformable, method="isfr"), epochs=4, steps_per_epoch=5)
    train(config, tmp_path / "straight")
    lines = metrics_of(tmp_path / "straight")
    assert 0 < lines[3]["losses"]["reg"] < 0.9 * lines[0]["losses"]["reg"]
    assert lines[3]["losses"]["seg"] < 0.9 * lines[0]["losses"]["seg"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 3)
        train(config, tmp_path / "resumed")
    train(config, tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_offsets_learn_at_a_rate_of_their_own(factor, deformable, tmp_path, monkeypatch):
    """Parameters that move kernel points step `offset_lr_factor` as far as at the common rate, in every epoch."""
    epochs = []
    original = loop.train_epoch

    def train_epoch(stepper, *rest):
        objective, optimizer = stepper.objective, stepper.optimizer
        moving = set(objective.net.offset_parameters())
        for group in optimizer.param_groups:
            assert set(group["params"]) in (moving, set(objective.parameters()) - moving)
        epochs.append([group["lr"] for group in optimizer.param_groups])
        return original(stepper, *rest)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    config = with_optim(replace(deformable, method="baseline"), offset_lr_factor=factor)
    train(config, tmp_path / "run")
    (first, slow), (later, slower) = epochs
    assert first == config.optim.lr > later
    assert (slow, slower) == pytest.approx((factor * first, factor * later))
    start, end = tiny_net("kpfcnn", config.seed, **DEFORMABLE).state_dict(), weights_of(tmp_path / "run")
    moved = {key for key, value in start.items() if "offset" in key and not torch.equal(value, end[key])}
    assert bool(moved) == bool(factor)


def test_epochs_after_the_last_checkpoint_are_repeated(settings, tmp_path, monkeypatch):
    """With a checkpoint every second epoch the third is done again; a line that was cut short is dropped."""
    config = with_optim(replace(settings, method="isfr"), epochs=5, steps_per_epoch=1, checkpoint_every=2)
    train(config, tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 3)
        train(config, tmp_path / "resumed")
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 0, "epo')
    train(config, tmp_path / "resumed")
    assert [line["epoch"] for line in metrics_of(tmp_path / "resumed")] == [1, 2, 3, 4, 5]
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_stages_carry_the_network_and_start_everything_else_anew(settings, tmp_path, monkeypatch):
    """Stage 2 starts from stage 1's encoder and decoder, with a fresh module, optimiser and learning rate."""
    seen = []
    original = loop.train_epoch

    def train_epoch(stepper, *rest):
        objective, optimizer = stepper.objective, stepper.optimizer
        before = {name: value.clone() for name, value in objective.net.state_dict().items()}
        branches = {name: m.weight.detach().clone() for name, m in objective.branches.items()}
        momentum = len(optimizer.state_dict()["state"])
        rate = optimizer.param_groups[0]["lr"]
        result = original(stepper, *rest)
        after = {name: value.clone() for name, value in objective.net.state_dict().items()}
        seen.append((before, after, branches, momentum, rate))
        return result

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    train(settings, tmp_path / "run")
    (_, _, _, _, first), (_, end_of_first, _, _, second), (start, *_, branches, momentum, third), _ = seen
    assert all(torch.equal(end_of_first[name], start[name]) for name in start)
    size = len(branches["isfr"])
    assert list(branches) == ["isfr"] and torch.equal(branches["isfr"], torch.eye(size) / size**0.5)
    assert momentum == 0
    assert first == third == settings.optim.lr
    # After both epochs the rate would be lr · lr_decay: one epoch takes it half the way, in the exponent.
    assert second == pytest.approx(first * settings.optim.lr_decay**0.5)
    assert set(load_modules(tmp_path / "run" / "modules.pt")) == {"csfr", "isfr"}


def test_metrics_lines_say_what_an_epoch_did(settings, tmp_path):
    """One JSON line an epoch: where, learning rate, losses, points, and where the seconds went."""
    train(replace(settings, method="joint"), tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert [(line["stage"], line["epoch"]) for line in lines] == [(0, 1), (0, 2)]
    for line in lines:
        assert set(line["losses"]) == {"seg", "cr", "sr", "seg_s", "total"}
        assert line["points"] > 0
        drawn = sum(line["labelled"].values())
        assert list(line["labelled"]) == list(line["pairs"]) == CLASSES
        # Every pair has a labelled point of its class in both balls; points are never all labelled.
        assert sum(line["pairs"].values()) == settings.optim.steps_per_epoch * settings.data.batch_size // 2
        assert all(line["labelled"][name] >= 2 * count for name, count in line["pairs"].items())
        assert drawn < settings.optim.steps_per_epoch * line["points"]
        parts = dict(line["seconds"])
        total = parts.pop("total")
        assert set(parts) == {"data", "geometry", "forward", "backward", "optimiser"}
        assert 0.5 * total < sum(parts.values()) <= total


def test_an_epoch_in_words():
    """The names that reports use, and shares that add up, whatever was rounded and whatever no part took."""
    seconds = {"data": 1.0, "geometry": 1.0, "forward": 1.0, "wait": 0.0, "total": 4.0}
    said = Progress(steps=8, losses={"total": 8.0}, seconds=seconds).summary()
    assert said == "loss 1, 500 ms a step: data 33 %, pyramid 34 %, forward 33 %, other processes 0 %"


def test_labels_and_pairs_are_counted_as_they_were_drawn(settings, tmp_path):
    """Class by class: every labelled point of every batch, and the class of every pair."""
    config = replace(settings, method="csfr", data=replace(settings.data, batch_size=8))
    train(config, tmp_path / "run")
    drawn, steps = list(loop.open_sources(config).batches(0)), config.optim.steps_per_epoch
    for epoch, line in enumerate(metrics_of(tmp_path / "run")):
        batches = drawn[epoch * steps :][:steps]
        labels = torch.cat([batch.labels for batch in batches])
        pairs = [label for batch in batches for label in batch.pair_classes]
        assert len(pairs) == 8 and len(set(pairs)) > 1
        assert line["labelled"] == {name: int((labels == label).sum()) for label, name in enumerate(CLASSES)}
        assert line["pairs"] == {name: pairs.count(label) for label, name in enumerate(CLASSES)}


def test_batches_without_pairs_choose_no_classes(settings, tmp_path):
    train(with_optim(replace(settings, method="baseline"), epochs=1), tmp_path / "run")
    (line,) = metrics_of(tmp_path / "run")
    assert sum(line["labelled"].values()) > 0 and line["pairs"] == {}


def test_so_many_points_a_cloud(settings, store, tmp_path):
    """Training sees 20 labelled points a cloud, whatever groups it is told to leave to the test."""
    data = replace(settings.data, label_points=20, train_groups=None)
    config = with_optim(replace(settings, data=data), epochs=1)
    assert train(config, tmp_path / "run")["steps"] == 4
    labels = weak_labels(store, data.labelling, split(store, data)[0])
    assert [scene.group for scene in split(store, data)[0]] == ["train", "train"]
    assert [int((array >= 0).sum()) for array in labels] == [20, 20]
    assert load_config(tmp_path / "run") == config
    # Each step shows four balls, none of which holds more labels than its cloud.
    assert all(0 < sum(line["labelled"].values()) <= 2 * 4 * 20 for line in metrics_of(tmp_path / "run"))


def test_a_mask_of_ones_own(settings, store, tmp_path):
    """Only the masked class is learnt from; clouds that are only tested need no mask."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for scene in store.group(["train"]):
        np.save(masks / f"{scene.cloud}.npy", scene.original_labels == 1)
    config = with_optim(replace(settings, data=replace(settings.data, label_mask=str(masks))), epochs=1)
    train(config, tmp_path / "run")
    for line in metrics_of(tmp_path / "run"):
        labelled = line["labelled"]
        assert labelled.pop(CLASSES[1]) > 0 and not any(labelled.values())
    (masks / "room_1.npy").unlink()
    with pytest.raises(UserError, match="no mask of the cloud room_1"):
        train(config, tmp_path / "other")


def test_the_model_holds_the_backbone_alone_and_predicts_as_in_training(backbone, settings, tmp_path, monkeypatch):
    """model.pt has no reallocation module, and predicts bit for bit what the training network's basic branch does."""
    trained = []
    original = loop.train_stages
    monkeypatch.setattr(loop, "train_stages", lambda net, *rest: trained.append(net) or original(net, *rest))
    train(with_optim(replace(settings, backbone=backbone), epochs=1), tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert set(model.net.state_dict()) == set(tiny_net(backbone).state_dict())
    assert (model.classes, list(model.features)) == (CLASSES, ["red", "green", "blue"])
    scene = loop.SceneStore.open(settings.data.store).group(["test"])[0]
    voting = Voting(radius=model.radius, votes=1)
    first, second = (predict_probabilities(BasicBranch(net), scene, voting) for net in (trained[0], model.net))
    assert torch.equal(first, second)


def pretrained(folder, name: str, classes: int) -> dict[str, torch.Tensor]:
    """Parameters of a network with as many classes, written to a file with nothing else in it."""
    torch.manual_seed(5)
    net = build_backbone(name, 5, classes, **OPTIONS[name])
    torch.save({"state_dict": net.state_dict()}, folder / "weights.pth")
    return {key: value.clone() for key, value in net.named_parameters()}


@pytest.mark.parametrize("classes", [3, 8])
def test_a_run_can_start_from_other_weights(classes, backbone, settings, tmp_path):
    """A training that moves nothing ends with the weights that it was given; a last layer for another number of classes
    stays the run's own."""
    weights = pretrained(tmp_path, backbone, classes)
    config = replace(settings, method="baseline", backbone=backbone, init=str(tmp_path / "weights.pth"))
    train(with_optim(config, epochs=1, lr=1e-30), tmp_path / "run")
    net = load_model(tmp_path / "run").net
    torch.manual_seed(config.seed)
    own = dict(build_backbone(backbone, 5, len(CLASSES), **OPTIONS[backbone]).named_parameters())
    for key, value in net.named_parameters():
        last = key.startswith(("head.2.", "final."))
        expected = own[key] if last and classes != len(CLASSES) else weights[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-20, msg=key)


def test_an_interrupted_run_goes_on_without_the_weights_it_started_from(settings, tmp_path, monkeypatch):
    """The checkpoint takes their place: the file may be gone, and is not read again."""
    pretrained(tmp_path, "kpfcnn", len(CLASSES))
    config = replace(settings, method="baseline", init=str(tmp_path / "weights.pth"))
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "resumed")
    (tmp_path / "weights.pth").unlink()
    train(config, tmp_path / "resumed")
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_weights_that_do_not_fit_stop_a_run_before_it_writes(settings, tmp_path):
    pretrained(tmp_path, "minkunet", len(CLASSES))
    config = replace(settings, init=str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match=r"weights\.pth: weights of another architecture than this KPFCNN"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_returns_at_once(settings, tmp_path, monkeypatch):
    """The second call reads the results and touches neither the store nor the network."""
    config = with_optim(replace(settings, method="baseline"), epochs=1)
    results = train(config, tmp_path / "run")
    monkeypatch.setattr(loop, "SceneStore", None)
    assert train(config, tmp_path / "run") == results


def test_settings_come_back_from_the_run_folder(settings, tmp_path):
    """config.yaml holds every setting; reading it gives the settings it was written from."""
    Run(tmp_path / "run", settings).start()
    assert load_config(tmp_path / "run") == settings
    (tmp_path / "run" / "config.yaml").write_text("method: unknown\n")
    with pytest.raises(UserError, match=r"config\.yaml: not the settings of a run"):
        load_config(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("- method\n")
    with pytest.raises(UserError, match=r"config\.yaml: expected settings by name, got a list"):
        load_config(tmp_path / "run")
    with pytest.raises(UserError, match=r"not the folder of a run \(no config\.yaml\)"):
        load_config(tmp_path / "nowhere")


def test_a_folder_of_another_run_is_refused(settings, tmp_path):
    """The first setting that differs is named, with both values. A run that failed before its first checkpoint left
    nothing to protect: its folder takes corrected settings."""
    other = replace(settings, data=replace(settings.data, label_rate=0.2), seed=3)
    Run(tmp_path / "run", other).start()
    run = Run(tmp_path / "run", settings)
    run.start()
    run.save(TrainingState(net={}))
    with pytest.raises(UserError, match=r"data\.label_rate 0\.1, not 0\.2"):
        train(other, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(settings, tmp_path, monkeypatch):
    """The message names stage and epoch; the last checkpoint is untouched and the folder resumes from it."""
    config = with_optim(replace(settings, method="baseline"), epochs=3)
    original = loop.train_epoch
    calls = []

    def train_epoch(stepper, *rest):
        calls.append(True)
        if len(calls) == 3:
            with torch.no_grad():
                next(stepper.objective.parameters()).fill_(float("nan"))
        return original(stepper, *rest)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match="baseline, epoch 3: the loss is nan"):
        patch.setattr(loop, "train_epoch", train_epoch)
        train(config, tmp_path / "run")
    assert len(metrics_of(tmp_path / "run")) == 2
    train(config, tmp_path / "run")
    train(config, tmp_path / "straight")
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("setting, value", [("label_mask", "masks"), ("label_points", 5), ("label_rate", 1e-6)])
def test_a_training_without_a_labelled_point_is_refused(setting, value, settings, store, tmp_path, monkeypatch):
    """By the setting that leaves none, before anything is written."""
    data = replace(settings.data, **{setting: value, "label_by": "cloud"})
    if setting == "label_mask":
        data = replace(data, label_mask=str(tmp_path / "masks"))
        (tmp_path / "masks").mkdir()
        for scene in store.group(["train"]):
            np.save(tmp_path / "masks" / f"{scene.cloud}.npy", np.zeros(scene.num_original, bool))
    elif setting == "label_points":  # of a cloud whose labels are too few to show on the grid
        monkeypatch.setattr(loop, "weak_labels", lambda _, __, scenes: [np.full(s.num_points, -1) for s in scenes])
    with pytest.raises(UserError, match=rf"data.{setting} .*{value} leaves no point labelled to train on"):
        train(replace(settings, method="baseline", data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["train_groups", "test_groups"])
def test_groups_without_a_labelled_point_are_refused(setting, settings, tmp_path):
    config = replace(settings, data=replace(settings.data, **{setting: []}))
    with pytest.raises(UserError, match=rf"data\.{setting} \[\]: no scene there has a labelled point"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_process_trains_in_is_refused(settings, tmp_path):
    """Nothing is written beside what the other one writes; when it is done, training goes on."""
    config, folder = with_optim(replace(settings, method="baseline"), epochs=1), tmp_path / "run"
    folder.mkdir()
    with locked(folder), pytest.raises(UserError, match="run: another process is writing this folder"):
        train(config, folder)
    assert not list(folder.iterdir())
    assert train(config, folder)["steps"] == 2


def test_what_does_not_fit_together_is_named(settings, tmp_path):
    """A wrong grid, an unknown group, an odd batch that a later stage pairs up: told before anything is written."""
    wrong_grid = replace(settings, kpfcnn=replace(settings.kpfcnn, grid_size=0.04))
    with pytest.raises(UserError, match=r"grid is 0\.1 m, expected 0\.04 m"):
        train(wrong_grid, tmp_path / "grid")
    wrong_group = replace(settings, data=replace(settings.data, test_groups=["Area_9"]))
    with pytest.raises(UserError, match="no group 'Area_9'"):
        train(wrong_group, tmp_path / "group")
    odd = replace(settings, method="isfr-csfr", data=replace(settings.data, batch_size=3))
    with pytest.raises(UserError, match=r"data\.batch_size must be even for the pairs of isfr-csfr, got 3"):
        train(odd, tmp_path / "odd")
    with pytest.raises(UserError, match="not a scene store"):
        train(replace(settings, data=replace(settings.data, store=str(tmp_path))), tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_seeds_of_stages_and_epochs_differ():
    """A seed is derived from all of its numbers, in their order."""
    seeds = [derived_seed(*numbers) for numbers in ((0, 1), (1, 0), (0, 0), (0, 1, 0), (0, 1, 1))]
    assert len(set(seeds)) == len(seeds)
    assert derived_seed(0, 1) == derived_seed(0, 1)
