"""Codes and conditions in, codes out. Never sees pixels."""

from prior.conditions import CONDITIONS, ClassLabel, Conditions, StartOfSequence
from prior.gpt import GPT, start_alike
from prior.gpt_config import PRESETS, GPTConfig
from prior.kv_cache import KVCache
from prior.objective import LossSettings, Objective, perturbed, training_objective
from prior.paint_options import PaintOptions
from prior.painter import Prior, load_prior, save_prior
from prior.sampling import Draw, SamplingSettings

__all__ = [
    "CONDITIONS",
    "PRESETS",
    "ClassLabel",
    "Conditions",
    "Draw",
    "GPT",
    "GPTConfig",
    "KVCache",
    "LossSettings",
    "Objective",
    "PaintOptions",
    "Prior",
    "SamplingSettings",
    "StartOfSequence",
    "load_prior",
    "perturbed",
    "save_prior",
    "start_alike",
    "training_objective",
]
