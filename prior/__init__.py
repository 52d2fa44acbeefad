"""Codes and conditions in, codes out. Never sees pixels."""

from prior.conditions import (
    CONDITIONS,
    Boxes,
    ClassLabel,
    Conditions,
    Coordinates,
    Depth,
    Inpaint,
    Keypoints,
    LowResolution,
    Segmentation,
    StartOfSequence,
)
from prior.models.gpt import GPT
from prior.models.gpt_config import PRESETS, GPTConfig
from prior.models.init_from_codebook import init_from_codebook
from prior.models.local_gpt import LocalConfig, LocalGPT
from prior.models.pixelsnail import PixelSNAIL
from prior.models.registry import (
    PriorConfig,
    PriorModel,
    condition_sizes,
    make_model,
    preset_config,
)
from prior.models.snail_config import SnailConfig
from prior.objective import LossSettings, Objective, perturbed, training_objective
from prior.prior import Prior, load_prior, save_prior
from prior.sampling.distributions import Draw, SamplingSettings
from prior.sampling.options import GenerationConfig

__all__ = [
    "CONDITIONS",
    "PRESETS",
    "Boxes",
    "ClassLabel",
    "Conditions",
    "Coordinates",
    "Depth",
    "Draw",
    "GPT",
    "GPTConfig",
    "Inpaint",
    "Keypoints",
    "LocalConfig",
    "LocalGPT",
    "LossSettings",
    "LowResolution",
    "Objective",
    "GenerationConfig",
    "PixelSNAIL",
    "Prior",
    "PriorConfig",
    "PriorModel",
    "SamplingSettings",
    "Segmentation",
    "SnailConfig",
    "StartOfSequence",
    "condition_sizes",
    "load_prior",
    "make_model",
    "perturbed",
    "preset_config",
    "save_prior",
    "init_from_codebook",
    "training_objective",
]
