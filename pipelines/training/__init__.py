"""?"""

from pipelines.training.estimate import prior_lines, tokenizer_lines
from pipelines.training.flags import (
    TrainingFlags,
    division_of,
    lasting_settings,
    loop_settings,
    outcome,
    override_recipe,
    parallel_config_of,
    pin_settings,
    use_threads,
    worker_config_of,
)
from pipelines.training.image_dataset import PHOTOGRAPHS, ImageCrops
from pipelines.training.launch import run_attempts
from pipelines.training.loop import OnStep, Source, train
from pipelines.training.optimizer import OptimizerConfig, make_optimizer, take_step
from pipelines.training.plots import draw_usage
from pipelines.training.prior_task import PriorTask, held_out_cut, held_out_nll
from pipelines.training.recipe import PriorRecipe, TokenizerRecipe
from pipelines.training.run_folder import find_tokenizer, keep_tokenizers, track_tokenizers
from pipelines.training.tokenizer_data import (
    TokenizerData,
    evaluation_samples,
    in_groups,
    list_data,
    with_classes,
)
from pipelines.training.tokenizer_task import (
    TokenizerTask,
    reconstruction_metrics,
    reconstruction_pictures,
)

__all__ = [
    "ImageCrops",
    "OnStep",
    "OptimizerConfig",
    "PHOTOGRAPHS",
    "PriorRecipe",
    "PriorTask",
    "Source",
    "TokenizerData",
    "TokenizerRecipe",
    "TokenizerTask",
    "TrainingFlags",
    "division_of",
    "draw_usage",
    "evaluation_samples",
    "find_tokenizer",
    "held_out_cut",
    "held_out_nll",
    "in_groups",
    "keep_tokenizers",
    "lasting_settings",
    "list_data",
    "loop_settings",
    "make_optimizer",
    "outcome",
    "override_recipe",
    "parallel_config_of",
    "pin_settings",
    "prior_lines",
    "reconstruction_metrics",
    "reconstruction_pictures",
    "run_attempts",
    "take_step",
    "tokenizer_lines",
    "track_tokenizers",
    "train",
    "use_threads",
    "with_classes",
    "worker_config_of",
]
