"""The registry of prior architectures: their configs, their presets and how models are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ops.config import ConfigError
from prior.conditions import Conditions
from prior.models.gpt import GPT, GPTConfig
from prior.models.local_gpt import LocalConfig, LocalGPT
from prior.models.pixelsnail import PixelSNAIL, SnailConfig
from prior.models.presets import GPT_PRESETS, LOCAL_PRESETS, SNAIL_PRESETS, Presets

PriorConfig = GPTConfig | LocalConfig | SnailConfig
PriorModel = GPT | LocalGPT | PixelSNAIL


class Architecture(NamedTuple):
    """A kind of prior: its config and its presets."""

    config: type[GPTConfig] | type[LocalConfig] | type[SnailConfig]
    presets: Presets


ARCHITECTURES = {
    "gpt": Architecture(GPTConfig, GPT_PRESETS),
    "local": Architecture(LocalConfig, LOCAL_PRESETS),
    "snail": Architecture(SnailConfig, SNAIL_PRESETS),
}


def preset_config(preset: str, **sizes: Any) -> PriorConfig:
    """The config of a preset of any architecture; `sizes` are the fields that it leaves open.

    `sizes` override the preset's own. Raises ConfigError for an unknown preset or field.
    """
    for architecture in ARCHITECTURES.values():
        if preset in architecture.presets:
            known = {field.name for field in fields(architecture.config)}
            unknown = ", ".join(sorted(set(sizes) - known))
            if unknown:
                raise ConfigError(
                    f"A prior of the preset {preset!r} has no {unknown}; leave it out."
                )
            return architecture.config(**{**architecture.presets[preset], **sizes})
    names = [name for architecture in ARCHITECTURES.values() for name in architecture.presets]
    raise ConfigError(f"No preset {preset!r}; there are {', '.join(names)}.")


def condition_sizes(
    preset: str, conditions: Conditions, window: int, code_levels: Sequence[int] = ()
) -> dict[str, Any]:
    """The `sizes` of preset_config that follow from the conditions and the window.

    With `code_levels`, the tokenizer's, codes are embedded and predicted by these.
    """
    kinds = [kind.config for kind in ARCHITECTURES.values() if preset in kind.presets]
    sizes = _sizes(kinds[0], conditions, window, code_levels) if kinds else {}
    return {**sizes, "codebook_size": conditions.codebook_size, "window": window}


def check_conditions(config: PriorConfig, conditions: Conditions) -> None:
    """Raise ConfigError unless a config has the sizes that follow from the conditions."""
    sizes = _sizes(type(config), conditions, config.window, config.code_levels)
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise ConfigError(f"{name} is {getattr(config, name)}, but the conditions need {size}.")


def _sizes(
    config: type[PriorConfig], conditions: Conditions, window: int, code_levels: Sequence[int]
) -> dict[str, Any]:
    """The sizes that follow from the conditions.

    Architectures with a field condition_grids read grid conditions aligned with the codes; the
    others read them as part of the prefix, a token for each cell of the window.
    """
    vocabulary: dict[str, Any] = {"condition_vocab_size": conditions.vocab_size}
    if code_levels:
        vocabulary["code_levels"] = tuple(code_levels)
        vocabulary["condition_codes"] = conditions.image_code_tokens
    if any(field.name == "condition_grids" for field in fields(config)):
        grids = {"condition_grids": conditions.num_grids}
        return {**vocabulary, **grids, "condition_length": conditions.length}
    length = conditions.length + conditions.num_grids * window**2
    return {**vocabulary, "condition_length": length}


def architecture_name(config: PriorConfig) -> str:
    """The name in ARCHITECTURES of a config's type."""
    return next(name for name, kind in ARCHITECTURES.items() if type(config) is kind.config)


def make_model(config: PriorConfig) -> PriorModel:
    """A model of a config, with initial weights."""
    if isinstance(config, LocalConfig):
        return LocalGPT(config)
    if isinstance(config, SnailConfig):
        return PixelSNAIL(config)
    return GPT(config)
