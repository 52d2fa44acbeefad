"""Codes and conditions in, codes out. Never sees pixels."""

from prior.conditions import CONDITIONS, ClassLabel, Conditions, StartOfSequence
from prior.gpt import GPT, PRESETS, GPTConfig, KVCache, start_alike
from prior.painter import Prior, load_prior, save_prior

__all__ = [
    "CONDITIONS",
    "PRESETS",
    "ClassLabel",
    "Conditions",
    "GPT",
    "GPTConfig",
    "KVCache",
    "Prior",
    "StartOfSequence",
    "load_prior",
    "save_prior",
    "start_alike",
]
