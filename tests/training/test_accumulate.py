"""The batches of a step count as the one large batch that they are parts of."""

import json
from dataclasses import replace

import pytest
import torch
from ranks import trained
from tiny import CLASSES, DEFORMABLE, tiny_net, with_optim

from dsp_sparse.config import LossConfig
from dsp_sparse.data import Labelling, train_loader, weak_labels
from dsp_sparse.training.checkpoint import load_state
from dsp_sparse.training.counts import Counts
from dsp_sparse.training.stages import STAGES, Objective
from dsp_sparse.training.stop import Interrupted


@pytest.fixture
def whole_and_parts(store, settings):
    """A batch of eight balls, and the same balls in two batches, the second without a label."""
    scenes = store.group(["train"])
    labels, data = weak_labels(store, Labelling(rate=0.1), scenes), replace(settings.data, batch_size=8)

    def first(size, rank=0, world=1):
        where = {"steps": 1, "seed": 0, "epochs": range(1), "pairs": True, "rank": rank, "world": world}
        batch = next(iter(train_loader(scenes, labels, replace(data, batch_size=size), settings.augment, **where)))
        return replace(batch, input=batch.input.with_feat(batch.input.feat.double()))

    whole, parts = first(8), [first(4, rank, 2) for rank in (0, 1)]
    start = len(parts[0].labels)
    assert torch.equal(whole.input.coord, torch.cat([part.input.coord for part in parts]))
    whole.labels[start:] = parts[1].labels[:] = -1
    return whole, parts


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("stage", sorted(STAGES))
def test_losses_and_gradients_of_parts_add_up(stage, reduction, whole_and_parts, backbone):
    """In eval mode, where no batch statistics tie the parts together; a deformable KPFCNN is regularised, too."""
    whole, parts = whole_and_parts
    net = tiny_net(backbone, **(DEFORMABLE if backbone == "kpfcnn" else {})).double()
    objective = Objective(net, stage, LossConfig(seg_c=True, consistency_reduction=reduction)).eval()
    expected = objective(whole)
    expected["total"].backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters()}
    objective.zero_grad()
    rows = [net.regularized_rows(net.geometry(part.input)) for part in parts]
    counts = Counts.of_step([Counts.of(part, len(CLASSES), r) for part, r in zip(parts, rows, strict=True)])
    assert counts.points == len(whole.labels) and counts.samples == 8
    assert counts.labelled.sum() == (whole.labels >= 0).sum() and counts.pairs.sum() == 4
    losses = [objective(part, counts=counts) for part in parts]
    for part in losses:
        part["total"].backward()
    for name, loss in expected.items():
        torch.testing.assert_close(sum(part[name] for part in losses), loss, rtol=1e-6, atol=1e-9, check_dtype=False)
    # The regularisation is computed in the float32 of the coordinates.
    for name, p in objective.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-6, atol=1e-7, msg=name)


def test_a_step_takes_all_its_batches(settings, tmp_path):
    """Three batches a step: three times the points and pairs a step, and as many steps."""
    lines = {}
    for accumulate in (1, 3):
        folder = tmp_path / str(accumulate)
        trained(with_optim(replace(settings, method="csfr"), epochs=1, accumulate=accumulate), folder)
        (lines[accumulate],) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    pairs = settings.optim.steps_per_epoch * settings.data.batch_size // 2
    assert [sum(lines[n]["pairs"].values()) for n in (1, 3)] == [pairs, 3 * pairs]
    assert 2 * lines[1]["points"] < lines[3]["points"] < 4 * lines[1]["points"]
    assert lines[3]["losses"]["seg"] == pytest.approx(lines[1]["losses"]["seg"], rel=0.5)  # a mean, not a sum


@pytest.mark.parametrize("batch", [0, 3, 9])
def test_a_run_that_is_stopped_goes_on_in_the_middle_of_its_epoch(batch, settings, tmp_path):
    """A signal in the first step, between two batches of a step, in the last epoch: the same bits as straight through,
    metrics included."""
    config = with_optim(replace(settings, method="csfr"), steps_per_epoch=3, accumulate=2)
    straight = trained(config, tmp_path / "straight")
    with pytest.raises(Interrupted):
        trained(config, tmp_path / "stopped", None, {(0, batch): "SIGTERM"})
    state = load_state(tmp_path / "stopped" / "checkpoint.pt")
    assert (state.epoch, state.step) == divmod(batch // 2 + 1, 3)
    resumed = trained(config, tmp_path / "stopped")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    lines = [
        [json.loads(line) | {"seconds": None} for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("straight", "stopped")
    ]
    assert len(lines[0]) == 2 and lines[0] == lines[1]
