"""The kinds of prior there are, and the sizes of them that have names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from ops.config import ConfigError
from prior.conditions import Conditions
from prior.models.gpt import GPT
from prior.models.gpt_config import PRESETS as GPT_PRESETS
from prior.models.gpt_config import GPTConfig
from prior.models.local_gpt import PRESETS as LOCAL_PRESETS
from prior.models.local_gpt import LocalConfig, LocalGPT
from prior.models.pixelsnail import PixelSNAIL
from prior.models.snail_config import PRESETS as SNAIL_PRESETS
from prior.models.snail_config import SnailConfig

PriorConfig = GPTConfig | LocalConfig | SnailConfig
PriorModel = GPT | LocalGPT | PixelSNAIL


class Architecture(NamedTuple):
    """A kind of prior: its config, and the sizes that have names."""

    config: type[GPTConfig] | type[LocalConfig] | type[SnailConfig]
    presets: Mapping[str, Mapping[str, Any]]


ARCHITECTURES = {
    "gpt": Architecture(GPTConfig, GPT_PRESETS),
    "local": Architecture(LocalConfig, LOCAL_PRESETS),
    "snail": Architecture(SnailConfig, SNAIL_PRESETS),
}


def preset_config(preset: str, **sizes: Any) -> PriorConfig:
    """The config of a preset, of any architecture, with what it leaves open: codebook_size, ...

    Raises ConfigError where there is none of that name, or it has no such size.
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


def condition_sizes(preset: str, conditions: Conditions, window: int) -> dict[str, int]:
    """What a preset's config needs of what the prior is told, as preset_config takes it.

    Some architectures read grids beside the codes, the others as one prefix with all else.
    """
    sizes = {
        "codebook_size": conditions.codebook_size,
        "condition_vocab_size": conditions.vocab_size,
        "condition_length": conditions.length,
        "window": window,
    }
    kinds = [kind.config for kind in ARCHITECTURES.values() if preset in kind.presets]
    if any(field.name == "condition_grids" for kind in kinds for field in fields(kind)):
        return {**sizes, "condition_grids": conditions.num_grids}
    return {**sizes, "condition_length": conditions.length + conditions.num_grids * window**2}


def architecture_name(config: PriorConfig) -> str:
    """The name in ARCHITECTURES that a config is of."""
    return next(name for name, kind in ARCHITECTURES.items() if type(config) is kind.config)


def make_model(config: PriorConfig) -> PriorModel:
    """An untrained model."""
    if isinstance(config, LocalConfig):
        return LocalGPT(config)
    if isinstance(config, SnailConfig):
        return PixelSNAIL(config)
    return GPT(config)
