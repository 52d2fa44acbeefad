import numpy as np
from PIL import Image

from ops.low_resolution import degraded, with_artefacts


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


def test_artefacts_are_chosen_by_the_text():
    image = np.full((32, 48, 3), 128, np.uint8)
    image[8:24, 8:40] = (200, 60, 20)
    found = [with_artefacts(image, str(number)) for number in range(200)]
    np.testing.assert_array_equal(found[7], with_artefacts(image, "7"))
    assert {each.shape for each in found} == {image.shape}
    changes = np.array([np.abs(each.astype(int) - image).mean() for each in found])
    assert 0.15 < (changes == 0).mean() < 0.35  # neither noise nor JPEG
    assert changes.max() < 13
    assert np.median(changes) > 1


def test_artefacts_are_those_of_the_small_image():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = degraded(image, 4)
    changed = [degraded(image, 4, str(number)) for number in range(20)]
    differences = [np.abs(each.astype(int) - plain).mean() for each in changed]
    assert min(differences) == 0
    assert 1 < max(differences) < 40
