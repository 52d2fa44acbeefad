"""The tables of --list-recipes and --list-presets: what a training run would be, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ops.meta_device import on_meta_device
from pipelines.training.recipe import PriorRecipe, TokenizerRecipe
from prior import Conditions, StartOfSequence, condition_sizes, make_model, preset_config
from prior.models import ARCHITECTURES
from tokenizer import PRESETS, VQGAN

#: Priors are sized for the bundled tokenizer, and no condition.
TOKENIZER = "photo-f8"


def tokenizer_recipe_lines(recipes: Mapping[str, TokenizerRecipe]) -> list[str]:
    """A line for each recipe: its network, what it trains on, and how long."""
    rows = [("RECIPE", "PRESET", "TRAINS ON", "PARAMETERS", "CROP", "BATCH", "STEPS")]
    for name, recipe in recipes.items():
        rows.append(
            (
                name,
                recipe.preset,
                recipe.modality.kind,
                _millions(_tokenizer(recipe.preset)),
                f"{recipe.crop_size}x{recipe.crop_size}",
                str(recipe.batch_size),
                f"{recipe.steps:,}",
            )
        )
    return [*_aligned(rows), "the discriminator's parameters are not counted"]


def tokenizer_preset_lines() -> list[str]:
    """A line for each network of a tokenizer."""
    rows = [("PRESET", "DOWNSAMPLING", "QUANTIZER", "CODES", "DIMENSIONS", "PARAMETERS")]
    for name, config in PRESETS.items():
        quantizer = config.quantizer
        size, dimensions = f"{config.codebook_size:,}", str(quantizer.code_dim)
        factor = str(config.downsample_factor)
        rows.append((name, factor, quantizer.kind, size, dimensions, _millions(_tokenizer(name))))
    return _aligned(rows)


def prior_recipe_lines(recipes: Mapping[str, PriorRecipe]) -> list[str]:
    """A line for each recipe: its network, what it trains on, and how long."""
    rows = [("RECIPE", "PRESET", "PARAMETERS", "WINDOW", "BATCH", "STEPS")]
    for name, recipe in recipes.items():
        levels = PRESETS[TOKENIZER].quantizer.levels if recipe.factorised == "yes" else ()
        rows.append(
            (
                name,
                recipe.preset,
                _millions(_prior(recipe.preset, recipe.window, levels)),
                f"{recipe.window}x{recipe.window}",
                str(recipe.batch_size),
                f"{recipe.steps:,}",
            )
        )
    return [*_aligned(rows), _sized()]


def prior_preset_lines() -> list[str]:
    """A line for each network of a prior."""
    rows = [("PRESET", "ARCHITECTURE", "PARAMETERS")]
    for architecture, kind in ARCHITECTURES.items():
        for name in kind.presets:
            rows.append((name, architecture, _millions(_prior(name, 16, ()))))
    return [*_aligned(rows), _sized()]


def _sized() -> str:
    return f"parameters are those for the {PRESETS[TOKENIZER].codebook_size:,} codes of {TOKENIZER}"


def _tokenizer(preset: str) -> nn.Module:
    with on_meta_device():
        return VQGAN(PRESETS[preset])


def _prior(preset: str, window: int, levels: Sequence[int]) -> nn.Module:
    conditions = Conditions([StartOfSequence()], PRESETS[TOKENIZER].codebook_size)
    config = preset_config(preset, **condition_sizes(preset, conditions, window, levels))
    with on_meta_device():
        return make_model(config)


def _millions(model: nn.Module) -> str:
    return f"{sum(weights.numel() for weights in model.parameters()) / 1e6:,.1f} M"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
