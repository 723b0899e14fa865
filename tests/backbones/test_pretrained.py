"""Weights of other implementations: the same results after loading, and a useful word where they do not fit."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from official_kpfcnn import OfficialKPFCNN, pad

from dsp_sparse import Ragged, UserError
from dsp_sparse.backbones import build_backbone, load_pretrained
from dsp_sparse.backbones.kpfcnn_blocks import padded_max_pool
from dsp_sparse.testing import random_ragged, tiny_backbone
from dsp_sparse.training.checkpoint import Model, TrainingState, save_model, save_state
from kpconv_ops import grid_subsample, radius_search

GRID = 0.1
SIZES = {"rigid": 24_377_933, "deformable": 25_587_758}
WIDTH = 16


def official(**options) -> OfficialKPFCNN:
    """A narrow network with statistics and weights that a training could have left."""
    torch.manual_seed(0)
    net = OfficialKPFCNN(5, 7, WIDTH, GRID, **options).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.weight.uniform_(0.5, 2).mul_(torch.randn_like(module.weight).sign())
                module.bias.normal_(std=0.5)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def room() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points, offsets and features: floor and walls of two rooms, 3 m and 2 m wide, subsampled by the grid."""
    generator = torch.Generator().manual_seed(2)
    clouds = []
    for size in (3.0, 2.0):
        flat = torch.rand(3, 600, 3, generator=generator, dtype=torch.float64) * size
        flat[0, :, 2] = flat[1, :, 0] = flat[2, :, 1] = 0.0
        clouds.append(flat.reshape(-1, 3))
    offsets = torch.tensor([0, *(len(cloud) for cloud in clouds)]).cumsum(0)
    sub = grid_subsample(torch.cat(clouds), offsets, GRID)
    return sub.points, sub.offsets, torch.randn(len(sub.points), 5, generator=generator, dtype=torch.float64)


def ours(**options):
    return build_backbone("kpfcnn", 5, 7, **{"grid_size": GRID, "first_width": WIDTH, "padded_pools": True} | options)


VARIANTS = {
    "rigid": ({}, {}),
    "deformable": ({"deformable": True}, {"deformable_levels": (3, 4)}),
    "modulated": ({"deformable": True, "modulated": True}, {"deformable_levels": (3, 4), "modulated": True}),
}


@pytest.mark.parametrize("variant", SIZES)
def test_the_oracle_has_as_many_parameters_as_the_official_network(variant):
    with torch.device("meta"):
        net = OfficialKPFCNN(5, 13, 128, 0.04, deformable=variant == "deformable")
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == SIZES[variant]
    assert net.state_dict().keys() >= {
        *("encoder_blocks.0.KPConv.weights", "encoder_blocks.0.batch_norm.batch_norm.running_mean"),
        *("encoder_blocks.1.unary_shortcut.mlp.weight", "encoder_blocks.1.batch_norm_conv.batch_norm.weight"),
        *("decoder_blocks.1.mlp.weight", "head_mlp.batch_norm.bias", "head_softmax.mlp.weight"),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_of_the_official_network_gives_its_logits(variant, tmp_path):
    theirs, our_options = VARIANTS[variant]
    oracle = official(**theirs)
    path = tmp_path / "current_chkp.tar"
    torch.save({"epoch": 3, "model_state_dict": oracle.state_dict(), "optimizer_state_dict": {}}, path)
    net = ours(**our_options).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pretrained(net, path)
    points, offsets, features = room()
    with torch.no_grad():
        expected = oracle(points, offsets, features)
        logits = net(Ragged(features, points, offsets))
        assert expected.std() > 0.1
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


def test_without_the_padding_of_pools_results_are_others_and_a_warning_says_so():
    oracle, net = official(), ours(padded_pools=False).double().eval()
    with pytest.warns(UserWarning, match="padded_pools=True"):
        load_pretrained(net, oracle.state_dict())
    points, offsets, features = room()
    with torch.no_grad():
        different = net(Ragged(features, points, offsets)) - oracle(points, offsets, features)
    assert different.abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [(60, 0, 40), (0,), (1,)])
