"""Types and defaults that the flags of several commands and the recipes have in common."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from ops.config import ConfigError, Range

#: What --accept allows to differ from what the results were begun with.
Accept = tuple[Literal["device", "precision", "torch-version"], ...]
Steps = Annotated[int, Range(least=1, most=99_999_999)]  # folders of steps have eight digits
BatchSize = Annotated[int, Range(least=1, most=2**20)]
LearningRate = Annotated[float, Range(above=0, most=100)]
Side = Annotated[int, Range(least=1, most=2**16)]
"""in pixels"""
Window = Annotated[int, Range(least=1, most=4096)]
"""in codes"""
Factorised = Literal["auto", "yes", "no"]

#: Bytes of local copies of shards, where --cache-size does not say.
CACHE_BYTES = 32 << 30
#: The default of the flag --stall-timeout.
STALL_TIMEOUT = "10m"
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}  # in seconds


def stall_seconds(text: str) -> float:
    """Seconds of --stall-timeout, as 90, 90s, 10m or 1.5h; ConfigError where they are below 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text, re.ASCII)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if seconds < 1:
        raise ConfigError(
            f"--stall-timeout must be a second or more, as 90, 90s, 10m or 1.5h; found {text!r}."
        )
    return seconds
