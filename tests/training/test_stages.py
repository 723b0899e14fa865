"""What the stages optimise, on both backbones."""

import copy

import pytest
import torch
from tiny import DEFORMABLE, batch_of, tiny_net

from dsp_sparse.backbones.norm import BatchNorm
from dsp_sparse.config import LossConfig
from dsp_sparse.losses import consistency_loss, segmentation_loss
from dsp_sparse.training.stages import METHODS, STAGES, Objective, running_statistics_kept, takes_pairs

TERMS = {
    "baseline": {"seg"},
    "csfr": {"seg", "cr"},
    "isfr": {"seg", "sr", "seg_s"},
    "joint": {"seg", "cr", "sr", "seg_s"},
}


def test_methods_are_sequences_of_stages():
    """The method is csfr, then isfr; the control has one stage without modules; stages with csfr take pairs."""
    assert METHODS["csfr-isfr"] == ("csfr", "isfr")
    assert METHODS["isfr-csfr"] == ("isfr", "csfr")
    assert METHODS["baseline"] == ("baseline",) and STAGES["baseline"] == ()
    assert {stage for stage in STAGES if takes_pairs(stage)} == {"csfr", "joint"}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_the_total_is_the_weighted_sum_of_the_terms(stage, store, settings, backbone):
    """Eq. 11 and 12: seg + λ_cr·CR, seg + seg_s + λ_sr·SR; each term by its name."""
    config = LossConfig(lambda_cr=0.5, lambda_sr=3.0)
    objective = Objective(tiny_net(backbone), stage, config)
    losses = objective(batch_of(store, settings))
    total = losses.pop("total")
    assert set(losses) == TERMS[stage]
    weights = {"cr": 0.5, "sr": 3.0}
    torch.testing.assert_close(total, sum(weights.get(name, 1.0) * loss for name, loss in losses.items()))


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_deformable_network_is_regularised(stage, store, settings):
    """In every stage, once: the term of the plain encoding, weighted with λ_reg; it trains the offsets even alone."""
    batch = batch_of(store, settings)
    net = tiny_net("kpfcnn", **DEFORMABLE)
    losses = Objective(net, stage, LossConfig(lambda_reg=2.0))(batch)
    assert set(losses) == TERMS[stage] | {"reg", "total"}
    torch.testing.assert_close(losses["reg"], net.regularization(net.encode(batch.input)[1]))
    rest = sum(losses[name] for name in TERMS[stage])
    torch.testing.assert_close(losses["total"], rest + 2 * losses["reg"])
    losses["reg"].backward()
    assert all(parameter.grad.any() for parameter in net.offset_parameters())


def test_the_switches_of_the_ablations(store, settings):
    """Table 2: seg_c adds the segmentation loss of the cross branch, seg_s: false leaves the intra branch's out."""
    batch = batch_of(store, settings)
    with_c = Objective(tiny_net("kpfcnn"), "csfr", LossConfig(seg_c=True))(batch)
    without_s = Objective(tiny_net("kpfcnn"), "isfr", LossConfig(seg_s=False))(batch)
    assert set(with_c) == {"seg", "cr", "seg_c", "total"}
    torch.testing.assert_close(with_c["total"], with_c["seg"] + with_c["cr"] + with_c["seg_c"])
    assert set(without_s) == {"seg", "sr", "total"}
    torch.testing.assert_close(without_s["total"], without_s["seg"] + without_s["sr"])


def test_every_term_is_what_the_paper_says(store, settings, backbone):
    """The branches decode reallocated features with the sample's own state and meet the basic branch's logits."""
    batch = batch_of(store, settings)
    objective = Objective(tiny_net(backbone), "joint", LossConfig(seg_c=True, consistency_reduction="sum")).eval()
    losses = objective(batch)
    net, offsets = objective.net, batch.input.offsets
    tap, state = net.encode(batch.input)
    basic = net.decode(tap.feat, state)
    cross = net.decode(objective.branches["csfr"](tap, batch.partner).feat, state)
    intra = net.decode(objective.branches["isfr"](tap).feat, state)
    expected = {
        "seg": segmentation_loss(basic, batch.labels),
        "cr": consistency_loss(basic, cross, offsets, "sum"),
        "seg_c": segmentation_loss(cross, batch.labels),
        "sr": consistency_loss(basic, intra, offsets, "sum"),
        "seg_s": segmentation_loss(intra, batch.labels),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("stage", "term"), [("csfr", "cr"), ("isfr", "sr")])