def test_padded_max_pool(lengths):
    """The maximum over rows of a padded table with a zero where there is no neighbour, values and gradients."""
    batch = random_ragged(lengths, 4, seed=3, dtype=torch.float64)
    x = (batch.feat - 1).requires_grad_()  # mostly negative: the zeros show
    queries, starts = batch.coord[::2], (batch.offsets + 1) // 2
    nb = radius_search(queries, starts, batch.coord, batch.offsets, 0.3)
    pooled = padded_max_pool(x, nb)
    if not len(queries):
        assert pooled.shape == (0, 4)
        return
    expected = torch.cat([x, x.new_zeros(1, 4)])[pad(nb.indices, nb.splits, len(x))].amax(dim=1)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    factor = torch.randn_like(pooled)
    gradients = (torch.autograd.grad((y * factor).sum(), x)[0] for y in (pooled, expected))
    torch.testing.assert_close(*gradients)


def wrap_bare(weights):
    return weights


def wrap_data_parallel(weights):
    return {f"module.{name}": value for name, value in weights.items()}


def wrap_lightning(weights):
    return {"state_dict": {f"model.{name}": value for name, value in weights.items()}, "epoch": 7}


def wrap_training_state(weights):
    return {"model_state_dict": wrap_data_parallel(weights), "optimizer_state_dict": {"state": {}}}


WRAPPERS = [wrap_bare, wrap_data_parallel, wrap_lightning, wrap_training_state]


