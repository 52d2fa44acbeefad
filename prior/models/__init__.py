"""?"""

from prior.models.gpt import GPT, cross_entropy
from prior.models.gpt_config import PRESETS, GPTConfig
from prior.models.init_from_codebook import init_from_codebook
from prior.models.local_gpt import LocalConfig, LocalGPT
from prior.models.neighbourhood import Layout, offsets_seen
from prior.models.pixelsnail import PixelSNAIL
from prior.models.registry import (
    ARCHITECTURES,
    PriorConfig,
    PriorModel,
    architecture_name,
    condition_sizes,
    make_model,
    preset_config,
)
from prior.models.snail_config import SnailConfig

__all__ = [
    "ARCHITECTURES",
    "GPT",
    "GPTConfig",
    "Layout",
    "LocalConfig",
    "LocalGPT",
    "PRESETS",
    "PixelSNAIL",
    "PriorConfig",
    "PriorModel",
    "SnailConfig",
    "architecture_name",
    "condition_sizes",
    "cross_entropy",
    "init_from_codebook",
    "make_model",
    "offsets_seen",
    "preset_config",
]
