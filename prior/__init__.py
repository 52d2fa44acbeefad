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
from prior.gpt import GPT
from prior.gpt_config import PRESETS, GPTConfig
from prior.local_attention import LocalConfig, LocalGPT
from prior.models import PriorConfig, PriorModel, condition_sizes, make_model, preset_config
from prior.objective import LossSettings, Objective, perturbed, training_objective
from prior.paint_options import PaintOptions
from prior.painter import Prior, load_prior, save_prior
from prior.pixelsnail import PixelSNAIL
from prior.sampling import Draw, SamplingSettings
from prior.snail_config import SnailConfig
from prior.start_alike import start_alike

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
    "PaintOptions",
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
    "start_alike",
    "training_objective",
]
