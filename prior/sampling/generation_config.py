"""GenerationConfig: which samples to generate, how their codes are drawn, and in what memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ops.config import ConfigError
from ops.precision import Precision, check_precision, resolve_precision
from prior.sampling.distributions import SamplingSettings

LARGEST_DEFAULT_BATCH = 8
DEFAULT_CACHE_MEMORY = 4 << 30  # bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationConfig(SamplingSettings):
    """The keyword arguments of Prior.sample. Raises ConfigError for values out of range."""

    count: int = 1
    """number of samples: 0 .. count-1"""
    samples: Sequence[int] | None = None
    """the samples' numbers, in place of count"""
    seed: int = 0
    """from 0 to 2**64 - 1"""
    labels: int | Sequence[int] | None = None
    """one class for all samples, or one each; -1 or None means no class"""
    condition_inputs: Mapping[str, Any] | None = None
    """entries as in prior.conditions.frames for the canvas, one for all samples or one each:
    `segmentation` (N, rows, columns) or (rows, columns), `boxes` (N, M, 5), ...
    A condition without its entries is replaced by its null tokens"""
    stride: int | None = None
    """stride of the sliding window, in codes; None: half the window. See
    prior.sampling.sliding_window"""
    batch_size: int | None = None
    """samples per batch; None: all of them, at most 8. It affects the rounding of logits and may
    therefore change codes"""
    cache_memory: int = DEFAULT_CACHE_MEMORY
    """most bytes of KV caches; with less, codes are read again more often. It affects rounding"""
    precision: Precision | Literal["auto"] = "auto"
    """float32, tf32 or bfloat16 (ops.precision), of the weights, the KV caches and the products;
    logits and the drawing of codes are float32 at least. auto: bfloat16 on GPUs, float32 on CPUs,
    which have no tf32. It affects rounding. On a GPU, tf32 and float32 choose whether torch uses
    TF32 in the whole process; bfloat16 leaves that choice as it is"""
    forced: np.ndarray | Tensor | None = None
    """known codes (rows, columns), or (N, rows, columns) with one grid for each sample; -1 where a
    code is to be sampled. With different known cells in different samples, the number of forwards
    is that of the cells not known to all, and which samples share a batch affects rounding"""
    flush_every_rows: int | None = None
    """rows of codes after which all rows above are finished before the next ones start. Generation
    can resume there from forced codes and gives the same codes bit for bit. It affects rounding.
    Priors without windows can resume at any row and do not need it"""
    static_decode: bool | None = None
    """whether the steps of sampling are computed ahead and, on a GPU, replayed as CUDA graphs: see
    prior.sampling.static_decode. None: on GPUs, with priors that can. It affects rounding"""
    progress: Callable[[int, int], None] | None = None
    """progress(done, total), called with numbers of cells, with static_decode about once a row; one
    cell counts once for its batch"""
    preview: Callable[[int, Tensor], None] | None = None
    """preview(sample, codes), called about once a row with the codes (rows, columns) so far, -1
    where none is sampled yet; the tensor changes afterwards, so use it at once"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "flush_every_rows"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, found {number}.")
        if self.precision != "auto":
            check_precision(self.precision)
        if self.cache_memory < 0:
            raise ConfigError(f"cache_memory must be 0 or more bytes, found {self.cache_memory}.")

    @property
    def sampling_settings(self) -> SamplingSettings:
        """The settings of drawing a code alone, which can be compared and hashed."""
        names = [field.name for field in fields(SamplingSettings)]
        return SamplingSettings(**{name: getattr(self, name) for name in names})

    def precision_on(self, device: torch.device) -> Precision:
        """The precision that `precision` amounts to on a device."""
        return resolve_precision(self.precision, device.type)

    @property
    def chosen(self) -> list[int]:
        """The samples' numbers, in the order in which they are returned."""
        return list(range(self.count)) if self.samples is None else list(self.samples)

    @property
    def width(self) -> int:
        """Samples per batch."""
        if self.batch_size is None:
            return min(len(self.chosen), LARGEST_DEFAULT_BATCH)
        return self.batch_size