def test_consistency_reaches_the_features_of_unlabelled_points(stage, term, store, settings, backbone):
    """The point of the method: CR and SR send a gradient to features that the segmentation loss leaves without."""
    batch = batch_of(store, settings)
    unlabelled = slice(int(batch.input.offsets[1]), None)
    batch.labels[unlabelled] = -1  # the second sample has no label at all
    objective = Objective(tiny_net(backbone), stage, LossConfig()).eval()  # eval: batch statistics carry no gradient
    taps = []
    encode = objective.net.encode
    objective.net.encode = lambda *arguments: taps.append(encode(*arguments)) or taps[-1]
    losses = objective(batch)
    tap = taps[0][0]
    second = tap.rows(1)
    seg = torch.autograd.grad(losses["seg"], tap.feat, retain_graph=True)[0]
    consistency = torch.autograd.grad(losses[term], tap.feat)[0]
    assert seg[tap.rows(0)].any() and not seg[second].any()
    assert consistency[second].abs().sum(1).all()


def test_labels_of_one_sample_train_the_features_of_its_partner(store, settings, backbone):
    """With a segmentation loss on the cross branch alone, the labels of sample 0 reach the features of sample 1."""
    batch = batch_of(store, settings)
    batch.labels[int(batch.input.offsets[1]) :] = -1
    objective = Objective(tiny_net(backbone), "csfr", LossConfig(seg_c=True)).eval()
    tap, state = objective.net.encode(batch.input)
    logits = objective.net.decode(objective.branches["csfr"](tap, batch.partner).feat, state)
    gradient = torch.autograd.grad(segmentation_loss(logits, batch.labels), tap.feat)[0]
    assert gradient[tap.rows(1)].abs().sum(1).all()


@pytest.mark.parametrize("stage", ["csfr", "isfr", "joint"])
def test_running_statistics_are_those_of_the_basic_branch(stage, store, settings, backbone):
    """Decoding reallocated features leaves the running statistics as one plain training step leaves them."""
    batch = batch_of(store, settings)
    net = tiny_net(backbone).train()
    plain = copy.deepcopy(net)
    Objective(net, stage, LossConfig())(batch)
    plain(batch.input)
    running = {name: value for name, value in net.named_buffers() if "running" in name}
    assert running
    for name, value in plain.named_buffers():
        if name in running:
            assert torch.equal(running[name], value), name


def test_running_statistics_move_again_afterwards():
    """Every normalisation follows its batches again, also after an error; one that never did still does not."""
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(RuntimeError), running_statistics_kept(net):
        raise RuntimeError
    assert [norm.track_running_stats for norm in net] == [True, False]
    net(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    torch.testing.assert_close(net[0].running_mean, torch.tensor([0.2, 0.35]))


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d, BatchNorm])
def test_a_batch_that_is_not_finite_leaves_kept_statistics_alone(norm):
    net = norm(2)
    with running_statistics_kept(net):
        out = net(torch.full((3, 2), float("inf")))
    assert out.isnan().all()
    assert net.running_mean.tolist() == [0, 0] and net.running_var.tolist() == [1, 1]


def test_a_batch_without_labels_trains_on_consistency_alone(store, settings, backbone):
    """No labelled point: seg is exactly 0, the rest goes on, nothing is NaN."""
    batch = batch_of(store, settings)
    batch.labels.fill_(-1)
    objective = Objective(tiny_net(backbone), "joint", LossConfig())
    losses = objective(batch)
    losses["total"].backward()
    assert losses["seg"] == 0 and losses["seg_s"] == 0 and losses["cr"] > 0 and losses["sr"] > 0
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
