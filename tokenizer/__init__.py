"""Pixels to codes and back: build, load, save and use a VQGAN."""

from tokenizer.model_folder import (
    build_tokenizer,
    bundled_tokenizers,
    load_tokenizer,
    save_tokenizer,
)
from tokenizer.vqgan import PRESETS, VQGAN, VQGANConfig

__all__ = [
    "PRESETS",
    "VQGAN",
    "VQGANConfig",
    "build_tokenizer",
    "bundled_tokenizers",
    "load_tokenizer",
    "save_tokenizer",
]
