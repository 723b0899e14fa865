"""Augmentation of a sample, KPConv's recipe for indoor scenes."""

from dataclasses import replace

import numpy as np

from ..config import AugmentConfig
from .batch import Sample


def augment(sample: Sample, config: AugmentConfig, generator: np.random.Generator) -> Sample:
    """Rotate, scale, mirror and jitter a sample's coordinates, and drop its measured features, as `config` says.

    No point is added, removed or moved to another row. The height channel follows the vertical scale, so that it
    stays the height in the scene that the network is shown.
    """
    angle = generator.uniform(0, 2 * np.pi) if config.rotate else 0.0
    scale = generator.uniform(config.scale_min, config.scale_max, 3)
    mirror = config.mirror and generator.random() < 0.5
    drop = generator.random() < config.feature_drop

    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = sample.coord.T
    # Column by column: a product of matrices would start the threads of BLAS, in every worker.
    coord = np.empty_like(sample.coord)
    coord[:, 0] = np.float32(-scale[0] if mirror else scale[0]) * (np.float32(cos) * x - np.float32(sin) * y)
    coord[:, 1] = np.float32(scale[1]) * (np.float32(sin) * x + np.float32(cos) * y)
    coord[:, 2] = np.float32(scale[2]) * z
    if config.jitter:
        noise = generator.standard_normal(coord.shape, np.float32)
        noise *= np.float32(config.jitter)
        coord += noise
    feat = sample.feat.copy()
    feat[:, -1] *= scale[2]
    if drop:
        feat[:, 1:-1] = 0
    return replace(sample, coord=coord, feat=feat)
