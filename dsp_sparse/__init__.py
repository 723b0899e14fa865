"""Semantic segmentation of 3D point clouds with few labels, by dense supervision propagation."""

from .errors import UserError
from .ragged import Ragged

__version__ = "0.1.0"

__all__ = ["Ragged", "UserError", "__version__"]
