"""LPIPS (Zhang et al. 2018): distance between images in the features of a trained VGG16.

The `lpips` package includes the distance's own small weights. The backbone is torchvision's VGG16,
downloaded on first use; without it training stops and never continues with random features.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ops.config import UserError


class PerceptualError(UserError):
    """The perceptual loss or its backbone is not available."""


def make_perceptual_loss(name: str) -> nn.Module | None:
    """The module (a, b) -> scalar for pixels (B, 3, H, W) in [-1, 1], or None for "none".

    `name` is "lpips" (the backbone from torch's cache, or downloaded), "none", "random-backbone"
    (an untrained VGG16, for tests), or the path of torchvision's VGG16 file.
    Raises PerceptualError if the backbone is not available or has a wrong hash.
    """
    if name == "none":
        return None
    if name == "random-backbone":
        return LPIPS(None)
    path = _cached_backbone() if name == "lpips" else Path(name)
    if not path.is_file():
        raise PerceptualError(
            f"--perceptual {name!r} is neither lpips, none, random-backbone nor a file. Give the "
            f"path of torchvision's {_backbone_name()}, or --perceptual none."
        )
    return LPIPS(_load_backbone(path))


def _backbone_url() -> str:
    # torchvision and lpips are imported where they are used: together they take seconds.
    from torchvision.models import VGG16_Weights

    url: str = VGG16_Weights.IMAGENET1K_V1.url
    return url


def _backbone_name() -> str:
    return Path(_backbone_url()).name


def _cached_backbone() -> Path:
    """The path of the backbone in torch's cache, downloaded if missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _backbone_name()
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_backbone_url(), str(path), _expected_hash(), progress=True)
    except (URLError, OSError, RuntimeError) as error:
        raise PerceptualError(
            f"LPIPS needs torchvision's {path.name}, which could not be downloaded ({error}). Put "
            f"the file into {path.parent} (under TORCH_HOME), or give its path with --perceptual "
            "PATH, or train without: --perceptual none."
        ) from None
    return path


def _expected_hash() -> str:
    """The first eight hex digits of the file's SHA-256, which end its name in torchvision."""
    return _backbone_name().removesuffix(".pth").rpartition("-")[2]


def _load_backbone(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(_expected_hash()):
        raise PerceptualError(
            f"{path} is not torchvision's {_backbone_name()}: its SHA-256 starts with {found[:8]}, "
            f"not {_expected_hash()}. Remove it to have it downloaded again."
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


class LPIPS(nn.Module):
    """LPIPS with VGG16: (a, b) pixels (B, 3, H, W) in [-1, 1] -> scalar, the mean over images.

    Always in eval mode: in training mode the package's dropout would make the distance random.
    """

    def __init__(self, backbone: dict[str, Tensor] | None) -> None:
        import lpips

        super().__init__()
        with warnings.catch_warnings():  # lpips uses deprecated arguments of torchvision
            warnings.simplefilter("ignore")
            self.distance = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        if backbone is not None:
            self._set_backbone(backbone)
        self.requires_grad_(False)
        self.train(False)

    def _set_backbone(self, backbone: dict[str, Tensor]) -> None:
        """Load the weights; lpips splits torchvision's `features` but keeps the layers' numbers."""
        wanted = self.distance.net.state_dict()
        renamed = {name: backbone["features." + name.partition(".")[2]] for name in wanted}
        self.distance.net.load_state_dict(renamed)

    def train(self, mode: bool = True) -> LPIPS:
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):  # it does not work in bfloat16
            distance: Tensor = self.distance(a.float(), b.float()).mean()
        return distance
