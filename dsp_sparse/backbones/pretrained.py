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
from .base import TapBackbone
from .kpfcnn import KPFCNN
from .minkunet import MinkUNet
from .minkunet_config import LAYERS, PLANES, STAGES

Weights = Mapping[str, Tensor]

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

    Taken are: our own (`model.pt`, a run folder, a state dict); for KPFCNN those of KPConv-PyTorch, rigid or
    deformable, which pools as those networks did with `padded_pools`; for MinkUNet those of MinkowskiEngine's MinkUNet
    and Res16UNet. State dicts may stand under `state_dict` or `model_state_dict`, their names behind `module.` or
    `model.`.

    Args:
        net: the network; its settings must be those of the weights.
        source: a file, which is read without running code from it, or its content.
        head: whether the last layer is loaded; without it, the network may have other classes. None: if the number of
            classes is the same.

    Raises:
        UserError: no readable file of weights, or weights of another architecture; the message names the settings that
            differ, as far as they can be told, and the first names or shapes that do not match.
    """
    given, place = _read(source)
    if isinstance(net, KPFCNN) and any(name.startswith("encoder_blocks.") for name in given):
        given = rename_kpconv(given)
        if not net.config.padded_pools:
            warnings.warn(
                f"{place}: a network of KPConv-PyTorch, which max-pools with a zero: padded_pools=True does so, too",
                stacklevel=2,
            )
    expected, last = net.state_dict(), LAST_LAYER.get(type(net))
    if last and head is not True:
        same = all(given[n].shape == v.shape for n, v in expected.items() if n.startswith(last) and n in given)
        if head is False or not same:
            given = {n: v for n, v in given.items() if not n.startswith(last)}
            given |= {n: v for n, v in expected.items() if n.startswith(last)}
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


def _numbers(weights: Weights, pattern: str) -> list[int]:
    """The numbers that the pattern finds at the start of the names, ascending."""
    return sorted({int(found[1]) for name in weights if (found := re.match(pattern, name))})


def _read(source: str | os.PathLike | Weights) -> tuple[dict[str, Tensor], str]:
    """The state dict in `source`, without prefixes, and what to call the source in messages."""
    if isinstance(source, Mapping):
        content, place = source, "state dict"
    else:
        path = Path(source)
        path, place = (path / "model.pt" if path.is_dir() else path), str(source)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever the broken bytes lead it to
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{place}: not a readable file of weights ({reason})") from None
    weights = content
    if isinstance(content, Mapping) and str(content.get("format", "")).startswith("dsp-sparse "):
        weights = content["content"].get("net")
    elif isinstance(content, Mapping):
        weights = next((content[key] for key in ("model_state_dict", "state_dict") if key in content), content)
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        found = f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content)
        raise UserError(f"{place}: holds no state dict of a network, but {found}")
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights), place


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
    known = {name: value for name, value in theirs.items() if value is not None}
    differing = [f"{name} {value}, not {ours[name]}" for name, value in known.items() if value != ours[name]]
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
    deformable = {n: len(v) for n, v in weights.items() if n.endswith(".offset_bias")}
    points = _size(weights, stem, 0)
    return {
        "in_channels": _size(weights, stem, 1),
        "first_width": 2 * _size(weights, stem, 2) if stem in weights else None,
        "blocks": tuple(counts[level] for level in sorted(counts)) or None,
        "num_kernel_points": points,
        "deformable_levels": tuple(sorted({int(n.split(".")[1]) for n in deformable if ".blocks." in n}))
        if counts
        else None,
        "modulated": 4 * points in deformable.values() if points and deformable else None,
        "num_classes": _size(weights, "head.2.weight", 0),
    }


def _minkunet_settings(weights: Weights) -> dict[str, Any]:
    """The settings of a MinkUNet that its state dict tells; None where it does not."""
    stages = range(1, 2 * STAGES + 1)
    planes = tuple(_size(weights, f"block{stage}.0.norm1.bn.weight", 0) for stage in stages)
    layers = tuple(len({n.split(".")[1] for n in weights if n.startswith(f"block{stage}.")}) for stage in stages)
    deep = "block1.0.conv3.kernel" in weights
    variants = [
        variant
        for variant in PLANES
        if PLANES[variant] == planes and LAYERS[variant.rstrip("ABCD")] == layers and deep == (variant in ("50", "101"))
    ]
    taps = _size(weights, "conv0p1s1.kernel", 0)
    return {
        "in_channels": _size(weights, "conv0p1s1.kernel", 1),
        "stem_kernel": round(taps ** (1 / 3)) if taps else None,
        "variant": variants[0] if variants else None,
        "planes": None if variants or None in planes else planes,
        "layers": None if variants or 0 in layers else layers,
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
