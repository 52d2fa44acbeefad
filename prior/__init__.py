"""Codes and conditions in, codes out. Never sees pixels."""

from pathlib import Path

import ops

if Path(str(ops.__file__)).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        f"`import ops` finds {ops.__file__}, not Smalti's package of that name. Install Smalti "
        "into a virtual environment without the other."
    )

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
from prior.importers import import_compvis_gpt
from prior.models import (
    GPT,
    PRESETS,
    GPTConfig,
    LocalConfig,
    LocalGPT,
    PixelSNAIL,
    PriorConfig,
    PriorModel,
    SnailConfig,
    condition_sizes,
    init_from_codebook,
    make_model,
    preset_config,
)
from prior.objective import LossSettings, Objective, perturbed, training_objective
from prior.orderings import ORDERINGS, ROW_MAJOR
from prior.prior import MODEL_KIND, Prior, load_prior, save_prior
from prior.sampling import Draw, GenerationConfig, SamplingSettings

__all__ = [
    "Boxes",
    "CONDITIONS",
    "ClassLabel",
    "Conditions",
    "Coordinates",
    "Depth",
    "Draw",
    "GPT",
    "GPTConfig",
    "GenerationConfig",
    "Inpaint",
    "Keypoints",
    "LocalConfig",
    "LocalGPT",
    "LossSettings",
    "LowResolution",
    "MODEL_KIND",
    "ORDERINGS",
    "Objective",
    "PRESETS",
    "PixelSNAIL",
    "Prior",
    "PriorConfig",
    "PriorModel",
    "ROW_MAJOR",
    "SamplingSettings",
    "Segmentation",
    "SnailConfig",
    "StartOfSequence",
    "condition_sizes",
    "import_compvis_gpt",
    "init_from_codebook",
    "load_prior",
    "make_model",
    "perturbed",
    "preset_config",
    "save_prior",
    "training_objective",
]
