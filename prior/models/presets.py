"""Named sizes of priors, one table for each architecture.

A preset leaves open what follows from the codes: the codebook's size, the conditions' vocabulary
and length, the window. `prior.models.registry.preset_config` fills these in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Presets = Mapping[str, Mapping[str, Any]]

# The parts of later transformers in place of those of Esser et al. (2021).
MODERN: Mapping[str, Any] = {
    "positions": "rope2d",
    "norm": "rms",
    "mlp": "swiglu",
    "qk_norm": True,
    "bias": False,
    "scaled_residual": True,
}

# A quarter of tiny's weights, for the many small training runs of pipelines/studies.
STUDY = {"num_layers": 4, "num_heads": 4, "width": 128}
TINY = {"num_layers": 4, "num_heads": 4, "width": 256}
SMALL = {"num_layers": 8, "num_heads": 8, "width": 512}
BASE = {"num_layers": 12, "num_heads": 12, "width": 768}
LARGE = {"num_layers": 24, "num_heads": 16, "width": 1024}

GPT_PRESETS: Presets = {
    "study": STUDY,
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    # The published models for ImageNet from depth (drin) and for faces (faceshq).
    "large": LARGE,
    # The published models for FFHQ, and for COCO-Stuff from segmentations.
    "ffhq": {"num_layers": 28, "num_heads": 16, "width": 1024},
    "coco-stuff": {"num_layers": 32, "num_heads": 16, "width": 1280},
    # The published class-conditional ImageNet model (cin).
    "huge": {"num_layers": 48, "num_heads": 16, "width": 1536},
    "study-modern": {**STUDY, **MODERN},
    "tiny-modern": {**TINY, **MODERN},
    "base-modern": {**BASE, **MODERN},
    "large-modern": {**LARGE, **MODERN},
}

# The sizes of the GPT presets of the same names.
LOCAL_PRESETS: Presets = {
    "study-local": {**STUDY, "radius": 6},
    "tiny-local": {**TINY, "radius": 6},
    "small-local": {**SMALL, "radius": 8},
    "base-local": {**BASE, "radius": 8},
    "large-local": {**LARGE, "radius": 8},
}


def _snail(transformer: Mapping[str, int]) -> Mapping[str, int]:
    """Sizes with about as many weights as a transformer's: one block for two of its layers."""
    return {
        "num_blocks": transformer["num_layers"] // 2,
        "num_heads": transformer["num_heads"],
        "width": transformer["width"],
        "hidden": transformer["width"] // 4,
    }


SNAIL_PRESETS: Presets = {
    "study-snail": _snail(STUDY),
    "tiny-snail": _snail(TINY),
    "small-snail": _snail(SMALL),
}
