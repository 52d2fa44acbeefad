import numpy as np
from matplotlib.figure import Figure

from ops.plots import figure_image


def test_a_figure_becomes_an_image_of_its_size_with_or_without_alpha():
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="none")
    figure.add_axes((0, 0, 0.5, 1), facecolor="red", xticks=[], yticks=[], frameon=True)
    image, with_alpha = figure_image(figure), figure_image(figure, alpha=True)
    assert image.shape == (50, 100, 3)
    assert with_alpha.shape == (50, 100, 4)
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(with_alpha[25, 25], [255, 0, 0, 255])
    assert with_alpha[25, 75, 3] == 0
    np.testing.assert_array_equal(image, with_alpha[..., :3])
