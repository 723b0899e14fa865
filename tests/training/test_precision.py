"""Half precision where it is enough, float32 where it is not."""

from dataclasses import replace

import pytest
import torch
from ranks import happen
from test_loop import assert_same_run, metrics_of, weights_of
from tiny import batch_of, tiny_net, with_optim

from dsp_sparse.config import ComputeConfig, LossConfig
from dsp_sparse.training import loop, stages
from dsp_sparse.training.checkpoint import load_state
from dsp_sparse.training.clock import Clock
from dsp_sparse.training.loop import train
from dsp_sparse.training.stages import Objective
from dsp_sparse.training.step import Stepper
from dsp_sparse.training.stop import Interrupted

HALF = ["bfloat16", "float16"]


def stepper_of(net, precision: str, stage: str = "joint") -> Stepper:
    objective = Objective(net, stage, LossConfig())
    return Stepper(
        objective, torch.optim.SGD(objective.parameters(), lr=0.01), 100.0, ComputeConfig(precision=precision)
    )


def step(stepper, batch) -> dict:
    return stepper([batch], Clock(stepper.device, {}), lambda: False)[0]


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_is_close(precision, backbone, store, settings):
    """Losses within a few per cent of float32's, not the same; weights and statistics stay float32."""
    batch = batch_of(store, settings)
    expected = step(stepper_of(tiny_net(backbone), "float32"), batch)
    net = tiny_net(backbone)
    losses = step(stepper_of(net, precision), batch)
    assert losses != expected
    for name, loss in expected.items():
        assert losses[name] == pytest.approx(loss, rel=0.05), name
    assert {v.dtype for v in net.state_dict().values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("precision", HALF)
def test_affinities_and_losses_are_float32(precision, backbone, store, settings, monkeypatch):
    """What the reallocation modules and the losses see, while the layers compute in half precision."""
    batch, stepper, seen = batch_of(store, settings), stepper_of(tiny_net(backbone), precision), {}
    for name, branch in stepper.objective.branches.items():
        branch.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: (inputs[0].feat, out.feat)}))
    decode = stepper.objective.net.decode
    monkeypatch.setattr(stepper.objective.net, "decode", lambda *a: seen.setdefault("logits", (decode(*a),))[0])
    for name in ("segmentation_loss", "consistency_loss"):
        loss = getattr(stages, name)
        monkeypatch.setattr(stages, name, lambda *a, name=name, loss=loss: seen.update({name: a[:1]}) or loss(*a))
    step(stepper, batch)
    dtypes = {name: {tensor.dtype for tensor in tensors} for name, tensors in seen.items()}
    half = {getattr(torch, precision)}
    single = {torch.float32}
    assert dtypes == dict.fromkeys(["csfr", "isfr", "segmentation_loss", "consistency_loss"], single) | {"logits": half}


@pytest.mark.parametrize(("precision", "backbone"), [("bfloat16", "minkunet"), ("float16", "kpfcnn")])
def test_a_run_in_half_precision_learns_and_resumes(precision, backbone, settings, tmp_path, monkeypatch):
    """The loss falls; stopped in the middle of an epoch it ends with the same bits, the gradient scale included."""
    config = replace(settings, backbone=backbone, method="isfr", compute=ComputeConfig(precision=precision))
    config = with_optim(config, epochs=2, steps_per_epoch=4)
    train(config, tmp_path / "straight")
    lines = metrics_of(tmp_path / "straight")
    assert lines[-1]["losses"]["seg"] < lines[0]["losses"]["seg"]
    original = loop.train_epoch

    def stopped(stepper, batches, accumulate, progress, *rest):
        batches = (happen("SIGTERM" if number == 1 else None) or batch for number, batch in enumerate(batches))
        return original(stepper, batches, accumulate, progress, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_epoch", stopped)
        train(config, tmp_path / "stopped")
    state = load_state(tmp_path / "stopped" / "checkpoint.pt")
    assert state.step == 2 and bool(state.scaler) == (precision == "float16")
    train(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    assert {value.dtype for value in weights_of(tmp_path / "stopped").values() if value.is_floating_point()} == {
        torch.float32
    }


def test_a_scale_that_is_too_large_skips_a_step_and_is_no_fault(store, settings):
    """Gradients overflow: the weights stand still, the scale falls, the loss is finite; then the step is taken."""
    batch, stepper = batch_of(store, settings), stepper_of(tiny_net("kpfcnn"), "float16")
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1e30, backoff_factor=1e-29)
    before = [p.detach().clone() for p in stepper.objective.parameters()]
    assert step(stepper, batch)["total"] < 100
    assert all(map(torch.equal, before, stepper.objective.parameters()))
    assert stepper.scaler.get_scale() == pytest.approx(10)
    step(stepper, batch)
    assert not any(map(torch.equal, before, stepper.objective.parameters()))


def test_gradients_are_clipped_as_they_are_not_as_they_are_scaled(store, settings, monkeypatch):
    """The step of a clipped gradient is at most lr times the limit, and reaches it."""
    batch, stepper = batch_of(store, settings), stepper_of(tiny_net("kpfcnn"), "float16")
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    stepper.clip_value = 1e-3
    before = [p.detach().clone() for p in stepper.objective.parameters()]
    step(stepper, batch)
    moved = max((a - b).abs().max().item() for a, b in zip(before, stepper.objective.parameters(), strict=True))
    assert moved == pytest.approx(0.01 * 1e-3, rel=0.01)


def test_gradients_that_no_scale_saves_stop(settings, tmp_path, monkeypatch):
    """Else every step would be skipped, without a word, to the end of the run."""
    original = loop.train_epoch

    def poisoned(stepper, *rest):
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1e-5, backoff_factor=1e-2)
        next(stepper.objective.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return original(stepper, *rest)

    monkeypatch.setattr(loop, "train_epoch", poisoned)
    config = replace(settings, method="baseline", compute=ComputeConfig(precision="float16"))
    with pytest.raises(FloatingPointError, match="baseline, epoch 1: the gradients in float16 are not finite"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_a_loss_that_is_not_finite_still_stops(precision, settings, tmp_path, monkeypatch):
    original = loop.train_epoch

    def poisoned(stepper, *rest):
        with torch.no_grad():
            next(stepper.objective.parameters()).fill_(float("nan"))
        return original(stepper, *rest)

    monkeypatch.setattr(loop, "train_epoch", poisoned)
    config = replace(settings, method="baseline", compute=ComputeConfig(precision=precision))
    with pytest.raises(FloatingPointError, match="baseline, epoch 1: the loss is nan in step 1; a lower optim"):
        train(config, tmp_path / "run")
    assert metrics_of(tmp_path / "run") == []
