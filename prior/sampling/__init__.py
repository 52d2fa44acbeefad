"""?"""

from prior.sampling.decoder import Decoder
from prior.sampling.distributions import Draw, SamplingSettings
from prior.sampling.inference_copy import inference_copy
from prior.sampling.local import sample_locally
from prior.sampling.options import DEFAULT_CACHE_MEMORY, LARGEST_DEFAULT_BATCH, GenerationConfig
from prior.sampling.rejection import Rejection, candidate_number
from prior.sampling.sliding_window import sample_codes
from prior.sampling.snail_decoder import SnailDecoder

__all__ = [
    "DEFAULT_CACHE_MEMORY",
    "Decoder",
    "Draw",
    "GenerationConfig",
    "LARGEST_DEFAULT_BATCH",
    "Rejection",
    "SamplingSettings",
    "SnailDecoder",
    "candidate_number",
    "inference_copy",
    "sample_codes",
    "sample_locally",
]
