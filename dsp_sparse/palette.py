"""Colours of classes."""

import numpy as np

# From linear sRGB to CIE XYZ over the white point D65 (IEC 61966-2-1).
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
TO_XYZ /= TO_XYZ.sum(1, keepdims=True)
FIRST = (31, 119, 180)  # a blue that neither a white nor a black background swallows
LIGHTNESS = 30, 90


def palette(count: int) -> np.ndarray:
    """Colours that are easy to tell apart, each as far as can be, to the eye, from all before it.

    The colours of fewer classes are the first of those of more. They repeat after some thousand.

    Args:
        count: number of colours, at least 0.

    Returns:
        `[count, 3]` uint8, red green blue.
    """
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    places = lab(candidates)
    visible = (places[:, 0] >= LIGHTNESS[0]) & (places[:, 0] <= LIGHTNESS[1])
    candidates, places = candidates[visible], places[visible]
    chosen, latest = [np.array(FIRST, np.uint8)], lab(np.array(FIRST))
    gaps = np.full(len(places), np.inf)
    for _ in range(min(count, len(places)) - 1):
        gaps = np.minimum(gaps, np.linalg.norm(places - latest, axis=1))
        farthest = gaps.argmax()
        latest = places[farthest]
        chosen.append(candidates[farthest])
    return np.resize(np.stack(chosen), (count, 3))


def lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB coordinates `[..., 3]` of sRGB colours (0 to 255): in them, distance is how different colours look."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
