"""The kinds of prior there are, and the sizes of them that have names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ops.config import ConfigError
from prior.gpt import GPT
from prior.gpt_config import PRESETS as GPT_PRESETS
from prior.gpt_config import GPTConfig
from prior.local_attention import PRESETS as LOCAL_PRESETS
from prior.local_attention import LocalConfig, LocalGPT

PriorConfig = GPTConfig | LocalConfig
PriorModel = GPT | LocalGPT


class Architecture(NamedTuple):
    """A kind of prior: its config, and the sizes that have names."""

    config: type[GPTConfig] | type[LocalConfig]
    presets: Mapping[str, Mapping[str, Any]]


ARCHITECTURES = {
    "gpt": Architecture(GPTConfig, GPT_PRESETS),
    "local": Architecture(LocalConfig, LOCAL_PRESETS),
}


def preset_config(preset: str, **sizes: Any) -> PriorConfig:
    """The config of a preset, of any architecture, with what it leaves open: codebook_size, ...

    Raises ConfigError where there is none of that name, or it has no such size.
    """
    for architecture in ARCHITECTURES.values():
        if preset in architecture.presets:
            known = {field.name for field in dataclasses.fields(architecture.config)}
            unknown = ", ".join(sorted(set(sizes) - known))
            if unknown:
                raise ConfigError(
                    f"A prior of the preset {preset!r} has no {unknown}; leave it out."
                )
            return architecture.config(**{**architecture.presets[preset], **sizes})
    names = [name for architecture in ARCHITECTURES.values() for name in architecture.presets]
    raise ConfigError(f"No preset {preset!r}; there are {', '.join(names)}.")


def architecture_name(config: PriorConfig) -> str:
    """The name in ARCHITECTURES that a config is of."""
    return next(name for name, kind in ARCHITECTURES.items() if type(config) is kind.config)


def make_model(config: PriorConfig) -> PriorModel:
    """An untrained model."""
    if isinstance(config, LocalConfig):
        return LocalGPT(config)
    return GPT(config)
