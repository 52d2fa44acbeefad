"""The study of PixelSNAIL, the convolutional prior that the paper compares its own with."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ops.files import write_json
from pipelines.recipes import PRIOR_RECIPES
from pipelines.studies.context import IMAGE_SIZE, TOKENIZER, StudyContext, prior_batch
from pipelines.studies.samples import sample_rows, sampling_speed
from pipelines.studies.study import Column, ImageRow, Study
from pipelines.training import make_optimizer, take_step
from prior import load_prior, make_model, preset_config

RECIPES = {"transformer": "study", "snail": "study-snail", "snail-equal-time": "study-snail"}
CODES = 512
TIMES = "cpu_seconds_a_step.json"  # in the study's folder: seconds by recipe
TIMED_STEPS, SKIPPED_STEPS = 12, 3


class Snail(Study):
    """Two networks of equal size, trained for equal steps and for equal processor time."""

    title = "The transformer against PixelSNAIL"
    paper = (
        "The paper (Esser et al. 2021, section 4.1) trains both on the same codes. After equal "
        "steps the transformer has fewer nats a code on every data set: 4.78 to 4.96 on restricted "
        "ImageNet, 4.63 to 4.89 on LSUN churches and towers, 4.78 to 4.96 on ImageNet, 4.70 to "
        "4.88 on it from depth, 4.49 to 4.64 on S-FLCKR. Its PixelSNAIL does about two steps in "
        "the time of one of the transformer's; after equal time the transformer is still ahead. "
        "Here both have equally many weights within 3 %, windows of 16x16 codes, and the same "
        "batches for each seed. snail-equal-time has as many steps as fit into the processor time "
        "of the transformer's, by the time that a step of each takes on the same thread."
    )
    variants = tuple(RECIPES)
    columns = (
        Column("nats_per_code", "nats a code, held out", 3),
        Column("steps", "steps", 0, plotted=False),
        Column("cpu_seconds", "processor seconds of training", 0),
        Column("millions_of_weights", "million weights", 2, plotted=False),
        Column("codes_per_second", "codes sampled a processor second", 0),
    )

    def settings(self, context: StudyContext) -> dict[str, Any]:
        return {
            "tokenizer": TOKENIZER,
            "image_size": IMAGE_SIZE,
            "priors": RECIPES,
            "steps": context.capped(PRIOR_RECIPES["study"].steps),
            "batch": prior_batch("study"),
        }

    def prepare(self, context: StudyContext) -> None:
        context.study_codes()
        path = context.out / TIMES
        if not path.is_file():
            write_json(path, seconds_a_step(sorted(set(RECIPES.values()))))

    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        codes, recipe = context.out / "codes.zarr", RECIPES[variant]
        seconds = json.loads((context.out / TIMES).read_text())
        steps = context.capped(PRIOR_RECIPES["study"].steps)
        if variant == "snail-equal-time":
            steps = max(1, round(steps * seconds["study"] / seconds[recipe]))
        trained = context.prior(recipe, codes, variant, seed, steps=steps)
        prior = load_prior(trained)
        return {
            "nats_per_code": context.nll(trained, codes),
            "steps": float(steps),
            "cpu_seconds": steps * seconds[recipe],
            "millions_of_weights": sum(p.numel() for p in prior.model.parameters()) / 1e6,
            "codes_per_second": sampling_speed(prior, prior.config.window),
        }

    def images(self, context: StudyContext, seed: int) -> list[ImageRow]:
        """Samples of the size of the window."""
        return sample_rows(context, self.variants, seed)


def seconds_a_step(recipes: list[str]) -> dict[str, float]:
    """Median processor seconds of a training step, by recipe.

    Steps of the recipes alternate, so that other load on the machine affects all alike.
    """
    durations: dict[str, list[float]] = {name: [] for name in recipes}
    steps = {name: _step_of(name) for name in recipes}
    for _ in range(SKIPPED_STEPS + TIMED_STEPS):
        for name, step in steps.items():
            started = time.process_time()
            step()
            durations[name].append(time.process_time() - started)
    return {name: statistics.median(seconds[SKIPPED_STEPS:]) for name, seconds in durations.items()}


def _step_of(name: str) -> Callable[[], None]:
    """A function that takes one training step of a recipe on random codes."""
    recipe = PRIOR_RECIPES[name]
    sizes = {"condition_vocab_size": 1, "condition_length": 1, "window": recipe.window}
    model = make_model(preset_config(recipe.preset, codebook_size=CODES, **sizes))
    optimizer = make_optimizer(model, recipe.optimizer)
    codes = torch.randint(CODES, (recipe.batch_size, recipe.window, recipe.window))
    tokens = torch.full((recipe.batch_size, 1), CODES)

    def step() -> None:
        take_step(optimizer, iter([model.nll(tokens, codes).mean()]), 1e-3, 1.0)

    return step
