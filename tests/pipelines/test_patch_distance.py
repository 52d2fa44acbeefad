import numpy as np
import pytest
import torch

from ops.images import to_pixels
from pipelines.studies.patch_distance import PATCH, PatchFeatures, patch_distance, patches_of
from tests.conftest import photograph


def photographs(seeds):
    return to_pixels(np.stack([photograph(seed, 2 * PATCH, 3 * PATCH) for seed in seeds]))


def test_patches_are_cut_row_by_row_image_after_image():
    pixels = 3 * photographs([0, 1])
    expected = [
        image[:, top : top + PATCH, left : left + PATCH].clamp(-1, 1)
        for image in pixels
        for top in (0, PATCH)
        for left in (0, PATCH, 2 * PATCH)
    ]
    assert torch.equal(patches_of(pixels), torch.stack(expected))


def test_patch_distance_is_the_frechet_distance_of_features():
    a, b = photographs(range(8)), 0.5 * photographs(range(20, 28))
    features = [PatchFeatures()(patches_of(pixels)).double().numpy() for pixels in (a, b)]
    means = [each.mean(0) for each in features]
    covariances = [np.cov(each, rowvar=False) for each in features]
    # The trace of the product's root is the sum of singular values of the product of roots.
    roots = []
    for covariance in covariances:
        values, vectors = np.linalg.eigh(covariance)
        roots.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    expected = ((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * cross
    assert patch_distance(a, b) == pytest.approx(expected, rel=1e-3)


def test_patches_are_at_no_distance_from_themselves_and_blur_is_at_some():
    sharp = photographs(range(8))
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    nothing, something = patch_distance(sharp, sharp), patch_distance(sharp, blurred)
    assert abs(nothing) < 0.01 * something
