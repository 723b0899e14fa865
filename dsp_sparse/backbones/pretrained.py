"""Weights from files: our own, KPConv-PyTorch's KPFCNN, and MinkUNets (Res16UNet) of MinkowskiEngine."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..tensor_files import read_tensors, unpack
from .base import TapBackbone
from .kpfcnn import KPFCNN
from .minkunet import MinkUNet
from .minkunet_config import PLANES, STAGES, MinkUNetConfig

Weights = Mapping[str, Tensor]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
LAST_LAYER = {KPFCNN: "head.2.", MinkUNet: "final."}
# Names inside the blocks of KPConv-PyTorch's KPFCNN, and ours, to be replaced in this order.
KPCONV_NAMES = {
    "KPConv.": "conv.",
    "batch_norm_conv.batch_norm.": "norm.",
    "batch_norm.batch_norm.": "norm.",
    "unary1.": "reduce.",
    "unary2.": "expand.",
    "unary_shortcut.": "shortcut.",
    "mlp.": "linear.",
}
KPCONV_HEAD = {
    "head_mlp.mlp.weight": "head.0.weight",
    "head_mlp.batch_norm.bias": "head.0.bias",
    "head_softmax.mlp.weight": "head.2.weight",
    "head_softmax.batch_norm.bias": "head.2.bias",
}


def load_pretrained(net: TapBackbone, source: str | os.PathLike | Weights, head: bool | None = True) -> None:
    """Load weights into a network of the same architecture, all of them, or none after an error.

    Taken are: our own (`model.pt`, a run folder, the checkpoint of a training, a state dict); for KPFCNN those of
    KPConv-PyTorch, rigid or deformable, which pools as those networks did with `padded_pools`; for MinkUNet those of
    MinkowskiEngine's MinkUNet and Res16UNet. State dicts may stand under `state_dict` or `model_state_dict`, their
    names behind `module.` or `model.`. They hold dense tensors of finite floats, and integers that count the batches of
    batch norms.

    Args:
        net: the network; its settings must be those of the weights.
        source: a file, which is read without running code from it, or its content.
        head: whether the last layer is loaded. False: the network keeps its own, and may have other classes. None: it
            is loaded if it fits; the network keeps its own, with a warning, if the number of classes differs or the
            file has none.

    Raises:
        UserError: no readable file of weights, an entry that is none, or weights of another architecture; the message
            names the settings that differ, as far as they can be told, and the first names or shapes that do not match.
    """
    given, place = _read(source)
    if isinstance(net, KPFCNN) and any(name.startswith("encoder_blocks.") for name in given):
        given = rename_kpconv(given)
        if not net.config.padded_pools:
            warnings.warn(
                f"{place}: a network of KPConv-PyTorch, which max-pools with a zero: padded_pools=True does so, too",
                stacklevel=2,
            )
    if isinstance(net, MinkUNet):
        given = squeeze_taps(given)
    expected, last = net.state_dict(), LAST_LAYER.get(type(net))
    if last and head is not True:
        own = {name: value for name, value in expected.items() if name.startswith(last)}
        fits = all(name in given and given[name].shape == value.shape for name, value in own.items())
        if head is None and not fits:
            warnings.warn(f"{place}: its last layer does not fit, the network keeps its own", stacklevel=2)
        if head is False or not fits:
            given = {name: value for name, value in given.items() if not name.startswith(last)} | own
    if misfits := _misfits(given, expected):
        reasons = [*_settings_that_differ(net, given, expected), *misfits]
        raise UserError(
            f"{place}: weights of another architecture than this {type(net).__name__}: {'; '.join(reasons)}"
        )
    if isinstance(net, KPFCNN):
        _check_scale(net, given, place)
    net.load_state_dict(given)


def rename_kpconv(weights: Weights) -> dict[str, Tensor]:
    """A state dict of KPConv-PyTorch's KPFCNN under our names. What has no counterpart keeps its name.

    Its encoder is one list of blocks. Only the first block on a level has a layer in its shortcut, since only it widens
    the features; the block before that one leads to the level.
    """
    last = max(_numbers(weights, r"encoder_blocks\.(\d+)\."), default=-1)
    firsts = _numbers(weights, r"encoder_blocks\.(\d+)\.unary_shortcut\.")
    places = {}
    for level, first in enumerate(firsts):
        end = firsts[level + 1] - 1 if level + 1 < len(firsts) else last + 1
        places[f"encoder_blocks.{first - 1}"] = f"encoder.{level}.entry"
        places |= {f"encoder_blocks.{first + i}": f"encoder.{level}.blocks.{i}" for i in range(end - first)}
    # The decoder's upsampling blocks are counted, but have no weights.
    for stage, number in enumerate(_numbers(weights, r"decoder_blocks\.(\d+)\.")):
        places[f"decoder_blocks.{number}"] = f"decoder.{stage}"

    renamed = {}
    for name, value in weights.items():
        if name.startswith("criterion."):  # class weights of its training loss
            continue
        parts = name.split(".")
        block, rest = ".".join(parts[:2]), ".".join(parts[2:])
        if block in places:
            for theirs, ours in KPCONV_NAMES.items():
                rest = rest.replace(theirs, ours)
            name = f"{places[block]}.{rest}"
        renamed[KPCONV_HEAD.get(name, name)] = value
    return renamed


def squeeze_taps(weights: Weights) -> dict[str, Tensor]:
    """A state dict of a MinkUNet whose kernels of size 1 are `[Cin, Cout]`, also where they are `[1, Cin, Cout]`."""
    return {
        name: value[0] if name.endswith(".kernel") and value.ndim == 3 and len(value) == 1 else value
        for name, value in weights.items()
    }


def _numbers(weights: Weights, pattern: str) -> list[int]:
    """The numbers that the pattern finds at the start of the names, ascending."""
    return sorted({int(found[1]) for name in weights if (found := re.match(pattern, name))})


def _read(source: str | os.PathLike | Weights) -> tuple[dict[str, Tensor], str]:
    """The state dict in `source`, checked and without prefixes, and what to call the source in messages."""
    if isinstance(source, Mapping):
        content, place = source, "state dict"
    elif isinstance(source, str | os.PathLike):
        path = Path(source, "model.pt") if os.path.isdir(source) else Path(source)
        content, place = read_tensors(path), str(path)
    else:
        raise UserError(f"source must be a file or a state dict, got {type(source).__name__}")
    weights = content
    if isinstance(content, Mapping) and str(content.get("format", "")).startswith("dsp-sparse "):
        weights = unpack(content, place, "model", "training").get("net")
    elif isinstance(content, Mapping):
        weights = next((content[key] for key in ("model_state_dict", "state_dict") if key in content), content)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{place}: holds no state dict of a network, but {_outline(content)}")
    for name, value in weights.items():
        if fault := _fault(name, value):
            raise UserError(f"{place}: {name!r} is {fault}; a state dict holds dense tensors of finite floats by name")
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights), place


def _outline(content: Any) -> str:
    """What a file holds, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"the keys {', '.join(map(str, list(content)[:5]))}" if content else "nothing"


