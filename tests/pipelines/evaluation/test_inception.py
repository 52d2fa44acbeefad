"""Inception's features are torch-fidelity's; both resize protocols are those they are named for."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ops.config import UserError
from pipelines.evaluation.inception import InceptionFeatures, resized
from pipelines.evaluation.published_weights import INCEPTION, UnavailableError


class Untrained(FeatureExtractorInceptionV3):
    """torch-fidelity's network with seeded random weights."""

    def __init__(self) -> None:
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = ["2048", "logits_unbiased"]
            super().__init__("untrained", layers, feature_extractor_weights_path=empty)

    def load_state_dict(self, *_: object, **__: object) -> None:
        """Keep the random weights."""


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=random)


def test_features_are_those_of_torch_fidelity(images):
    network = Untrained()
    with torch.no_grad():
        expected = network(images)
        found = InceptionFeatures(network, "adm")(images)
    assert expected[0].std() > 0
    torch.testing.assert_close(found.pooled, expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.logits, expected[1], rtol=1e-5, atol=1e-8)


def test_clean_is_antialiased_bicubic_of_each_channel_in_floats():
    image = np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    channels = [
        np.asarray(
            Image.fromarray(image[..., channel].astype(np.float32), "F").resize(
                (299, 299), Image.Resampling.BICUBIC
            )
        ).clip(0, 255)
        for channel in range(3)
    ]
    found = resized(batch, "clean")
    np.testing.assert_array_equal(found[0].numpy(), np.stack(channels))
    assert not torch.equal(found, found.round())


def test_the_protocols_differ_on_images_that_are_scaled_down():
    stripes = torch.zeros(1, 3, 598, 598, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert resized(stripes, "adm").unique().tolist() == [255]  # every second column is dropped
    grey = resized(stripes, "clean")[..., 5:-5]
    assert 120 < grey.min() <= grey.max() < 135


def test_only_the_published_file_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"6726825d\.pth.*torch-fidelity.*--inception"):
        INCEPTION.find(None)
    with pytest.raises(UserError, match=r"--inception .*missing is not a file"):
        INCEPTION.find(tmp_path / "missing")
    cached = tmp_path / "hub" / "checkpoints" / INCEPTION.file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"other weights")
    for given in (None, cached):
        with pytest.raises(UserError, match=r"its SHA-256 starts with .*, not 6726825d"):
            INCEPTION.find(given)
