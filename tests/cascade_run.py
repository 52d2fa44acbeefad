"""Priors of random weights for tests of cascades: a base of 32 pixels, an upscaler of ratio 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from prior import (
    ClassLabel,
    Conditions,
    LowResolution,
    condition_sizes,
    make_model,
    preset_config,
    save_prior,
)
from prior.conditions import Condition
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

WINDOW, RATIO = 4, 2
SIDE = 32  # pixels of the base's images
CLASSES = ("dress", "hat", "shoes")


def make_prior(
    folder: Path,
    preset: str,
    part: Condition | type[LowResolution],
    recommended: Mapping[str, Any] = MappingProxyType({}),
    model_folder: str = "step-00000007",
) -> Path:
    """A run folder over the codes of the tokenizer `tiny`, or a model folder if that is "."."""
    save_tokenizer(folder / "tokenizer", build_tokenizer("tiny", seed=0))
    tokenizer = load_tokenizer(folder / "tokenizer")
    info = {
        "name": "made-up",
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }
    assert WINDOW * tokenizer.config.downsample_factor == SIDE
    if not isinstance(part, Condition):
        part = LowResolution(
            ratio=RATIO,
            codebook_size=tokenizer.config.codebook_size,
            fingerprint=tokenizer.fingerprint,
        )
    conditions = Conditions([part], tokenizer.config.codebook_size)
    sizes = condition_sizes(preset, conditions, WINDOW)
    torch.manual_seed(0)
    model = make_model(preset_config(preset, **sizes, num_layers=1, num_heads=2, width=16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_prior(folder / model_folder, model, conditions, info, recommended=recommended)
    (folder / model_folder / "train_state.pt").touch()
    return folder


def make_bundled(weights: Path) -> None:
    """The two priors that generate uses by default, in the folder `weights`."""
    classes = ClassLabel(num_classes=3, label_names=CLASSES)
    settings = {"top_p": 0.9, "guidance_scale": 2.0}
    make_prior(weights / "clothing", "tiny", classes, settings, ".")
    make_prior(weights / "photo-upscale4", "tiny-local", LowResolution, {"temperature": 0.7}, ".")
