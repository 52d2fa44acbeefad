"""evaluate tokenizer: values, intervals and what is absent."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ops.images import decode_image, resize_and_crop, to_image, to_pixels
from ops.metrics import gradient_energy, ssim
from pipelines import evaluate
from pipelines.evaluation import evaluate_tokenizer
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.perceptual_metrics import LPIPSMetric
from pipelines.evaluation.pixel_metrics import PixelMetrics
from pipelines.flags import EvaluateFlags
from tests.pipelines.evaluation.random_features import PooledFeatures, RandomFeatures
from tokenizer import load_tokenizer

SIDE = 32


@pytest.fixture(scope="module")
def pixels(photographs):
    """All photographs as the command cuts them, (n, 3, SIDE, SIDE)."""
    files = sorted(photographs.rglob("*.*"))
    return torch.cat(
        [to_pixels(resize_and_crop(decode_image(path.read_bytes()), SIDE)) for path in files]
    )


def test_values_are_those_of_all_images_at_once(tiny_tokenizer, photographs, pixels, tmp_path):
    flags = EvaluateFlags(
        kind="tokenizer", model=str(tiny_tokenizer), data=photographs, held_out=1.0,
        image_size=SIDE, out=tmp_path / "m.json", device="cpu",
    )  # fmt: skip
    measured = evaluate_tokenizer(flags, RandomFeatures())
    values = measured.values()
    tokenizer = load_tokenizer(tiny_tokenizer)
    with torch.no_grad():
        codes = tokenizer.encode(pixels)
        rebuilt = tokenizer.decode(codes)
    assert values["ssim"] == pytest.approx(float(ssim(rebuilt, pixels).mean()), rel=1e-4)
    energies = gradient_energy(rebuilt).sum() / gradient_energy(pixels).sum()
    assert values["gradient_energy"] == pytest.approx(float(energies), rel=1e-4)
    network = PooledFeatures()

    def statistics(shown: torch.Tensor) -> dict[str, np.ndarray]:
        images = torch.from_numpy(to_image(shown).transpose(0, 3, 1, 2).copy())
        return fid_features_to_statistics(network(images).detach().double())

    distance = fid_statistics_to_metric(statistics(rebuilt), statistics(pixels), False)
    assert values["rfid"] == pytest.approx(distance["frechet_inception_distance"], rel=1e-3)
    shares = np.bincount(codes.flatten().numpy()) / codes.numel()
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert values["entropy"] == pytest.approx(entropy)
    assert values["perplexity"] == pytest.approx(2**entropy)
    assert values["codes_used"] + values["dead_codes"] == values["codebook_size"]
    by_name = {metric.name: metric for metric in measured.metrics}
    low, high = by_name["psnr"].interval
    assert low < values["psnr"] < high
    assert (by_name["psnr"].unit, by_name["psnr"].count) == ("dB", 10)


def test_without_weights_lpips_and_rfid_are_absent(
    tiny_tokenizer, photographs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out = tmp_path / "m.json"
    words = ["tokenizer", tiny_tokenizer, "--data", photographs, "--out", out, "--held-out", 1]
    assert evaluate.main([*map(str, words), "--image-size", "16", "--most", "2"]) == 0
    found = json.loads(out.read_text())
    reasons = {line["name"]: line["reason"] for line in found["absent"]}
    assert set(reasons) == {"lpips", "rfid", "ms_ssim"}
    assert "vgg16-397923af.pth, which the project torchvision publishes" in reasons["lpips"]
    assert "weights-inception-2015-12-05-6726825d.pth" in reasons["rfid"]
    assert "176 pixels a side" in reasons["ms_ssim"]
    assert {line["name"] for line in found["values"]} >= {"psnr", "ssim", "perplexity"}
    assert "without lpips: it needs vgg16" in capsys.readouterr().out


def test_ms_ssim_is_that_of_torchmetrics():
    originals = torch.rand(2, 3, 176, 180, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rebuilt = originals * 0.8
    metrics, measured = PixelMetrics(), Measurements(seed=0)
    for part in zip(originals.split(1), rebuilt.split(1), strict=True):
        metrics.update(*part)
    metrics.add_to(measured)
    expected = multiscale_structural_similarity_index_measure(rebuilt, originals, data_range=2.0)
    assert measured.values()["ms_ssim"] == pytest.approx(float(expected), rel=1e-5)
    assert measured.values()["absolute_gradient"] == pytest.approx(0.8, rel=1e-5)
    assert measured.values()["gradient_energy"] == pytest.approx(0.64, rel=1e-5)


class MeanError(nn.Module):
    """A distance (a, b) -> scalar, the mean over images, as the perceptual one is."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean()


def test_lpips_is_measured_image_by_image(pixels):
    metric, measured = LPIPSMetric(MeanError(), torch.device("cpu")), Measurements(seed=0)
    for first in (0, 2):
        metric.update(pixels[first : first + 2], pixels[first + 4 : first + 6])
    metric.add_to(measured)
    errors = (pixels[:4] - pixels[4:8]).abs().flatten(1).mean(1)
    (found,) = measured.metrics
    assert found.value == pytest.approx(float(errors.mean()), rel=1e-5)
    assert found.count == 4
    assert found.interval is not None
    assert float(errors.min()) <= found.interval[0] < found.interval[1] <= float(errors.max())
