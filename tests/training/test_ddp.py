"""Two processes train what one trains with batches twice as large."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
import yaml
from ranks import TIME_LIMIT, Pair, trained
from tiny import DEFORMABLE, with_optim
from torch import nn

from dsp_sparse import distributed
from dsp_sparse.backbones.norm import BatchNorm, synchronise
from dsp_sparse.data import split, train_loader, weak_labels
from dsp_sparse.errors import UserError
from dsp_sparse.training.checkpoint import load_state
from dsp_sparse.training.loop import derived_seed
from dsp_sparse.training.run import Run
from dsp_sparse.training.stages import METHODS, takes_pairs
from dsp_sparse.training.stop import Interrupted


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes; what a function does in both of them."""
    pair = Pair(tmp_path_factory.mktemp("meetings"))
    yield pair
    pair.close()


@pytest.fixture
def in_two(pair):
    """`in_two(function, *arguments)`: what it returns on both ranks; an error names the causes of both."""

    def call(function, *arguments):
        outcomes = pair(function, *arguments)
        problems = [f"rank {rank}: {report}" for rank, (_, report) in enumerate(outcomes) if report]
        assert not problems, "\n".join(problems)
        return tuple(result for result, _ in outcomes)

    return call


def losses_of(folder) -> list[dict]:
    return [json.loads(line)["losses"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(ours: dict, theirs: dict, tolerance: float = 1e-9, ignore: tuple[str, ...] = ()):
    """Names and values; `ignore`: ends of names that do not count."""
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        if not name.endswith(ignore):
            torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def halved(config):
    return replace(config, data=replace(config.data, batch_size=config.data.batch_size // 2))


CASES = {
    "kpfcnn": {"backbone": "kpfcnn", "method": "csfr-isfr"},
    "minkunet": {"backbone": "minkunet", "method": "csfr-isfr"},
    "joint": {"backbone": "minkunet", "method": "joint"},
    # Its regularisation is computed in the float32 of the coordinates.
    "deformable": {"backbone": "kpfcnn", "method": "csfr", "deformable": True, "accumulate": 2, "tolerance": 1e-7},
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_double_batch(case, settings, in_two, tmp_path):
    """The same loss curves, weights and running statistics, with batch statistics of both processes together."""
    changes = dict(CASES[case])
    if changes.pop("deformable", False):
        changes["kpfcnn"] = replace(settings.kpfcnn, **DEFORMABLE)
    accumulate, tolerance = changes.pop("accumulate", 1), changes.pop("tolerance", 1e-9)
    config = with_optim(replace(settings, **changes), steps_per_epoch=2, epochs=2, accumulate=accumulate)
    config = replace(config, compute=replace(config.compute, sync_batchnorm=True))
    alone = trained(config, tmp_path / "alone")
    ours, theirs = in_two(trained, halved(config), tmp_path / "two")
    assert_close(ours, alone, tolerance)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    lines = losses_of(tmp_path / "two")
    assert len(lines) == 2 * len(METHODS[config.method])
    for line, expected in zip(lines, losses_of(tmp_path / "alone"), strict=True):
        assert line == pytest.approx(expected, rel=tolerance)


def test_without_synchronisation_each_process_has_its_own_batch_statistics(backbone, settings, store, in_two, tmp_path):
    """As if one process had accumulated their batches; the running statistics are those of rank 0."""
    config = halved(replace(settings, backbone=backbone))

    def in_turn(stage, epoch, step):
        scenes = split(store, config.data)[0]
        where = {"steps": 2, "seed": derived_seed(config.seed, stage), "world": 2}
        where |= {"epochs": range(epoch, config.optim.epochs), "first_step": step}
        where["pairs"] = takes_pairs(METHODS[config.method][stage])
        labels = weak_labels(store, config.data.labelling, scenes)
        loaders = [train_loader(scenes, labels, config.data, config.augment, rank=r, **where) for r in (0, 1)]
        return chain.from_iterable(zip(*loaders, strict=True))

    alone = trained(with_optim(config, accumulate=2), tmp_path / "alone", in_turn)
    ours, theirs = in_two(trained, config, tmp_path / "two")
    assert_close(ours, alone, ignore=("running_mean", "running_var", "num_batches_tracked"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(not torch.equal(ours[name], alone[name]) for name in ours if name.endswith("running_mean"))


@pytest.mark.parametrize("number", [2, 4])
def test_a_stop_of_one_process_stops_both_where_they_go_on(number, settings, in_two, tmp_path):
    """Told in the middle of an epoch or in its last step: the resumed job ends with the same bits."""
    config = with_optim(halved(replace(settings, method="csfr")), steps_per_epoch=5)
    straight, _ = in_two(trained, config, tmp_path / "straight")
    ours, theirs = in_two(trained, config, tmp_path / "stopped", None, {(1, number): "SIGTERM"})
    assert isinstance(ours, Interrupted) and isinstance(theirs, Interrupted) and theirs.code == 143
    state = load_state(tmp_path / "stopped" / "checkpoint.pt")
    assert (state.epoch, state.step, state.world) == ((0, 3, 2) if number == 2 else (1, 0, 2))
    resumed, _ = in_two(trained, config, tmp_path / "stopped")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    assert losses_of(tmp_path / "straight") == losses_of(tmp_path / "stopped")


def test_another_number_of_processes_does_not_go_on(settings, in_two, tmp_path):
    """The batches of a step would be others: the number is named."""
    config = with_optim(halved(replace(settings, method="baseline")), epochs=1)
    in_two(trained, config, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=r"checkpoint\.pt: 2 processes trained it, got 1; go on with torchrun"):
        trained(config, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_process_that_ends_is_missed_at_once(settings, pair, tmp_path):
    """Rank 0 learns in the same step that its partner is gone, says so, and the last checkpoint is kept."""
    config, begin = halved(replace(settings, method="baseline")), time.monotonic()
    (ours, _), (theirs, _) = pair(trained, config, tmp_path / "run", None, {(1, 3): "end"})
    assert isinstance(ours, ConnectionError) and "another process of the job ended" in str(ours)
    assert isinstance(theirs, EOFError)
    assert time.monotonic() - begin < TIME_LIMIT / 2  # the job itself would wait longer
    assert load_state(tmp_path / "run" / "checkpoint.pt").epoch == 1


def fails() -> None:
    """One rank fails, and the other one misses it."""
    if distributed.rank() == 1:
        raise ValueError("the cause")
    distributed.sum_over_ranks(np.ones(1))


def test_whichever_process_fails_tells_why(in_two):
    """And the next job is well."""
    with pytest.raises(AssertionError, match=r"(?s)rank 0: .*ConnectionError.*rank 1: .*ValueError: the cause"):
        in_two(fails)
    assert in_two(distributed.rank) == (0, 1)


def synchronised(own: list, others: list, kept: bool) -> dict:
    """A training step of a synchronised normalisation on this rank's rows."""
    rank = torch.distributed.get_rank()
    rows = torch.tensor((own, others)[rank], dtype=torch.float64).reshape(-1, 3).requires_grad_()
    torch.manual_seed(0)
    norm = BatchNorm(3, momentum=0.3).double()
    synchronise(norm)
    nn.init.normal_(norm.weight)
    norm.track_running_stats = not kept
    out = norm(rows)
    (out * torch.arange(1.0, 1 + out.numel()).view_as(out) * (1 + rank)).sum().backward()
    gradients = {"rows": rows.grad, "for_weight": norm.weight.grad, "for_bias": norm.bias.grad}
    return {"out": out.detach(), **gradients, **norm.state_dict()}


NUMBERS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("first", "second"), [(4, 3), (5, 0), (0, 2), (1, 1), (1, 0), (0, 0)])
def test_synchronised_normalisation(first, second, kept, in_two):
    """Of any number of rows on each rank: torch's normalisation of them all, its gradients, and its statistics; of one
    row or none, the running statistics. Kept statistics stand still."""
    parts = NUMBERS[:first], NUMBERS[first : first + second]
    ranks = in_two(synchronised, *(part.tolist() for part in parts), kept)
    whole = torch.cat(parts).requires_grad_()
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, momentum=0.3).double().train(first + second > 1)
    nn.init.normal_(norm.weight)
    norm.track_running_stats = not kept
    out = norm(whole)
    factors = [torch.arange(1.0, 1 + part.numel()).view_as(part) * (1 + rank) for rank, part in enumerate(parts)]
    (out * torch.cat(factors)).sum().backward()
    torch.testing.assert_close(torch.cat([rank["out"] for rank in ranks]), out.detach())
    torch.testing.assert_close(torch.cat([rank["rows"] for rank in ranks]), whole.grad)
    torch.testing.assert_close(sum(rank["for_weight"] for rank in ranks), norm.weight.grad)
    torch.testing.assert_close(sum(rank["for_bias"] for rank in ranks), norm.bias.grad)
    for rank in ranks:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(rank[name], norm.state_dict()[name], msg=name)


def test_torchrun_trains_one_network(settings, tmp_path):
    """The command line: one process prints and writes, both evaluate; the scores are there."""
    config = with_optim(replace(settings, method="baseline"), epochs=1)
    Run(tmp_path / "settings", config).start()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["dsp_sparse", "train", str(tmp_path / "settings" / "config.yaml"), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=2 * TIME_LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("overall accuracy") == 1 and done.stderr.count("ms a step") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 2
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["batch_size"] == 4
