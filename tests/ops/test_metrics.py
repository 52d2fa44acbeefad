import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from ops.metrics import code_counts, codebook_usage, gradient_energy, label_agreement, psnr, ssim


def image_pair():
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (2, 3, 40, 48)).astype(np.float32)
    b = np.clip(a + rng.normal(0, [[[[0.1]]], [[[0.4]]]], a.shape), -1, 1).astype(np.float32)
    return a, b


def test_psnr_equals_scikit_images():
    a, b = image_pair()
    ours = psnr(torch.from_numpy(a), torch.from_numpy(b))
    theirs = [peak_signal_noise_ratio(a[i], b[i], data_range=2.0) for i in range(2)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-4)
    assert math.isinf(psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)))


def test_psnr_clamps_values_out_of_range():
    white = torch.ones(1, 3, 8, 8)
    assert math.isinf(psnr(white, 1.5 * white))


def slow_ssim(a, b):
    """Wang et al. 2004 with an 11 x 11 Gaussian of 1.5 pixels, reflected borders."""

    def blur(image):
        return gaussian_filter(image, 1.5, truncate=3.5, mode="mirror")

    values = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        similarity = (2 * mx * my + c1) * (2 * cov + c2)
        values.append(similarity / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_ssim_is_wangs_with_reflected_borders():
    a, b = image_pair()
    ours = ssim(torch.from_numpy(a), torch.from_numpy(b))
    theirs = [slow_ssim(a[i], b[i]) for i in range(2)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-4)


def test_codebook_usage_counts_codes_and_their_perplexity():
    counts = code_counts(torch.tensor([[0, 0], [3, 3]]), 8)
    assert counts.tolist() == [2, 0, 0, 2, 0, 0, 0, 0]
    usage = codebook_usage(counts)
    assert usage.used == 2
    assert usage.perplexity == pytest.approx(2.0)
    assert usage.bits == pytest.approx(1.0)
    even = codebook_usage(torch.ones(16, dtype=torch.int64))
    assert even.perplexity == pytest.approx(16.0)


def test_label_agreement_equals_direct_counting():
    random = np.random.default_rng(0)
    labels = random.integers(-1, 4, (3, 1, 8, 8))  # class 5 never occurs
    predicted = np.where(
        random.random(labels.shape) < 0.6, labels, random.integers(0, 5, labels.shape)
    )
    predicted = predicted.clip(0)
    right, ious = 0, []
    for number in range(6):
        is_true = (labels == number) & (labels >= 0)
        is_predicted = (predicted == number) & (labels >= 0)
        right += (is_true & is_predicted).sum()
        if (is_true | is_predicted).any():
            ious.append((is_true & is_predicted).sum() / (is_true | is_predicted).sum())
    found = label_agreement(torch.from_numpy(labels), torch.from_numpy(predicted), 6)
    assert found.accuracy == pytest.approx(right / (labels >= 0).sum())
    assert found.mean_iou == pytest.approx(np.mean(ious))
    assert len(ious) == 5


def test_gradient_energy_is_the_mean_squared_difference_down_plus_across():
    pixels = 1.5 * torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) - 0.6
    for image, energy in zip(pixels.numpy(), gradient_energy(pixels), strict=True):
        image = image.clip(-1, 1)
        down, across = [], []
        for channel, row, column in np.ndindex(image.shape):
            here = image[channel, row, column]
            if row < 4:
                down.append((image[channel, row + 1, column] - here) ** 2)
            if column < 6:
                across.append((image[channel, row, column + 1] - here) ** 2)
        assert float(energy) == pytest.approx(sum(down) / len(down) + sum(across) / len(across))
