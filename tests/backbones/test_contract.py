"""What every registered backbone promises (`TapBackbone`)."""

import copy
import io
import math
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import fields, is_dataclass
from datetime import timedelta
from functools import partial

import pytest
import torch
from torch import distributed, nn

from dsp_sparse import Ragged, UserError, build_backbone
from dsp_sparse.backbones import BACKBONES
from dsp_sparse.backbones.base import uncompiled
from dsp_sparse.testing import devices, engines, random_ragged, tiny_backbone

IN, CLASSES = 3, 4
LENGTHS = (90, 0, 1, 60)

TINY = {name: partial(tiny_backbone, name, IN, CLASSES) for name in BACKBONES}
TINY["kpfcnn-deformable"] = partial(TINY["kpfcnn"], deformable_levels=(1, 2), modulated=True)
TINY["minkunet-bottleneck"] = partial(TINY["minkunet"], variant="50", layers=(1,) * 8, stem_kernel=3)
TINY["minkunet-trilinear"] = partial(TINY["minkunet"], devoxelize="trilinear")
TINY["minkunet-minkowski"] = partial(TINY["minkunet"], engine="minkowski")


@pytest.fixture(params=TINY)
def kind(request):
    """A key of `TINY`."""
    if request.param != "minkunet-minkowski":
        yield request.param
        return
    if "minkowski" not in engines():
        pytest.skip("MinkowskiEngine not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # with more its results differ by rounding from run to run, and tests ask for the same bits
    yield request.param
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(kind):
    """Builds a small backbone of each kind; takes a seed and more options."""
    return TINY[kind]


@pytest.fixture(params=devices())
def device(request):
    return request.param


@pytest.fixture
def net(tiny, device):
    return calibrated(tiny().to(device))


@pytest.fixture
def batch(device):
    return random_ragged(LENGTHS, IN, seed=1, device=device)


def calibrated(net, dtype=torch.float32):
    """The network in evaluation mode, its running statistics those of data, so that they do something."""
    net = net.to(dtype).train()
    device = next(net.parameters()).device
    with torch.no_grad():
        for seed in range(2, 5):
            net(random_ragged(LENGTHS, IN, seed=seed, dtype=dtype, device=device))
    return net.eval()


def tensors(value) -> list[torch.Tensor]:
    """Every tensor inside a state, in a fixed order; what it merely remembers of them, its private fields, left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors(item)]
    if is_dataclass(value):
        return [t for field in fields(value) if field.name[0] != "_" for t in tensors(getattr(value, field.name))]
    return []


def gradients(net) -> dict[str, torch.Tensor]:
    return {key: parameter.grad.clone() for key, parameter in net.named_parameters()}


def random_weights(batch) -> torch.Tensor:
    """Weights of the logits in a scalar whose gradient is tested."""
    weights = torch.randn(len(batch.coord), CLASSES, generator=torch.Generator().manual_seed(0))
    return weights.to(batch.feat.device)


# ---------------------------------------------------------------------------------------------- encode and decode


def test_forward_is_decode_of_encode(net, batch):
    """Cutting the network at its tap changes nothing: `decode(encode(x)) == forward(x)`, bit for bit."""
    tap, state = net.encode(batch)
    assert torch.equal(net.decode(tap.feat, state), net(batch))


def test_decode_is_reentrant(net, batch):
    """Decoding leaves the state untouched, so decoding again gives the same, whatever was decoded in between."""
    tap, state = net.encode(batch)
    before = [t.clone() for t in tensors(state)]
    assert len(before) > 5
    first = net.decode(tap.feat, state)
    other = net.decode(tap.feat.flip(0), state)
    assert not torch.equal(other, first)
    assert torch.equal(net.decode(tap.feat, state), first)
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))


def test_two_decodes_share_one_encoding_in_training(net, batch):
    """The gradient through two branches of one encoding is the sum of the gradients through each alone."""
    net.double().train()
    batch = Ragged(batch.feat.double(), batch.coord.double(), batch.offsets)
    weights = random_weights(batch)

    def through(branches):
        tap, state = net.encode(batch)
        logits = {"plain": net.decode(tap.feat, state), "other": net.decode(tap.feat * 0.5, state)}
        net.zero_grad()
        sum((weights * logits[branch]).sum() for branch in branches).backward()
        return gradients(net)

    plain, other, both = through(["plain"]), through(["other"]), through(["plain", "other"])
    torch.testing.assert_close(both, {key: plain[key] + other[key] for key in both}, rtol=1e-9, atol=1e-9)


def test_regularization_belongs_to_one_encoding(net, batch):
    """Networks with parameters that move kernel points have a term that depends on the state alone, is there after any
    decoding, and reaches each of those parameters; other networks have neither."""
    tap, state = net.encode(batch)
    term, moving = net.regularization(state), net.offset_parameters()
    assert (term is None) == (not moving)
    if term is not None:
        net.decode(tap.feat.flip(0), state)
        other = net.encode(batch.sample(0))[1]
        assert term.isfinite() and not torch.equal(net.regularization(other), term)
        assert torch.equal(net.regularization(state), term)
        assert all(gradient.any() for gradient in torch.autograd.grad(term, moving))
        assert set(moving) < set(net.parameters())


def test_geometry_may_be_computed_beforehand(net, batch):
    """A geometry passed in gives what the one computed inside gives, and belongs to no graph."""
    geometry = net.geometry(batch.with_feat(batch.feat.clone().requires_grad_()))
    assert not any(t.requires_grad for t in tensors(geometry))
    assert torch.equal(net(batch, geometry), net(batch))


def test_tap_is_what_it_says(net, batch):
    """The tap's channels, class count and packing are as announced, and its points lie among the sample's."""
    tap, state = net.encode(batch)
    assert tap.feat.shape[1] == net.tap.channels
    assert net.decode(tap.feat, state).shape == (len(batch.coord), net.tap.out_channels) == (sum(LENGTHS), CLASSES)
    assert tap.batch_size == batch.batch_size
    assert [n > 0 for n in tap.lengths] == [n > 0 for n in batch.lengths]
    assert all(n <= m for n, m in zip(tap.lengths, batch.lengths, strict=True))
    for index in (0, 2, 3):
        distances = torch.cdist(tap.sample(index).coord, batch.sample(index).coord).amin(dim=1)
        # Its cell (0.1 m, times the stride) holds a point, which is at most the cell's diagonal away.
        assert distances.max() <= 0.1 * net.tap.stride * 3**0.5 + 1e-6


def test_every_tap_stage_cuts_the_same_network(tiny, device, batch):
    """Where the tap lies never changes the logits; each stage halves its stride; there are no other stages."""
    bottleneck = calibrated(tiny(tap_stage=0).to(device))
    stages = round(math.log2(bottleneck.tap.stride))
    rows = 0
    for stage in range(stages + 1):
        net = tiny(seed=stage, tap_stage=stage).to(device).eval()
        net.load_state_dict(bottleneck.state_dict())
        tap, state = net.encode(batch)
        assert net.tap.stride == 2 ** (stages - stage)
        assert tap.feat.shape[1] == net.tap.channels
        assert len(tap.feat) > rows, "a finer tap has more points"
        rows = len(tap.feat)
        assert torch.equal(net.decode(tap.feat, state), bottleneck(batch))
    for stage in (-1, stages + 1):
        with pytest.raises(UserError, match=f"tap_stage.*{stages}.*{stage}"):
            tiny(tap_stage=stage)


# -------------------------------------------------------------------------------------------------- ragged batches


def test_batch_equals_its_samples(net, batch):
    """In evaluation, a batch gives what its samples give one by one."""
    logits = net(batch)
    for index in range(batch.batch_size):
        alone = net(batch.sample(index))
        torch.testing.assert_close(logits[batch.rows(index)], alone, rtol=1e-5, atol=1e-5)


def test_no_value_crosses_samples(net, batch):
    """A sample full of NaN spoils every one of its own logits and none of another sample's."""
    poisoned = batch.feat.clone()
    poisoned[batch.rows(0)] = float("nan")
    clean, logits = net(batch), net(batch.with_feat(poisoned))
    assert logits[batch.rows(0)].isnan().all()
    assert torch.equal(logits[batch.rows(0).stop :], clean[batch.rows(0).stop :])


def test_no_gradient_crosses_samples(net, batch):
    """The logits of a sample have a gradient in its own features and exactly none in another sample's."""
    feat = batch.feat.clone().requires_grad_()
    net(batch.with_feat(feat))[batch.rows(3)].square().sum().backward()
    assert (feat.grad[batch.rows(3)] != 0).any(dim=1).all()
    assert (feat.grad[: batch.rows(3).start] == 0).all()


def test_points_may_come_in_any_order(tiny, device):
    """Permuting the points of a sample permutes its logits, to rounding."""
    net = calibrated(tiny().to(device), torch.float64)
    batch = random_ragged((90,), IN, seed=1, dtype=torch.float64, device=device)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0)).to(device)
    permuted = Ragged(batch.feat[order], batch.coord[order], batch.offsets)
    torch.testing.assert_close(net(permuted), net(batch)[order], rtol=1e-9, atol=1e-9)


