"""Images of point clouds: an oblique orthographic look from above, nearer points before farther ones."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ELEVATION = 50.0  # degrees above the horizon
# How dark the edges of what stands out are, and the metres in depth beyond which they get no darker.
SHADE, DEEP = 0.8, 0.4


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
    def over(cls, points: np.ndarray, pixels: int, azimuth: float) -> "Camera":
        """A camera that sees all of `points` `[n, 3]`, n at least 1; the longer side of its image has `pixels`.

        It stands at `azimuth` degrees from the x axis, at a fixed elevation above the horizon.
        """
        a, e = np.radians([azimuth, ELEVATION])
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


@dataclass(frozen=True, eq=False)
class Drawing:
    """Which point of a cloud every pixel shows; it can be painted in several colours.

    Args:
        nearest: `[height, width]` int64, the point; -1 where there is none.
        depth: `[n]` how near the camera each point is, metres.
        reach: half the distance of neighbouring points, pixels.
    """

    nearest: np.ndarray
    depth: np.ndarray
    reach: int

    @classmethod
    def of(cls, points: np.ndarray, camera: Camera, spacing: float) -> "Drawing":
        """Draw points `[n, 3]` `spacing` metres apart, each as a disc that closes the gaps between them."""
        width, height = np.ceil(camera.size * camera.scale).astype(int) + 1
        flat, depth = camera.project(points)
        order = np.argsort(depth, kind="stable")  # the rank of a point tells what it hides
        column, row = np.floor(flat[order]).astype(int).T
        radius = max(1.0, 0.75 * spacing * camera.scale)  # more than half the diagonal of a cell
        ranks, rank = np.full(height * width, -1), np.arange(len(points))
        for dy in range(-int(radius), int(radius) + 1):
            for dx in range(-int(radius), int(radius) + 1):
                if dx * dx + dy * dy <= radius * radius:
                    x, y = column + dx, row + dy
                    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                    np.maximum.at(ranks, y[inside] * width + x[inside], rank[inside])
        nearest = np.append(order, -1)[ranks].reshape(height, width)
        return cls(nearest, depth, max(1, round(spacing * camera.scale / 2)))

    @property
    def visible(self) -> np.ndarray:
        """The points that at least one pixel shows, ascending."""
        return np.unique(self.nearest[self.nearest >= 0])

    def paint(self, colours: np.ndarray) -> np.ndarray:
        """The image `[height, width, 4]` uint8 with points in `colours` `[n, 3]`; transparent where there is none."""
        drawn = self.nearest >= 0
        image = np.zeros((*drawn.shape, 4), np.uint8)
        image[drawn, :3] = (colours[self.nearest[drawn]] * self._light[drawn, None]).round()
        image[drawn, 3] = 255
        return image

    @cached_property
    def _light(self) -> np.ndarray:
        """How bright each pixel is, in (0, 1]: darker the more its neighbours stand before it (eye-dome lighting)."""
        depth = np.where(self.nearest >= 0, self.depth[self.nearest], np.nan)
        padded = np.pad(depth, self.reach, constant_values=np.nan)
        before = np.zeros_like(depth)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            y, x = dy * self.reach, dx * self.reach
            step = padded[y : y + depth.shape[0], x : x + depth.shape[1]] - depth
            before += np.nan_to_num(step).clip(0, DEEP)
        return np.exp(-SHADE * before)


def spacing_of(points: np.ndarray, sample: int = 300) -> float:
    """The spacing of the grid that points lie on, metres: the median distance to the third nearest of some of them."""
    if len(points) < 4:
        return 0.1
    chosen = points[:: max(1, len(points) // sample)]
    squared = [np.partition(((points - point) ** 2).sum(1), 3)[3] for point in chosen]
    return float(np.sqrt(np.median(squared)))
