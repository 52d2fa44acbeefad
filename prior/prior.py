"""Prior: a trained model with its conditions, from which codes are sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.config import ConfigError
from ops.noise import uniforms
from ops.precision import use_precision
from ops.windows import Window
from prior.conditions import ConditionInputs, Conditions, Shape, canvas_tokens, window_prefix
from prior.models import GPT, LocalGPT, PixelSNAIL, PriorConfig, PriorModel
from prior.sampling import (
    Decoder,
    GenerationConfig,
    InferenceCopies,
    KeptSampler,
    SampledCodes,
    SnailDecoder,
    StaticLocalSampler,
    StaticWindowSampler,
    decodes_statically,
    sample_codes,
    sample_locally,
)


class Prior:
    """A model, its conditions, and a description of the tokenizer whose codes it predicts.

    `tokenizer_info` holds at least fingerprint, codebook_size, downsample_factor and name.
    `recommended` are the values of SamplingSettings that sample uses where it is given none.
    """

    def __init__(
        self,
        model: PriorModel,
        conditions: Conditions,
        tokenizer_info: Mapping[str, Any],
        folder: Path | None = None,
        recommended: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.model = model
        self.conditions = conditions
        self.tokenizer_info = dict(tokenizer_info)
        self.folder = folder
        self.recommended = dict(recommended)
        self._inference_copies, self._kept_sampler = InferenceCopies(), KeptSampler()

    @property
    def config(self) -> PriorConfig:
        return self.model.config

    def sample(self, rows: int | None = None, columns: int | None = None, **options: Any) -> Tensor:
        """Codes (N, rows, columns) int64 on the CPU, one grid for each sample.

        `rows` and `columns` count codes and default to the trained window's side. `options` are the
        fields of GenerationConfig; those left out are the recommended settings. Sample k does not
        depend on which other samples are requested: it is always entry k % batch_size of a full
        batch. Raises ConfigError for settings that do not suit this prior.
        """
        window = self.config.window
        rows, columns = (window if size is None else size for size in (rows, columns))
        return self.sample_with_log_probs(rows, columns, **options).codes

    def sample_with_log_probs(self, rows: int, columns: int, **options: Any) -> SampledCodes:
        """As `sample`, with the log-probability (N, rows, columns) of each code in nats."""
        config = GenerationConfig(**{**self.recommended, **options})
        chosen, width = config.chosen, config.width
        if rows < 1 or columns < 1 or not chosen:
            raise ConfigError(f"Nothing to sample: {len(chosen)} grids of {rows}x{columns} codes.")
        condition_inputs = ConditionInputs(
            self.conditions, self._condition_entries(config), chosen, (rows, columns)
        )
        forced = self._checked_forced(config.forced, rows, columns, len(chosen))
        if config.guides and not self.conditions.can_guide:
            raise ConfigError(
                "guidance_scale needs a prior that was trained with a condition, like classes; "
                "leave it at 1."
            )
        sample_batch = self._batch_sampler(config)
        batches = sorted({sample // width for sample in chosen})
        reporter = _ProgressReporter(config, len(batches) * rows * columns)
        results: dict[int, SampledCodes] = {}
        for number in batches:
            batch = range(number * width, (number + 1) * width)
            reporter.wanted = [sample for sample in batch if sample in chosen]
            sampled = sample_batch(
                condition_inputs=condition_inputs.of(batch),
                uniforms=self._row_uniforms(config.seed, batch, columns),
                shape=(width, rows, columns),
                forced=_forced_of_batch(forced, chosen, batch),
                on_cells=reporter,
            )
            for sample in reporter.wanted:
                results[sample] = SampledCodes(*(part[sample % width].cpu() for part in sampled))
        ordered = [results[sample] for sample in chosen]
        return SampledCodes(*(torch.stack(part) for part in zip(*ordered, strict=True)))

    def _condition_entries(self, config: GenerationConfig) -> dict[str, Any]:
        """condition_inputs, with the labels as the entry `label`."""
        entries, labels = dict(config.condition_inputs or {}), config.labels
        if labels is None:
            return entries
        if "label" not in self.conditions.entries:
            raise ConfigError("This prior was trained without classes; leave the labels out.")
        if "label" in entries:
            raise ConfigError(
                "Labels are given twice: leave out either labels or the label of condition_inputs."
            )
        count = len(config.chosen)
        if not isinstance(labels, int) and len(labels) != count:
            raise ConfigError(f"{len(labels)} labels for {count} samples: give one, or one each.")
        return {**entries, "label": torch.as_tensor(labels)}

    def _row_uniforms(
        self, seed: int, samples: Sequence[int], columns: int
    ) -> Callable[[int], Tensor]:
        """A function of the row that returns its uniforms (B, columns); canvases may be large."""

        def of_row(row: int) -> Tensor:
            numbers = uniforms(seed, samples, 1, columns, first_row=row)[:, 0]
            return torch.from_numpy(numbers).to(self.device)

        return of_row

    def _checked_forced(
        self, forced: np.ndarray | Tensor | None, rows: int, columns: int, count: int
    ) -> Tensor | None:
        """Forced codes as int64 (rows, columns) or (N, rows, columns); raises ConfigError."""
        if forced is None:
            return None
        known = torch.as_tensor(forced).to(torch.int64)
        if tuple(known.shape) not in ((rows, columns), (count, rows, columns)):
            raise ConfigError(f"forced is {tuple(known.shape)}, the canvas ({rows}, {columns}).")
        if known.min() < -1 or known.max() >= self.config.codebook_size:
            raise ConfigError(
                f"forced must be -1 or a code below {self.config.codebook_size}, found "
                f"{int(known.min())} to {int(known.max())}."
            )
        return known

    def _batch_sampler(self, config: GenerationConfig) -> Callable[..., SampledCodes]:
        """The function that samples a batch with this kind of model."""
        precision = config.precision_on(self.device)
        if self.device.type == "cuda" and precision != "bfloat16":
            use_precision(precision)
        model, stride = self._inference_copies.of(self.model, precision), config.stride
        static = decodes_statically(model.config, config.static_decode, self.device)
        if isinstance(model, LocalGPT):
            if stride is not None:
                raise ConfigError("This prior has no windows; leave stride out.")
            return partial(self._sample_locally, model, config, static)
        stride = model.config.default_stride if stride is None else stride
        return partial(self._sample_by_windows, model, config, stride, static)

    def _sample_locally(
        self,
        model: LocalGPT,
        config: GenerationConfig,
        static: bool,
        condition_inputs: Mapping[str, Tensor],
        uniforms: Callable[[int], Tensor],
        shape: tuple[int, int, int],
        **options: Any,
    ) -> SampledCodes:
        batch, canvas = shape[0], shape[1:]
        tokens = canvas_tokens(self.conditions, condition_inputs, batch, canvas, self.config.window)
        prefixes, numbers = tokens.to(self.device), _of_all_rows(uniforms, canvas[0])
        options["null_prefixes"] = self._null_prefixes(batch, canvas) if config.guides else None
        if not static:
            return sample_locally(model, prefixes, numbers, config, **options)
        settings = config.sampling_settings
        with self._kept_sampler.use(
            (model, config.precision_on(self.device), settings, shape),
            lambda: StaticLocalSampler(model, settings, shape),
        ) as sampler:
            return sampler.sample(prefixes, numbers, **options)

    def _sample_by_windows(
        self,
        model: GPT | PixelSNAIL,
        config: GenerationConfig,
        stride: int,
        static: bool,
        condition_inputs: Mapping[str, Tensor],
        uniforms: Callable[[int], Tensor],
        shape: tuple[int, int, int],
        **options: Any,
    ) -> SampledCodes:
        batch, canvas, side = shape[0], shape[1:], self.config.window
        of_window = window_prefix(self.conditions, condition_inputs, batch, canvas, side)
        null_prefixes = [self._null_prefixes(batch, (side, side))] if config.guides else []

        def prefix(window: Window) -> Tensor:
            return torch.cat([of_window(window).to(self.device), *null_prefixes])

        by_windows: dict[str, Any] = {
            "stride": stride,
            "cache_memory": config.cache_memory,
            "flush_every_rows": config.flush_every_rows,
        }
        if static and isinstance(model, GPT):
            settings = config.sampling_settings
            with self._kept_sampler.use(
                (model, config.precision_on(self.device), settings, shape, *by_windows.values()),
                lambda: StaticWindowSampler(model, settings, shape, **by_windows),
            ) as sampler:
                return sampler.sample(prefix, _of_all_rows(uniforms, canvas[0]), **options)
        decoder = Decoder(model) if isinstance(model, GPT) else SnailDecoder(model)
        return sample_codes(decoder, prefix, uniforms, config, shape, **by_windows, **options)

    def _null_prefixes(self, count: int, shape: Shape) -> Tensor:
        return self.conditions.null_tokens(count, shape).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.token_embedding.weight.device


def _of_all_rows(uniforms: Callable[[int], Tensor], rows: int) -> Tensor:
    """(B, rows, columns) of a function of the row."""
    return torch.stack([uniforms(row) for row in range(rows)], dim=1)


def _forced_of_batch(
    forced: Tensor | None, chosen: Sequence[int], batch: Sequence[int]
) -> Tensor | None:
    """Forced codes (B, rows, columns) of a batch, from those (N, rows, columns) of chosen samples.

    Samples of the batch that are not chosen take those of the first one that is.
    """
    if forced is None or forced.ndim == 2:
        return forced
    indices = [chosen.index(sample) for sample in batch if sample in chosen]
    own = {chosen[index]: index for index in indices}
    return forced[[own.get(sample, indices[0]) for sample in batch]]


class _ProgressReporter:
    """Calls the progress and preview functions of a GenerationConfig."""

    def __init__(self, config: GenerationConfig, total: int) -> None:
        self.wanted: Sequence[int] = ()  # requested samples of the current batch
        self._config, self._total, self._done = config, total, 0

    def __call__(self, count: int, codes: Tensor) -> None:
        """`count` more cells of codes (B, rows, columns) are done."""
        columns, before = codes.shape[2], self._done
        self._done += count
        if self._config.progress is not None:
            self._config.progress(self._done, self._total)
        if self._config.preview is not None and self._done // columns > before // columns:
            for sample in self.wanted:
                self._config.preview(sample, codes[sample % len(codes)].cpu())
