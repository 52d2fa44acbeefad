import numpy as np

from ops.colours import class_colours, scalar_colours


def test_class_colours_are_distinct_and_do_not_depend_on_the_image():
    colours = class_colours(np.arange(-1, 182))
    assert colours.dtype == np.uint8
    assert colours[0].tolist() == [0, 0, 0]  # void
    assert len(np.unique(colours, axis=0)) == 183
    assert np.array_equal(class_colours(np.array([[3, -1]]))[0], colours[[4, 0]])
    neighbours = np.abs(np.diff(colours[1:].astype(int), axis=0)).sum(1)
    assert neighbours.min() > 40


def test_scalar_colours_grow_brighter_and_are_clamped():
    colours = scalar_colours(np.array([-1, 0, 0.3, 0.7, 1, 5]))
    brightness = colours.astype(int).sum(1)
    assert brightness[0] == brightness[1]
    assert (np.diff(brightness[1:5]) > 0).all()
    assert brightness[4] == brightness[5]
