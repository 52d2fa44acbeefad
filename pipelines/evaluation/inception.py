"""Features of Inception v3 (torch-fidelity's, of 2015-12-05), by either resize protocol."""

from __future__ import annotations

import importlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ops.config import UserError
from ops.published import load_published
from pipelines.evaluation.published_weights import INCEPTION, UnavailableError
from pipelines.flags import Resize

SIDE = 299  # pixels, of the images that the network reads


class Features(NamedTuple):
    """What a network gives for n images."""

    pooled: Tensor  # (n, D), for FID, KID, precision and recall
    logits: Tensor  # (n, classes), for the Inception Score


class FeatureNetwork(Protocol):
    """What turns images into features; `name` says which network and which resize protocol."""

    name: str

    def __call__(self, images: Tensor, /) -> Features:
        """Features of images, uint8 (n, 3, H, W)."""
        ...


def fidelity(module: str) -> Any:
    """A module of torch-fidelity; raises UnavailableError where it is not installed."""
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise UnavailableError(
            f"it needs the library torch-fidelity, which cannot be imported ({error}): install it "
            "with pip install 'smalti[evaluate]'"
        ) from None


def resized(images: Tensor, protocol: Resize) -> Tensor:
    """Images, uint8 (n, 3, H, W), as float32 (n, 3, 299, 299) from 0 to 255.

    `adm` is the bilinear resizing inside the graph that the evaluator of ADM and torch-fidelity
    run; it drops pixels of images larger than 299. `clean` is clean-fid's: Pillow's antialiased
    bicubic of each channel in float32, clipped and not rounded.
    """
    if protocol == "adm":
        resize = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
        scaled: Tensor = resize(images.float(), size=(SIDE, SIDE), align_corners=False)
        return scaled
    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    found = [
        np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for plane in planes
    ]
    clipped = torch.from_numpy(np.stack(found)).clamp_(0, 255)
    return clipped.reshape(len(images), 3, SIDE, SIDE).to(images.device)


class InceptionFeatures(nn.Module):
    """The pooled features (n, 2048) and logits without bias (n, 1008) that the field's metrics are
    defined on.

    `network` is torch-fidelity's FeatureExtractorInceptionV3. Its layers are called one after the
    other, since its own `forward` takes whole numbers only and resizes by the protocol `adm`.
    """

    def __init__(self, network: nn.Module, resize: Resize) -> None:
        super().__init__()
        self.name = f"{INCEPTION.file}, {resize}"
        self.resize: Resize = resize
        layers = OrderedDict(network.named_children())
        self.classifier = layers.pop("fc")
        self.layers = nn.Sequential(layers)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Features:
        scaled = (resized(images, self.resize) - 128) / 128
        pooled = self.layers(scaled).flatten(1)
        return Features(pooled, pooled @ self.classifier.weight.T)


def load_inception(path: Path, resize: Resize) -> InceptionFeatures:
    """The network with the weights in a file; nothing in the file is unpickled but tensors."""
    extractor = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    # The extractor unpickles whatever its file has, so it gets one that is written here.
    plain = io.BytesIO()
    torch.save(load_published(path), plain)
    plain.seek(0)
    try:
        network = extractor("inception", ["2048"], feature_extractor_weights_path=plain)
    except RuntimeError as error:
        raise UserError(f"{path} has other layers than {INCEPTION.file}: {error}") from None
    return InceptionFeatures(network, resize)


def find_inception(given: Path | None, resize: Resize) -> InceptionFeatures:
    """The network with the weights given or found; raises UnavailableError without any."""
    fidelity("version")
    return load_inception(INCEPTION.find(given), resize)
