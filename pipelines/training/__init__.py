"""Training of tokenizers and priors, and import of published ones.

The commands' flags (flags.py) and a recipe (recipe.py) become a run (tokenizer_run.py,
prior_run.py): data, a model, and a train task with its optimizers, weight averages and evaluation
(tokenizer_task.py, prior_task.py). The loop (loop.py, read it first) gives the task a batch each
step, of crops of listed images (image_dataset.py), of streamed ones (streamed_crops.py) or of codes
(pipelines.streaming), and writes checkpoints, metrics and images to the run folder. launch.py runs
the loop in this process or on workers under Ray, restarting them from the newest checkpoint.
published.py converts published checkpoints to model folders.
"""

from pipelines.training.image_dataset import PHOTOGRAPHS
from pipelines.training.optimizer import OptimizerConfig, make_optimizer, take_step
from pipelines.training.plots import draw_usage
from pipelines.training.prior_run import train_prior
from pipelines.training.prior_task import held_out_cut, held_out_nll
from pipelines.training.published import import_prior, import_tokenizer
from pipelines.training.recipe import PriorRecipe, TokenizerRecipe
from pipelines.training.recipe_tables import (
    prior_preset_lines,
    prior_recipe_lines,
    tokenizer_preset_lines,
    tokenizer_recipe_lines,
)
from pipelines.training.run_record import pin_settings
from pipelines.training.tokenizer_data import evaluation_samples, list_data
from pipelines.training.tokenizer_run import train_tokenizer
from pipelines.training.tokenizer_task import reconstruction_images, reconstruction_metrics

__all__ = [
    "OptimizerConfig",
    "PHOTOGRAPHS",
    "PriorRecipe",
    "TokenizerRecipe",
    "draw_usage",
    "evaluation_samples",
    "held_out_cut",
    "held_out_nll",
    "import_prior",
    "import_tokenizer",
    "list_data",
    "make_optimizer",
    "pin_settings",
    "prior_preset_lines",
    "prior_recipe_lines",
    "reconstruction_images",
    "reconstruction_metrics",
    "take_step",
    "tokenizer_preset_lines",
    "tokenizer_recipe_lines",
    "train_prior",
    "train_tokenizer",
]
