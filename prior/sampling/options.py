"""What may be asked of a prior that paints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ops.config import ConfigError
from prior.sampling.distributions import SamplingSettings
from prior.sampling.rejection import Score

LARGEST_DEFAULT_BATCH = 8
DEFAULT_CACHE_MEMORY = 4 << 30  # bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationConfig(SamplingSettings):
    """Which samples, how their codes are drawn, and in what room."""

    count: int = 1
    """how many samples: 0 .. count-1"""
    samples: Sequence[int] | None = None
    """the numbers of the samples, in place of count"""
    seed: int = 0
    """another seed, other samples"""
    labels: int | Sequence[int] | None = None
    """one class for all samples, or one each; -1, or none at all, says nothing"""
    condition_inputs: Mapping[str, Any] | None = None
    """entries as in prior.conditions.frames about the canvas, of each sample or one for all:
    `segmentation` (N, rows, columns) or (rows, columns), `boxes` (N, M, 5), ...
    What is left out tells nothing"""
    stride: int | None = None
    """of the sliding window, in codes; half the window by default: prior.sampling.sliding_window"""
    batch_size: int | None = None
    """samples painted at once, by default as many as there are, at most 8; it decides a sample's
    last bits, and so may change codes"""
    cache_memory: int = DEFAULT_CACHE_MEMORY
    """most bytes of KV caches; with less, more is read anew. It decides last bits as well"""
    forced: np.ndarray | Tensor | None = None
    """known codes (rows, columns), -1 where one is to be painted; or (N, rows, columns), one each
    of the samples: where they are known in different places, painting takes as many forwards as
    what nobody knows, and which samples share a batch decides last bits"""
    flush_every_rows: int | None = None
    """rows of codes after which all is finished before more is begun, again and again: painting
    can go on there from forced codes, to the same codes bit for bit. It decides last bits as well.
    Priors that need no window can go on at any row, and need not be asked"""
    candidates: int = 1
    """draw each sample that many times and keep the one with the highest score"""
    score: Score | None = None
    """score(codes (rows, columns), sample) for candidates: see prior.sampling.rejection"""
    accept_score: float | None = None
    """take a sample's first candidate that reaches this score, and draw no further ones"""
    progress: Callable[[int, int], None] | None = None
    """progress(done, total) counts cells, of the whole batch at once; where candidates are
    accepted early, it ends early"""
    preview: Callable[[int, Tensor], None] | None = None
    """preview(sample, codes), about once for each row of codes: codes (rows, columns) so far, -1
    where none is drawn yet; to be read at once, since painting goes on in it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "candidates", "flush_every_rows"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, found {number}.")
        if self.cache_memory < 0:
            raise ConfigError(f"cache_memory must be 0 or more bytes, found {self.cache_memory}.")
        if self.score is None and (self.candidates > 1 or self.accept_score is not None):
            raise ConfigError("candidates and accept_score need a score to choose by.")

    @property
    def chosen(self) -> list[int]:
        """The samples' numbers, in the order they are given back."""
        return list(range(self.count)) if self.samples is None else list(self.samples)

    @property
    def width(self) -> int:
        """Samples painted at once."""
        if self.batch_size is None:
            return min(len(self.chosen), LARGEST_DEFAULT_BATCH)
        return self.batch_size