def test_far_from_the_origin(tiny, device):
    """Projected coordinates in float64 (millions of metres) give the logits of the same points near the origin."""
    net = calibrated(tiny().to(device), torch.float64)
    batch = random_ragged((90, 30), IN, seed=1, dtype=torch.float64, device=device)
    # A whole number of the coarsest voxels (1.6 m), so that voxel grids fall on the same places.
    shift = torch.tensor([1.6 * 500_000, -1.6 * 3_000_000, 1.6 * 10], dtype=torch.float64, device=device)
    far = Ragged(batch.feat, batch.coord + shift, batch.offsets)
    torch.testing.assert_close(net(far), net(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(), (0,), (1,), (0, 0), (1, 0, 1), (0, 7, 1), (2,)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_tiny_samples(net, device, lengths, training):
    """Empty and one-point samples work in evaluation and training: finite logits, and a gradient for every parameter
    (a process without points must not stall a distributed step)."""
    batch = random_ragged(lengths, IN, seed=1, device=device)
    logits = net.train(training)(batch)
    assert logits.shape == (sum(lengths), CLASSES)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert all(buffer.isfinite().all() for buffer in net.buffers())


# ------------------------------------------------------------------------------------------- gradients and precision


def test_gradients_reach_input_and_parameters(net, batch):
    """Every input row and every parameter gets a gradient."""
    feat = batch.feat.clone().requires_grad_()
    (random_weights(batch) * net.train()(batch.with_feat(feat))).sum().backward()
    assert (feat.grad != 0).any(dim=1).all()
    assert [key for key, gradient in gradients(net).items() if not gradient.any()] == []


def test_float64(net, batch):
    """A float64 network gives float64 logits, close to float32; float64 coordinates alone do not ask for one."""
    single = net(batch)
    mixed = net(Ragged(batch.feat, batch.coord.double(), batch.offsets))
    double = net.double()(Ragged(batch.feat.double(), batch.coord.double(), batch.offsets))
    assert (mixed.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(mixed, single, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-4)


def test_autocast(net, batch, device):
    """Under bfloat16 autocast logits are bfloat16 and near float32's, gradients are float32 and along float32's.

    In evaluation: normalising the few rows of a coarse level by their own statistics magnifies any rounding.
    """

    def step(enabled):
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            logits = net(batch)
        (random_weights(batch) * logits.float()).sum().backward()
        return logits, torch.cat([gradient.flatten() for gradient in gradients(net).values()])

    (exact, exact_gradient), (logits, gradient) = step(False), step(True)
    assert (logits.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
    assert (logits - exact).norm() < 0.02 * exact.norm()
    assert torch.cosine_similarity(gradient, exact_gradient, dim=0) > 0.99
    net.train()
    assert all(part.isfinite().all() for part in step(True))


# ----------------------------------------------------------------------------------------------- compile, distributed


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(net, device, backend):
    """`torch.compile` (graph breaks allowed) gives the same logits and gradients, for more than one batch size."""
    torch.compiler.reset()  # what other networks compiled counts towards a limit, beyond which nothing is
    net.double().train()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, backend=backend, dynamic=True)
    for lengths in (LENGTHS, (40, 50, 20)):
        data = random_ragged(lengths, IN, seed=9, dtype=torch.float64, device=device)
        expected, logits = net(data), compiled(data)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        for module, out in ((net, expected), (twin, logits)):
            module.zero_grad()
            (random_weights(data) * out).sum().backward()
        torch.testing.assert_close(gradients(twin), gradients(net), rtol=1e-8, atol=1e-8)


def test_what_is_left_out_of_a_graph_runs_as_it_is():
    seen = []

    @uncompiled
    def double(x):
        seen.append(torch.compiler.is_compiling())
        return 2 * x

    torch.compiler.reset()
    compiled = torch.compile(lambda x: double(x) + 1, backend="eager")
    assert [compiled(torch.tensor(x)).item() for x in (1, 2, 3)] == [3, 5, 7]
    assert seen == [False] * 3


def test_the_compiler_is_loaded_by_those_who_compile():
    """Every command and every worker would wait for it as long as for torch."""
    program = "import sys, dsp_sparse.cli, dsp_sparse.data; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def distributed_step(kind, data) -> tuple[dict, dict]:
    """Gradients of a DistributedDataParallel network, and the mean over the processes of the bare network's."""
    net = TINY[kind]().double().train()
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
    for module in (net, parallel):
        (random_weights(data) * module(data)).sum().backward()
    expected = gradients(net)
    for gradient in expected.values():
        distributed.all_reduce(gradient)
    return gradients(parallel.module), {key: value / 2 for key, value in expected.items()}


def distributed_steps(kind, rank, store) -> list[tuple[dict, dict]]:
    """Steps of one of two processes, on batches of its own: both have points, this one, the other one, none."""
    options = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=30)}
    distributed.init_process_group("gloo", init_method=f"file://{store}", **options)
    try:
        batch = random_ragged(LENGTHS, IN, seed=rank, dtype=torch.float64)
        return [distributed_step(kind, batch.sample(index)) for index in (0, rank, 1 - rank, 1)]
    finally:
        distributed.destroy_process_group()


def serve(connection) -> None:
    """The second process: takes part in every `distributed_steps` it is told of."""
    torch.set_num_threads(1)
    while task := connection.recv():
        try:
            result = distributed_steps(*task)
        except Exception as error:  # for the first process to raise
            result = error
        connection.send_bytes(pickle.dumps(result))  # `send` would share the tensors' memory, and wait to hand it over


@pytest.fixture(scope="module")
def second_process():
    """Started once: importing torch takes longer than all tests with it."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of threads that it has not
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    yield ours
    ours.send(None)
    process.join()


def test_distributed(kind, second_process, tmp_path):
    """In two processes DistributedDataParallel gives both of them the mean of the bare networks' gradients, and finds
    every parameter in use, without points too."""
    second_process.send((kind, 1, tmp_path / "store"))
    steps = distributed_steps(kind, 0, tmp_path / "store")
    others = pickle.loads(second_process.recv_bytes())
    assert not isinstance(others, Exception), others
    for (ours, expected), (theirs, _) in zip(steps, others, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(gradient.any() for gradient in steps[0][0].values())


# ------------------------------------------------------------------------------------------------ weights and errors


def test_state_dict_round_trip(net, tiny, batch):
    """A saved state is the whole network: loaded over other weights it predicts the same, bit for bit."""
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = tiny(seed=99).to(batch.coord.device).eval()
    assert not torch.equal(other(batch), net(batch))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(batch), net(batch))


def test_seeded_weights(tiny):
    """The same seed of torch's generator builds the same network, everything in its state included."""
    one, two, other = (tiny(seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coordinates_must_be_finite(net, batch, value):
    coord = batch.coord.clone()
    coord[17, 1] = value
    with pytest.raises(UserError, match=f"coord.*{value}.*row 17"):
        net(Ragged(batch.feat, coord, batch.offsets))


def test_features_must_have_the_channels_of_the_network(net, batch):
    with pytest.raises(UserError, match=r"3 channels.*got 2"):
        net(batch.with_feat(batch.feat[:, :2]))


@pytest.mark.parametrize("name", BACKBONES)
def test_bad_arguments_are_refused_with_the_choices(name):
    with pytest.raises(UserError, match=f"{name}.*'resnet'"):
        build_backbone("resnet", IN, CLASSES)
    with pytest.raises(UserError, match=f"{name}.*'widht'.*tap_stage"):
        build_backbone(name, IN, CLASSES, widht=3)
    with pytest.raises(UserError, match="in_channels must be at least 1, got 0"):
        build_backbone(name, 0, CLASSES)
    with pytest.raises(UserError, match="num_classes must be at least 1, got 0"):
        build_backbone(name, IN, 0)
