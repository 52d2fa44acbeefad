"""Priors: autoregressive models of code grids. Codes and conditions in, codes out; never pixels.

load_prior reads a trained prior from a model or run folder, and its sample(rows, columns, ...)
returns int64 codes for the tokenizer to decode. Trainers build a model with preset_config and
make_model, turn condition inputs into tokens with Conditions, minimize training_objective and write
the result with save_prior. The parts are conditions/ (inputs to tokens), models/ (tokens to logits)
and sampling/ (logits to codes). Read prior.py first.
"""

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
from prior.model_folder import (
    MODEL_KIND,
    PriorDescription,
    bundled_priors,
    describe_prior,
    find_prior,
    load_prior,
    save_prior,
)
from prior.models import (
    GPT,
    GPTConfig,
    LocalConfig,
    LocalGPT,
    PixelSNAIL,
    PriorConfig,
    PriorModel,
    condition_sizes,
    init_from_codebook,
    make_model,
    preset_config,
)
from prior.objective import LossSettings, Objective, perturbed, training_objective
from prior.orderings import ORDERINGS, ROW_MAJOR
from prior.prior import Prior

__all__ = [
    "Boxes",
    "CONDITIONS",
    "ClassLabel",
    "Conditions",
    "Coordinates",
    "Depth",
    "GPT",
    "GPTConfig",
    "Inpaint",
    "Keypoints",
    "LocalConfig",
    "LocalGPT",
    "LossSettings",
    "LowResolution",
    "MODEL_KIND",
    "ORDERINGS",
    "Objective",
    "PixelSNAIL",
    "Prior",
    "PriorConfig",
    "PriorDescription",
    "PriorModel",
    "ROW_MAJOR",
    "Segmentation",
    "StartOfSequence",
    "bundled_priors",
    "condition_sizes",
    "describe_prior",
    "find_prior",
    "import_compvis_gpt",
    "init_from_codebook",
    "load_prior",
    "make_model",
    "perturbed",
    "preset_config",
    "save_prior",
    "training_objective",
]
