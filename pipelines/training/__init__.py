"""Training of tokenizers and priors.

A recipe (recipe.py) and the commands' flags (flags.py) become a train task: a model with its
optimizers, weight averages and evaluation (tokenizer_task.py, prior_task.py). The loop (loop.py,
read it first) gives the task a batch each step, of image crops (image_dataset.py) or of codes
(pipelines.streaming), and writes checkpoints, metrics and pictures to the run folder. launch.py
runs the loop in this process or on workers under Ray, restarting them from the newest checkpoint.
"""

from pipelines.training.command import run_training, set_up_process
from pipelines.training.estimate import describe_prior, describe_tokenizer
from pipelines.training.flags import (
    TrainingFlags,
    division_of,
    loop_settings,
    override_recipe,
)
from pipelines.training.image_dataset import PHOTOGRAPHS, ImageCrops, load_batches
from pipelines.training.loop import OnStep, Source, train
from pipelines.training.optimizer import OptimizerConfig, make_optimizer, take_step
from pipelines.training.plots import draw_usage
from pipelines.training.prior_task import PriorTask, held_out_cut, held_out_nll
from pipelines.training.recipe import PriorRecipe, TokenizerRecipe
from pipelines.training.run_folder import find_tokenizer, keep_tokenizers, track_tokenizers
from pipelines.training.run_record import pin_settings, run_settings
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
    "describe_prior",
    "describe_tokenizer",
    "division_of",
    "draw_usage",
    "evaluation_samples",
    "find_tokenizer",
    "held_out_cut",
    "held_out_nll",
    "in_groups",
    "keep_tokenizers",
    "list_data",
    "load_batches",
    "loop_settings",
    "make_optimizer",
    "override_recipe",
    "pin_settings",
    "reconstruction_metrics",
    "reconstruction_pictures",
    "run_settings",
    "run_training",
    "set_up_process",
    "take_step",
    "track_tokenizers",
    "train",
    "with_classes",
]
