"""Colours of classes."""

import numpy as np

from dsp_sparse.palette import lab, palette


def test_lab_is_that_of_cie():
    """White is (100, 0, 0), black the origin, and red what the standard's tables say."""
    np.testing.assert_allclose(lab([[255, 255, 255], [0, 0, 0]]), [[100, 0, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(lab([255, 0, 0]), [53.24, 80.09, 67.20], atol=0.05)


def test_classes_can_be_told_apart():
    """20 classes differ by 40 in CIELAB, where 2.3 can just be noticed; none vanishes in black or white."""
    colours = palette(20)
    assert colours.shape == (20, 3) and colours.dtype == np.uint8
    places = lab(np.concatenate([colours, [[0, 0, 0], [255, 255, 255]]]))
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(22, 1)]
    assert np.linalg.norm(places[:20, None] - places[None, :20], axis=-1)[np.triu_indices(20, 1)].min() > 40
    assert gaps.min() > 10


def test_any_number_of_classes_has_colours():
    """Fewer classes take the first colours of more; thousands of classes are no error."""
    assert np.array_equal(palette(13), palette(20)[:13])
    assert palette(0).shape == (0, 3) and palette(6000).shape == (6000, 3)
    assert len(np.unique(palette(1000), axis=0)) == 1000