def assert_same_weights(net, other):
    for (name, value), (other_name, expected) in zip(net.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(value, expected), name


def assert_refused(net, given, *texts, **options) -> str:
    """The network is left as it was, and one line says why, with all the texts."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_pretrained(net, given, **options)
    message = str(error.value)
    assert all(text in message for text in texts) and message.isprintable(), message
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "all or nothing"
    return message


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("name", ["kpfcnn", "minkunet"])
def test_state_dicts_are_found_under_the_usual_wrappings(name, wrap, tmp_path):
    source = tiny_backbone(name, 5, 4, seed=1)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    for given in (tmp_path / "weights.pth", str(tmp_path / "weights.pth"), wrap(source.state_dict())):
        net = tiny_backbone(name, 5, 4, seed=2)
        load_pretrained(net, given)
        assert_same_weights(net, source)


@pytest.mark.parametrize("name", ["kpfcnn", "minkunet"])
def test_our_own_files_are_found_and_models_in_run_folders(name, tmp_path):
    source = tiny_backbone(name, 5, 4, seed=1)
    header = {"options": {}, "in_channels": 5, "classes": list("abcd"), "features": {}, "grid": 0.1, "radius": 2.0}
    header["coordinates"] = ["x", "y", "z"]
    save_model(tmp_path / "model.pt", Model(net=source, backbone=name, max_points=None, **header))
    save_state(tmp_path / "checkpoint.pt", TrainingState(net=source.state_dict()))
    for place in (tmp_path, tmp_path / "model.pt", tmp_path / "checkpoint.pt"):
        net = tiny_backbone(name, 5, 4, seed=2)
        load_pretrained(net, place)
        assert_same_weights(net, source)


@pytest.mark.parametrize("head", [False, None])
@pytest.mark.parametrize("name", ["kpfcnn", "minkunet"])
def test_another_number_of_classes(name, head):
    """It is an error that says what to do, which is: all is loaded but the last layer, which stays as it was; with a
    warning unless that was asked for."""
    source, net, before = (tiny_backbone(name, 5, classes, seed=s) for classes, s in ((4, 1), (6, 2), (6, 2)))
    with pytest.raises(UserError, match=r"num_classes 4, not 6 \(head=False"):
        load_pretrained(net, source.state_dict())
    assert_same_weights(net, before)
    warned = nullcontext() if head is False else pytest.warns(UserWarning, match="last layer does not fit")
    with warned:
        load_pretrained(net, source.state_dict(), head=head)
    last = "head.2." if name == "kpfcnn" else "final."
    for key, value in net.state_dict().items():
        assert torch.equal(value, (before if key.startswith(last) else source).state_dict()[key]), key


@pytest.mark.parametrize("name", ["kpfcnn", "minkunet"])
def test_a_last_layer_of_the_same_classes_is_left_out_when_asked_to_only(name):
    source, fitting, without, before = (tiny_backbone(name, 5, 4, seed=seed) for seed in (1, 2, 2, 2))
    load_pretrained(fitting, source.state_dict(), head=None)
    assert_same_weights(fitting, source)
    load_pretrained(without, source.state_dict(), head=False)
    last = "head.2.weight" if name == "kpfcnn" else "final.kernel"
    assert torch.equal(without.state_dict()[last], before.state_dict()[last])


@pytest.mark.filterwarnings("ignore:.*last layer does not fit")
@pytest.mark.parametrize("head", [False, None])
@pytest.mark.parametrize("name", ["kpfcnn", "minkunet"])
def test_weights_without_a_last_layer(name, head):
    """A pretrained encoder has none: the network keeps its own, unless the last layer is asked for."""
    source, net, before = (tiny_backbone(name, 5, 4, seed=seed) for seed in (1, 2, 2))
    last = "head.2." if name == "kpfcnn" else "final."
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith(last)}
    assert_refused(net, weights, f"missing {last}")
    load_pretrained(net, weights, head=head)
    for key, value in net.state_dict().items():
        assert torch.equal(value, (before if key.startswith(last) else source).state_dict()[key]), key


def test_kernels_of_size_1_may_keep_the_axis_of_their_taps():
    """`[1, Cin, Cout]` is `[Cin, Cout]`, also of the last layer, whose classes are still counted."""
    source = tiny_backbone("minkunet", 5, 4, seed=1)
    weights = {
        name: value[None] if name.endswith(".kernel") and value.ndim == 2 else value
        for name, value in source.state_dict().items()
    }
    assert weights["final.kernel"].shape == (1, 8, 4) and weights["block1.0.downsample.0.kernel"].ndim == 3
    for head in (True, None):
        net = tiny_backbone("minkunet", 5, 4, seed=2)
        load_pretrained(net, weights, head=head)
        assert_same_weights(net, source)
    assert_refused(tiny_backbone("minkunet", 5, 6), weights, "num_classes 4, not 6 (head=False")


def test_a_head_of_the_official_network_is_left_out_when_asked_to():
    oracle, net = official(), build_backbone("kpfcnn", 5, 3, grid_size=GRID, first_width=WIDTH, padded_pools=True)
    load_pretrained(net, oracle.state_dict(), head=False)
    stem = "encoder_blocks.0.KPConv.weights"
    assert torch.equal(net.encoder[0].entry.conv.weights, oracle.state_dict()[stem].float())


@pytest.mark.parametrize(
    ("theirs", "options", "settings"),
    [
        ({}, {"first_width": 32}, ["first_width 16, not 32", "encoder.0.entry.conv.weights of shape [15, 5, 8], not"]),
        (
            {},
            {"deformable_levels": (3, 4)},
            ["deformable_levels (), not (3, 4)", "missing encoder.3.blocks.0.conv.off"],
        ),
        ({"deformable": True}, {}, ["deformable_levels (3, 4), not ()", "unexpected encoder.3.blocks.0.conv.offset_"]),
        (
            {"deformable": True, "modulated": True},
            {"deformable_levels": (3, 4)},
            ["modulated True, not False", "encoder.3.blocks.0.conv.offset_bias of shape [60], not [45]"],
        ),
        (
            {},
            {"blocks": (1, 2, 2, 3, 2)},
            ["blocks (1, 2, 2, 2, 2), not (1, 2, 2, 3, 2)", "missing encoder.3.blocks.2"],
        ),
        ({}, {"num_kernel_points": 13}, ["num_kernel_points 15, not 13", "of shape [15, 5, 8], not [13, 5, 8]"]),
        (
            {},
            {"grid_size": 0.04},
            ["kernel points of another scale", "grid_size 0.1 (times conv_radius 2.5), not 0.04"],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_an_official_checkpoint_are_named(theirs, options, settings, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "chkp.tar"
    torch.save({"model_state_dict": OfficialKPFCNN(5, 7, WIDTH, GRID, **theirs).state_dict()}, path)
    assert assert_refused(ours(**options), path, *settings).startswith(str(path))


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_kernel_points_of_a_slightly_other_scale_are_refused(factor):
    """Grids of public checkpoints are as near as 3 and 4 cm. Dispositions of kernel points differ by much less."""
    assert_refused(
        ours(grid_size=GRID / factor),
        official().state_dict(),
        f"grid_size 0.1 (times conv_radius 2.5), not {GRID / factor:g}",
    )
    load_pretrained(ours(grid_size=1.05 * GRID), official().state_dict())


def test_other_input_channels_are_named():
    weights = OfficialKPFCNN(4, 7, WIDTH, GRID).state_dict()
    with pytest.raises(UserError, match="in_channels 4, not 5; "):
        load_pretrained(ours(), weights)


@pytest.mark.parametrize(
    ("theirs", "options", "settings"),
    [
        ({}, {"stem_kernel": 3}, ["stem_kernel 5, not 3", "conv0p1s1.kernel of shape [125, 5, 32], not [27, 5, 32]"]),
        ({}, {"variant": "34A"}, ["variant 14A, not 34A", "missing block"]),
        ({"variant": "50"}, {}, ["variant 50, not 14A", "unexpected block1.0.conv3"]),
        ({"planes": (8,) * 8}, {}, [f": planes {(8,) * 8}, not those of 14A; missing"]),
        ({}, {"planes": (8,) * 8}, [f": planes those of 14A, not {(8,) * 8}; missing"]),
        ({"planes": (4,) * 8}, {"planes": (8,) * 8}, [f": planes {(4,) * 8}, not {(8,) * 8}; "]),
        ({"layers": (1,) * 7 + (3,)}, {}, [": layers (1, 1, 1, 1, 1, 1, 1, 3), not those of 14A; unexpected block8.1"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_a_minkunet_are_named(theirs, options, settings):
    source = build_backbone("minkunet", 5, 4, **{"variant": "14A"} | theirs)
    net = build_backbone("minkunet", 5, 4, **{"variant": "14A"} | options)
    assert "None" not in assert_refused(net, source.state_dict(), *settings)


def test_minkunet_of_other_channels_is_named():
    source, net = tiny_backbone("minkunet", 3, 4), tiny_backbone("minkunet", 5, 4)
    with pytest.raises(UserError, match="in_channels 3, not 5"):
        load_pretrained(net, source.state_dict())


def test_weights_of_the_other_backbone():
    with pytest.raises(UserError, match="than this MinkUNet: missing conv0p1s1"):
        load_pretrained(tiny_backbone("minkunet", 5, 4), tiny_backbone("kpfcnn", 5, 4).state_dict())
    with pytest.raises(UserError, match=r"than this MinkUNet: .*unexpected encoder_blocks"):
        load_pretrained(tiny_backbone("minkunet", 5, 4), OfficialKPFCNN(5, 7, WIDTH, GRID).state_dict())


def test_class_weights_of_the_official_loss_are_no_part_of_the_network():
    weights = {**official().state_dict(), "criterion.weight": torch.ones(7)}
    load_pretrained(ours(), weights)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a file of torch", "not a readable file of weights (no file of torch"),
        ({"epoch": 3, "best": 0.5}, "holds no state dict of a network, but the keys epoch, best"),
        ({}, "holds no state dict of a network, but nothing"),
        (torch.ones(3), "holds no state dict of a network, but a Tensor"),
        ({"state_dict": {"weight": [1.0]}}, "holds no state dict of a network, but the keys state_dict"),
        ({"format": "dsp-sparse model 1"}, "its content must be a mapping, got NoneType"),
        ({"format": "dsp-sparse model 1", "content": [1]}, "its content must be a mapping, got list"),
        ({"format": "dsp-sparse model 1", "content": {"net": 1}}, "holds no state dict"),
        (
            {"format": "dsp-sparse modules 1", "content": {}},
            "holds 'dsp-sparse modules 1', expected 'dsp-sparse model 1'",
        ),
    ],
    ids=["bytes", "numbers", "nothing", "tensor", "lists", "header", "list", "number", "modules"],
)
def test_a_file_without_weights_is_refused(content, reason, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert_refused(tiny_backbone("kpfcnn", 5, 4), path, str(path), reason)


def test_files_of_a_later_version_are_refused():
    net = tiny_backbone("kpfcnn", 5, 4)
    later = {"format": "dsp-sparse model 99", "content": {"net": net.state_dict()}}
    assert_refused(net, later, "holds 'dsp-sparse model 99', expected 'dsp-sparse model 1' or 'dsp-sparse training 1'")


@pytest.mark.parametrize("source", [None, 3, [torch.ones(2)]], ids=lambda source: type(source).__name__)
def test_what_is_neither_file_nor_state_dict_is_refused(source):
    message = f"source must be a file or a state dict, got {type(source).__name__}"
    assert_refused(tiny_backbone("kpfcnn", 5, 4), source, message)


FAULTS = {
    "sparse": (lambda value: value.to_sparse(), "not dense"),
    "nested": (lambda value: torch.nested.nested_tensor([value, value]), "not dense"),
    "meta": (lambda value: value.to("meta"), "without values, on the meta device"),
    "int8": (lambda value: value.to(torch.int8), "of torch.int8"),
    "int64": (lambda value: value.long(), "of torch.int64"),
    "bool": (lambda value: value.bool(), "of torch.bool"),
    "complex": (lambda value: value.to(torch.complex64), "of torch.complex64"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
    "quantized": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "of torch.qint8"),
    "nan": (lambda value: value * torch.nan, "not finite"),
    "too large": (lambda value: torch.full_like(value, 1e300, dtype=torch.float64), "not finite"),
    "list": (lambda value: value.tolist(), "a list"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quantize_per_tensor")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("name", "key"), [("kpfcnn", "head.2.weight"), ("minkunet", "final.kernel")])
def test_entries_that_no_network_can_take_are_named(name, key, fault):
    """They stand last: torch would have copied all the others before it fails, or would have cast them."""
    change, reason = FAULTS[fault]
    weights = tiny_backbone(name, 5, 4, seed=1).state_dict()
    weights = {**weights, key: change(weights.pop(key))}
    assert_refused(tiny_backbone(name, 5, 4), weights, f"state dict: {key!r} is {reason}; ")


def test_entries_without_a_name_are_refused():
    weights = tiny_backbone("kpfcnn", 5, 4).state_dict()
    for given in ({0: torch.ones(2)}, {**weights, 0: torch.ones(2)}):
        assert_refused(tiny_backbone("kpfcnn", 5, 4), given, "state dict: 0 is a name of type int; ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast(dtype):
    source, net = tiny_backbone("minkunet", 5, 4, seed=1).to(dtype), tiny_backbone("minkunet", 5, 4)
    load_pretrained(net, source.state_dict())
    assert_same_weights(net, source.float())


@pytest.mark.parametrize("key", ["encoder.0.entry.conv.weights", "encoder.2.blocks.0.conv.offset_bias"])
def test_a_number_in_place_of_weights_is_named(key):
    """Settings cannot be told from it, which is no error of its own."""
    net = tiny_backbone("kpfcnn", 5, 4, deformable_levels=(2,))
    assert_refused(net, {**net.state_dict(), key: torch.tensor(1.0)}, f"{key} of shape [], not [")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: not a readable file"):
        load_pretrained(tiny_backbone("kpfcnn", 5, 4), tmp_path / "none.pt")


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_runs_from_a_file(zipped, tmp_path, capsys):
    """The message does not advise to run it, as torch's does, but how to do without."""
    weights = tiny_backbone("kpfcnn", 5, 4).state_dict()
    path = tmp_path / "bomb.pt"
    for content in ({"state_dict": Bomb()}, {"state_dict": weights, "config": Bomb()}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        reason = "holds more than tensors: save only its `state_dict` again)"
        message = assert_refused(
            tiny_backbone("kpfcnn", 5, 4), path, f"{path}: not a readable file of weights (", reason
        )
        assert "weights_only" not in message and "boom" not in capsys.readouterr().out
