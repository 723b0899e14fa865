"""Segmentation networks behind one feature interface. A new one is a file beside these and a line in `BACKBONES`."""

from dataclasses import fields

from ..errors import UserError
from .base import TapBackbone, TapInfo
from .kpfcnn import KPFCNN, KPFCNNConfig
from .minkunet import MinkUNet, MinkUNetConfig
from .pretrained import load_pretrained

BACKBONES = {
    "kpfcnn": (KPFCNN, KPFCNNConfig),
    "minkunet": (MinkUNet, MinkUNetConfig),
}


def build_backbone(name: str, in_channels: int, num_classes: int, **options) -> TapBackbone:
    """Build a segmentation network with random weights (from torch's global generator).

    Args:
        name: a key of `BACKBONES`.
        in_channels: features per input point.
        num_classes: logits per input point.
        options: fields of the backbone's config class; the others keep their defaults.

    Raises:
        UserError: an unknown name or option, or a value that no network can be built with.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone must be one of {', '.join(BACKBONES)}; got {name!r}")
    backbone, config = BACKBONES[name]
    known = [field.name for field in fields(config)]
    for option in options:
        if option not in known:
            raise UserError(f"backbone {name} has no option {option!r}; its options are {', '.join(known)}")
    for argument, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if value < 1:
            raise UserError(f"{argument} must be at least 1, got {value}")
    return backbone(in_channels, num_classes, config(**options))


__all__ = [
    "BACKBONES",
    "KPFCNN",
    "KPFCNNConfig",
    "MinkUNet",
    "MinkUNetConfig",
    "TapBackbone",
    "TapInfo",
    "build_backbone",
    "load_pretrained",
]
