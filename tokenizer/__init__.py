"""The tokenizer, a VQGAN: pixels (B, C, H, W) in [-1, 1] to codes (B, h, w) and back.

It encodes images, label maps or depth maps (modalities.py); the quantizer is a choice of the config
(quantizers.py), and large images go in tiles (tiling.py). Model folders, bundled weights and
published checkpoints are loaded here, and losses.py has the training objective. Knows nothing of
priors, data files or jobs. Read vqgan.py first, then model_folder.py.
"""

from pathlib import Path

import ops

if Path(str(ops.__file__)).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        f"`import ops` finds {ops.__file__}, not Smalti's package of that name. Install Smalti "
        "into a virtual environment without the other."
    )

from tokenizer.discriminator import DiscriminatorConfig
from tokenizer.importers import FIRST_STAGE, IMPORTERS
from tokenizer.losses import LossConfig, Losses, VQGANObjective
from tokenizer.modalities import Modality, ModalityConfig, make_modality
from tokenizer.model_folder import (
    KIND,
    build_tokenizer,
    bundled_tokenizers,
    load_tokenizer,
    save_tokenizer,
)
from tokenizer.perceptual import make_perceptual_loss
from tokenizer.tiling import decode_strips, decode_tiled, encode_tiled
from tokenizer.vqgan import NO_CODE, NOT_FINITE, PRESETS, VQGAN, NonFiniteLatentsError, VQGANConfig

__all__ = [
    "DiscriminatorConfig",
    "FIRST_STAGE",
    "IMPORTERS",
    "KIND",
    "LossConfig",
    "Losses",
    "Modality",
    "ModalityConfig",
    "NO_CODE",
    "NOT_FINITE",
    "NonFiniteLatentsError",
    "PRESETS",
    "VQGAN",
    "VQGANConfig",
    "VQGANObjective",
    "build_tokenizer",
    "bundled_tokenizers",
    "decode_strips",
    "decode_tiled",
    "encode_tiled",
    "load_tokenizer",
    "make_modality",
    "make_perceptual_loss",
    "save_tokenizer",
]
