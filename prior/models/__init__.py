"""The networks of a prior: condition tokens and codes in, logits over the next code out.

There are three architectures, listed in registry.py with their configs: GPT, the transformer of
Esser et al. (2021) over a window; LocalGPT, neighbourhood attention over a canvas of any size; and
PixelSNAIL, the convolutional baseline. All have code_logits(condition_tokens, codes) and
nll(condition_tokens, codes) for training, and are sampled from by prior.sampling. Read gpt.py
first.
"""

from prior.models.attention import Block
from prior.models.code_levels import LevelHead, code_terms, join_levels
from prior.models.gpt import GPT, GPTConfig, cross_entropy
from prior.models.init_from_codebook import init_from_codebook
from prior.models.local_gpt import LocalConfig, LocalGPT
from prior.models.neighbourhood import Layout, neighbour_offsets
from prior.models.pixelsnail import PixelSNAIL, SnailConfig
from prior.models.registry import (
    ARCHITECTURES,
    PriorConfig,
    PriorModel,
    architecture_name,
    check_conditions,
    condition_sizes,
    make_model,
    preset_config,
)
from prior.models.rotary import Rotation

__all__ = [
    "ARCHITECTURES",
    "Block",
    "GPT",
    "GPTConfig",
    "Layout",
    "LevelHead",
    "LocalConfig",
    "LocalGPT",
    "PixelSNAIL",
    "PriorConfig",
    "PriorModel",
    "Rotation",
    "SnailConfig",
    "architecture_name",
    "check_conditions",
    "code_terms",
    "condition_sizes",
    "cross_entropy",
    "init_from_codebook",
    "join_levels",
    "make_model",
    "neighbour_offsets",
    "preset_config",
]
