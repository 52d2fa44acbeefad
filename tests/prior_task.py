"""A prior's train task as tests make it: nothing held out, decoded by the tokenizer `tiny`."""

from __future__ import annotations

import torch

from pipelines.training.parallel import SINGLE_PROCESS, ParallelConfig
from pipelines.training.prior_task import PriorTask
from pipelines.training.recipe import PriorRecipe
from prior import Conditions, PriorModel
from tokenizer import build_tokenizer


def make_prior_task(
    model: PriorModel,
    conditions: Conditions,
    recipe: PriorRecipe,
    parallel_config: ParallelConfig = SINGLE_PROCESS,
    *,
    steps: int = 10,
    device: str | torch.device = "cpu",
) -> PriorTask:
    return PriorTask(
        model,
        conditions,
        build_tokenizer("tiny", seed=0),
        {"fingerprint": "0" * 16},
        recipe,
        steps=steps,
        seed=0,
        held_out=[],
        device=torch.device(device),
        parallel_config=parallel_config,
    )