def _fault(name: Any, value: Any) -> str | None:
    """What keeps an entry from being copied into a network as it is; None if nothing does."""
    if not isinstance(name, str):
        return f"a name of type {type(name).__name__}"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested:
        return "not dense"
    if value.is_meta:
        return "without values, on the meta device"
    if value.dtype not in (FLOATS + INTEGERS if name.endswith("num_batches_tracked") else FLOATS):
        return f"of {value.dtype}"
    # In float32, which networks have: a large float64 becomes infinite on its way into them.
    return None if value.float().isfinite().all() else "not finite"


def _misfits(given: Weights, expected: Weights) -> list[str]:
    """What keeps `given` from being loaded: the first missing and unexpected names and the first wrong shape."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} of shape {list(given[name].shape)}, not {list(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "": shapes}
    return [
        f"{kind} {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}".strip()
        for kind, names in kinds.items()
        if names
    ]


def _settings_that_differ(net: TapBackbone, given: Weights, expected: Weights) -> list[str]:
    """The settings that would make the network fit, as `in_channels 5, not 4`."""
    settings = {KPFCNN: _kpfcnn_settings, MinkUNet: _minkunet_settings}.get(type(net), lambda _: {})
    theirs, ours = settings(given), settings(expected)
    variants = [side.get("variant") for side in (theirs, ours)]
    silent = {"planes", "layers"} if all(variants) else {"variant"}  # one of them tells the other

    def shown(side: dict[str, Any], name: str) -> str:
        return f"those of {side['variant']}" if name in ("planes", "layers") and side["variant"] else str(side[name])

    differing = [
        f"{name} {shown(theirs, name)}, not {shown(ours, name)}"
        for name, value in theirs.items()
        if name not in silent and value is not None and value != ours[name]
    ]
    if differing and differing[-1].startswith("num_classes"):
        differing[-1] += " (head=False keeps the network's last layer)"
    return differing


def _kpfcnn_settings(weights: Weights) -> dict[str, Any]:
    """The settings of a KPFCNN that its state dict tells, under our names; None where it does not."""
    stem, counts = "encoder.0.entry.conv.weights", {}
    for name in weights:
        if found := re.match(r"encoder\.(\d+)\.blocks\.(\d+)\.", name):
            level, block = int(found[1]), int(found[2])
            counts[level] = max(counts.get(level, 0), block + 1)
    offsets = {_size(weights, name, 0) for name in weights if name.endswith(".offset_bias")}
    points, half_width = _size(weights, stem, 0), _size(weights, stem, 2)
    deformable = _numbers(weights, r"encoder\.(\d+)\.blocks\..*\.offset_bias$")
    return {
        "in_channels": _size(weights, stem, 1),
        "first_width": 2 * half_width if half_width else None,
        "blocks": tuple(counts[level] for level in sorted(counts)) or None,
        "num_kernel_points": points,
        "deformable_levels": tuple(deformable) if counts else None,
        "modulated": 4 * points in offsets if points and offsets else None,
        "num_classes": _size(weights, "head.2.weight", 0),
    }


def _minkunet_settings(weights: Weights) -> dict[str, Any]:
    """The settings of a MinkUNet that its state dict tells; None where it does not."""
    stages = range(1, 2 * STAGES + 1)
    planes = tuple(_size(weights, f"block{stage}.0.norm1.bn.weight", 0) for stage in stages)
    layers = tuple(len({n.split(".")[1] for n in weights if n.startswith(f"block{stage}.")}) for stage in stages)
    deep = "block1.0.conv3.kernel" in weights
    known = (MinkUNetConfig(variant=variant) for variant in PLANES)
    variants = [c.variant for c in known if (c.widths, c.counts, c.bottleneck) == (planes, layers, deep)]
    taps = _size(weights, "conv0p1s1.kernel", 0)
    return {
        "in_channels": _size(weights, "conv0p1s1.kernel", 1),
        "stem_kernel": round(taps ** (1 / 3)) if taps else None,
        "variant": variants[0] if variants else None,
        "planes": None if None in planes else planes,
        "layers": None if 0 in layers else layers,
        "num_classes": _size(weights, "final.kernel", 1),
    }


def _size(weights: Weights, name: str, axis: int) -> int | None:
    """One length of an entry; None if there is no such entry or axis."""
    return weights[name].shape[axis] if name in weights and axis < weights[name].ndim else None


def _check_scale(net: KPFCNN, given: Weights, place: str) -> None:
    """Raise a UserError unless the kernel points lie about as far out as the network's settings say."""
    name = "encoder.0.entry.conv.kernel_points"
    theirs, ours = (weights[name].double().norm(dim=1).sum().item() for weights in (given, net.state_dict()))
    if len(given[name]) > 1 and not 0.9 < theirs / ours < 1.1:
        fitting = net.config.grid_size * theirs / ours
        raise UserError(
            f"{place}: kernel points of another scale: they fit grid_size {fitting:.2g} (times conv_radius "
            f"{net.config.conv_radius:g}), not {net.config.grid_size:g}"
        )
