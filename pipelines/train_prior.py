#!/usr/bin/env python3
"""Train a prior on code stores: python -m pipelines.train_prior RECIPE --codes STORE --out RUN.

Reads the stores' memory-mapped shards; run again, it resumes from the newest checkpoint.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import TrainPriorFlags


def main(argv: list[str] | None = None) -> int:
    lists = {"--list-recipes": list_recipes, "--list-presets": list_presets}
    return run_command(TrainPriorFlags, run, argv, "pipelines.train_prior", lists=lists)


def list_recipes() -> list[str]:
    from pipelines.recipes import PRIOR_RECIPES
    from pipelines.training import prior_recipe_lines

    return prior_recipe_lines(PRIOR_RECIPES)


def list_presets() -> list[str]:
    from pipelines.training import prior_preset_lines

    return prior_preset_lines()


def run(flags: TrainPriorFlags) -> int:
    from pipelines.recipes import PRIOR_RECIPES
    from pipelines.training import train_prior

    show(*train_prior(flags, PRIOR_RECIPES).split("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
