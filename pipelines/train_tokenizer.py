#!/usr/bin/env python3
"""Train a VQGAN: python -m pipelines.train_tokenizer RECIPE --data --out.

On images, label maps or depth maps. Run again, it resumes from the newest checkpoint.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import TrainTokenizerFlags


def main(argv: list[str] | None = None) -> int:
    lists = {"--list-recipes": list_recipes, "--list-presets": list_presets}
    return run_command(TrainTokenizerFlags, run, argv, "pipelines.train_tokenizer", lists=lists)


def list_recipes() -> list[str]:
    from pipelines.recipes import TOKENIZER_RECIPES
    from pipelines.training import tokenizer_recipe_lines

    return tokenizer_recipe_lines(TOKENIZER_RECIPES)


def list_presets() -> list[str]:
    from pipelines.training import tokenizer_preset_lines

    return tokenizer_preset_lines()


def run(flags: TrainTokenizerFlags) -> int:
    from pipelines.recipes import TOKENIZER_RECIPES
    from pipelines.training import train_tokenizer

    show(*train_tokenizer(flags, TOKENIZER_RECIPES).split("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
