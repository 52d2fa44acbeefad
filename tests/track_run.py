"""Small tokenizers and inputs of further tracks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ops.images import MAGIC_LENGTH, decode_image, looks_like_image
from tokenizer import build_tokenizer, save_tokenizer
from tokenizer.modalities import ModalityConfig

CLASSES = 6


def make_tokenizer(folder: Path, kind: str) -> Path:
    """A model folder of a small untrained tokenizer of label maps or depth maps."""
    modality = ModalityConfig(kind=kind, num_classes=CLASSES if kind == "segmentation" else 0)
    save_tokenizer(folder, build_tokenizer("tiny", 1, modality))
    return folder


def label_map(image: np.ndarray) -> np.ndarray:
    """A label for each pixel, uint8 (H, W), made of an image (H, W, 3)."""
    return (image.astype(int).sum(2) * CLASSES // (3 * 256)).astype(np.uint8)


def write_labels(images: Path, folder: Path) -> Path:
    """Write the label map of every image in a folder, upright, as PNG under its name."""
    for path in images.rglob("*.*"):
        if not looks_like_image(path.read_bytes()[:MAGIC_LENGTH]):
            continue
        target = (folder / path.relative_to(images)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_map(decode_image(path.read_bytes()))).save(target)
    return folder
