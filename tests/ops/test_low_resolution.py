import numpy as np
from PIL import Image

from ops.low_resolution import degraded


def test_an_image_is_averaged_over_squares_and_enlarged():
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    means = image.reshape(3, 4, 5, 4, 3).mean((1, 3))
    expected = np.asarray(
        Image.fromarray(means.round().astype(np.uint8)).resize((20, 12), Image.Resampling.BICUBIC)
    )
    # Pillow rounds after each axis: a mean may be off by 1, after bicubic resizing by 1.6.
    np.testing.assert_allclose(degraded(image, 4).astype(int), expected, atol=2)


def test_an_image_smaller_than_the_ratio_becomes_its_mean():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    coarse = degraded(image, 64)
    assert (coarse == coarse[0, 0]).all()
    np.testing.assert_allclose(coarse[0, 0], image.mean((0, 1)), atol=1)
