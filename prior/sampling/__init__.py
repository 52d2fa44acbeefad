"""Sampling: a model and condition tokens in, grids of codes and their log-probabilities out.

GPTs and PixelSNAILs are sampled through a sliding window (sliding_window.py) that reads codes
incrementally by a decoder (decoder.py, snail_decoder.py) with KV caches; a LocalGPT is sampled on
the whole canvas (local.py). static_decode.py does the same in steps of fixed shape that a GPU
replays, StaticWindowSampler and StaticLocalSampler. Each code is drawn from the logits by
distributions.py with a uniform number keyed by seed, sample and cell. GenerationConfig holds all
settings of one call. Read sliding_window.py first.
"""

from prior.sampling.decoder import Decoder
from prior.sampling.distributions import SampledCodes, SamplingSettings
from prior.sampling.generation_config import (
    DEFAULT_CACHE_MEMORY,
    LARGEST_DEFAULT_BATCH,
    GenerationConfig,
)
from prior.sampling.inference_copy import InferenceCopies, inference_copy
from prior.sampling.kept_sampler import KeptSampler
from prior.sampling.local import sample_locally
from prior.sampling.memory_plan import MemoryPlan, plan_memory
from prior.sampling.sliding_window import sample_codes
from prior.sampling.snail_decoder import SnailDecoder
from prior.sampling.static_decode import decodes_statically
from prior.sampling.static_local import StaticLocalSampler
from prior.sampling.static_windows import StaticWindowSampler

__all__ = [
    "DEFAULT_CACHE_MEMORY",
    "Decoder",
    "GenerationConfig",
    "InferenceCopies",
    "KeptSampler",
    "LARGEST_DEFAULT_BATCH",
    "MemoryPlan",
    "SampledCodes",
    "SamplingSettings",
    "SnailDecoder",
    "StaticLocalSampler",
    "StaticWindowSampler",
    "decodes_statically",
    "inference_copy",
    "plan_memory",
    "sample_codes",
    "sample_locally",
]
