import numpy as np
import pytest
import torch

from kpconv_ops import kernel_points
from kpconv_ops.kernel_points import _disposition


@pytest.mark.parametrize("num_points", [2, 5, 9, 15, 25])
def test_one_point_is_the_centre_and_the_others_surround_it(num_points):
    """The moving points have the mean radius 0.66 and balance each other around the centre."""
    points = _disposition(num_points)
    radii = points.norm(dim=1)
    assert radii[0] == 0
    torch.testing.assert_close(radii[1:].mean(), torch.tensor(0.66, dtype=torch.float64))
    assert radii[1:].min() > 0.6
    if num_points > 2:  # one moving point has nothing to balance it
        assert points.mean(0).norm() < 0.05


def test_no_two_points_are_close():
    """Fifteen points of the paper: the nearest pairs are 0.5886 apart, as in the one arrangement of lowest energy."""
    distances = torch.pdist(_disposition(15))
    assert distances.min() == pytest.approx(0.5886, abs=1e-3)


def test_the_disposition_is_a_minimum_of_the_energy():
    """No small step of the points lowers the energy 1/d between all plus 5 r^2, once the scaling is undone."""
    moving = _disposition(15)[1:]

    def energy(points):
        radii = points.norm(dim=1)
        return torch.pdist(points).reciprocal().sum() + radii.reciprocal().sum() + 5 * radii.square().sum()

    # Undo the scaling: of all sizes of this shape take the one of lowest energy.
    scales = torch.linspace(0.5, 3, 2001, dtype=torch.float64)
    best = scales[torch.stack([energy(scale * moving) for scale in scales]).argmin()] * moving
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        step = torch.randn(best.shape, generator=random, dtype=torch.float64)
        assert energy(best + 0.05 * step / step.norm()) > energy(best)


def test_scale_rotation_and_noise():
    """Every call scales with the radius, turns about z, and moves points by about 0.01 of the radius an axis."""
    base = _disposition(15)
    random = torch.Generator().manual_seed(0)
    draws = torch.stack([kernel_points(15, 2.5, random, dtype=torch.float64) / 2.5 for _ in range(200)])
    heights = draws[:, :, 2] - base[:, 2]  # a rotation about z leaves them alone
    assert heights.std().item() == pytest.approx(0.01, rel=0.1)
    assert (draws.norm(dim=2) - base.norm(dim=1)).abs().max() < 0.06
    angles = torch.atan2(draws[:, 1, 1], draws[:, 1, 0])
    assert torch.histc(angles, 4, -torch.pi, torch.pi).min() > 30


def test_a_generator_decides_everything():
    first, again, other = (kernel_points(15, 1.0, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    unseeded = kernel_points(15, 1.0)
    torch.manual_seed(5)
    assert torch.equal(unseeded, kernel_points(15, 1.0))


def test_built_without_gradients():
    with torch.no_grad():
        _disposition.cache_clear()
        points = kernel_points(4, 1.0)
    assert points.shape == (4, 3) and points.dtype == torch.float32 and not points.requires_grad


def test_a_single_point_is_the_centre():
    assert kernel_points(1, 1.0, torch.Generator().manual_seed(0)).norm() < 0.06


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_points": 0}, ValueError, r"num_points must be at least 1 and less than 2\^31, got 0"),
        ({"num_points": 3.0}, TypeError, "num_points must be an integer, got float"),
        ({"num_points": True}, TypeError, "num_points must be an integer, got bool"),
        ({"radius": 0.0}, ValueError, "radius must be positive and finite, got 0.0"),
        ({"radius": float("inf")}, ValueError, "radius must be positive and finite, got inf"),
        ({"radius": "1"}, TypeError, "radius must be a number, got str"),
        ({"radius": 1e39}, ValueError, r"radius must be in the range of torch.float32, got 1e\+39"),
        ({"radius": 1e-40}, ValueError, "radius must be in the range of torch.float32, got 1e-40"),
        ({"dtype": torch.int64}, TypeError, "dtype must be float32, float64, float16 or bfloat16, got torch.int64"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        kernel_points(**{"num_points": 15, "radius": 1.0} | change)


def test_numbers_of_numpy():
    one, other = (
        kernel_points(count, radius, torch.Generator().manual_seed(0))
        for count, radius in ((5, 0.5), (np.int32(5), np.float32(0.5)))
    )
    assert torch.equal(one, other)
