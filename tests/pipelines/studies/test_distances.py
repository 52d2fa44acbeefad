import numpy as np
import pytest
import torch

from ops.images import to_pixels
from pipelines.studies.distances import (
    PATCH,
    LayoutFeatures,
    PatchFeatures,
    layout_distance,
    patch_distance,
    patches_of,
)
from tests.conftest import photograph


def photographs(seeds):
    return to_pixels(np.stack([photograph(seed, 2 * PATCH, 3 * PATCH) for seed in seeds]))


def test_patches_come_row_by_row_and_image_by_image():
    pixels = photographs([0, 1])
    expected = [
        image[:, top : top + PATCH, left : left + PATCH]
        for image in pixels
        for top in (0, PATCH)
        for left in (0, PATCH, 2 * PATCH)
    ]
    assert torch.equal(patches_of(pixels), torch.stack(expected))


def frechet(a, b):
    """The distance of features (N, D), computed with numpy."""
    # The trace of the product's root is the sum of the singular values of the product of roots.
    roots = []
    for covariance in (np.cov(each, rowvar=False) for each in (a, b)):
        values, vectors = np.linalg.eigh(covariance)
        roots.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    traces = sum(np.trace(np.cov(each, rowvar=False)) for each in (a, b))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * cross


def test_patch_distance_is_the_frechet_distance_of_features():
    a, b = photographs(range(8)), 0.5 * photographs(range(20, 28))
    features = [PatchFeatures()(patches_of(pixels)).double().numpy() for pixels in (a, b)]
    assert patch_distance(a, b) == pytest.approx(frechet(*features), rel=1e-3)


def test_layout_distance_is_the_frechet_distance_of_coarse_brightness():
    a, b = photographs(range(30)), 0.5 * photographs(range(40, 70))
    grids = []
    for pixels in (a, b):
        cells = pixels.double().mean(1).numpy().reshape(30, 4, PATCH // 2, 4, 3 * PATCH // 4)
        grids.append(cells.mean((2, 4)).reshape(30, 16))
    assert LayoutFeatures()(a).numpy() == pytest.approx(grids[0], abs=1e-6)
    assert layout_distance(a, b) == pytest.approx(frechet(*grids), rel=1e-3)


def test_equal_images_have_zero_distance_and_blurred_ones_do_not():
    sharp = photographs(range(8))
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    equal, different = patch_distance(sharp, sharp), patch_distance(sharp, blurred)
    assert abs(equal) < 0.01 * different
