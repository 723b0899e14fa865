"""Semantic segmentation of 3D point clouds with few labels, by dense supervision propagation."""

from .backbones import build_backbone
from .errors import UserError
from .ragged import Ragged
from .reallocation import CSFR, ISFR

__version__ = "0.1.0"

__all__ = ["CSFR", "ISFR", "Ragged", "UserError", "__version__", "build_backbone"]
