"""Images of point clouds: an oblique orthographic look from above, nearer points before farther ones."""

from dataclasses import dataclass

import numpy as np

ELEVATION = 50.0  # degrees above the horizon
SHADE, DEEP = 0.8, 0.4  # how dark the edges of what stands out are, and the metres beyond which they get no darker


@dataclass(frozen=True)
class Camera:
    """What maps points to pixels. The same camera shows several clouds alike.

    Args:
        rotation: `[3, 3]`: right, up and towards the camera, as rows.
        corner: `[2]` right and up of the lower left corner, metres.
        size: `[2]` width and height of what is seen, metres.
        scale: pixels a metre.
    """

    rotation: np.ndarray
    corner: np.ndarray
    size: np.ndarray
    scale: float

    @classmethod
    def over(cls, points: np.ndarray, pixels: int, azimuth: float, elevation: float = ELEVATION) -> "Camera":
        """A camera that sees all of `points` `[n, 3]`, n at least 1; the longer side of its image has `pixels`.

        It stands at `azimuth` degrees from the x axis, `elevation` degrees above the horizon.
        """
        a, e = np.radians([azimuth, elevation])
        right = np.array([-np.sin(a), np.cos(a), 0])
        towards = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
        rotation = np.stack([right, np.cross(towards, right), towards])
        flat = points @ rotation[:2].T
        low, high = flat.min(0), flat.max(0)
        margin = 0.02 * (high - low).max() + 1e-3
        size = high - low + 2 * margin
        return cls(rotation, low - margin, size, pixels / size.max())

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and row `[n, 2]` of points `[n, 3]` in the image, and how near the camera `[n]` they are, metres."""
        turned = points @ self.rotation.T
        flat = (turned[:, :2] - self.corner) * self.scale
        flat[:, 1] = self.size[1] * self.scale - flat[:, 1]
        return flat, turned[:, 2]


def render(points: np.ndarray, colours: np.ndarray, camera: Camera, spacing: float, shade: float = SHADE) -> np.ndarray:
    """Draw a cloud.

    Args:
        points: `[n, 3]` metres.
        colours: `[n, 3]` uint8.
        camera: what sees it.
        spacing: distance of neighbouring points, metres: each is drawn as a disc that closes the gaps between them.
        shade: darkness of edges in depth; 0 for none.

    Returns:
        `[height, width, 4]` uint8, transparent where there is no point.
    """
    nearest, depth = _draw(points, camera, spacing)
    drawn = nearest >= 0
    image = np.zeros((*drawn.shape, 4), np.uint8)
    image[drawn, :3] = colours[nearest[drawn]]
    image[drawn, 3] = 255
    if shade:
        surface = np.where(drawn, depth[nearest], -np.inf)
        light = _light(surface, max(1, round(spacing * camera.scale / 2)), shade)
        image[drawn, :3] = (image[drawn, :3] * light[drawn, None]).round().astype(np.uint8)
    return image


def visible(points: np.ndarray, camera: Camera, spacing: float) -> int:
    """How many points of a cloud `render` would show a part of."""
    return np.count_nonzero(np.bincount(_draw(points, camera, spacing)[0].ravel() + 1)[1:])


def _draw(points: np.ndarray, camera: Camera, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """The number of the nearest point on every pixel, -1 where there is none, and how near each point `[n]` is."""
    width, height = np.ceil(camera.size * camera.scale).astype(int) + 1
    flat, depth = camera.project(points)
    order = np.argsort(depth, kind="stable")  # the rank of a point tells what it hides
    column, row = np.floor(flat[order]).astype(int).T
    radius = max(1.0, 0.6 * spacing * camera.scale)
    ranks, rank = np.full(height * width, -1), np.arange(len(points))
    for dy in range(-int(radius), int(radius) + 1):
        for dx in range(-int(radius), int(radius) + 1):
            if dx * dx + dy * dy <= radius * radius:
                x, y = column + dx, row + dy
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                np.maximum.at(ranks, y[inside] * width + x[inside], rank[inside])
    nearest = np.append(order, -1)[ranks].reshape(height, width)
    return nearest, depth


def _light(depth: np.ndarray, reach: int, strength: float) -> np.ndarray:
    """How bright each pixel is, in (0, 1]: darker the more its neighbours stand before it (eye-dome lighting)."""
    padded = np.pad(depth, reach, constant_values=-np.inf)
    before = np.zeros_like(depth)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        y, x = dy * reach, dx * reach
        neighbour = padded[y : y + depth.shape[0], x : x + depth.shape[1]]
        both = np.isfinite(neighbour) & np.isfinite(depth)
        before[both] += (neighbour[both] - depth[both]).clip(0, DEEP)
    return np.exp(-strength * before)
