"""A trained prior with all it needs to paint, saved to and loaded from a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.checkpoint import (
    CheckpointError,
    load_model,
    load_tensors,
    resolve_model_folder,
    save_model,
)
from ops.config import ConfigError, from_json, to_json
from ops.noise import uniforms
from ops.runtime import resolve_device
from prior.conditions import ConditionInputs, Conditions, Shape, canvas_tokens, window_prefix
from prior.models import (
    ARCHITECTURES,
    GPT,
    LocalGPT,
    PriorConfig,
    PriorModel,
    architecture_name,
    make_model,
)
from prior.sampling import (
    Decoder,
    Draw,
    GenerationConfig,
    Rejection,
    SnailDecoder,
    candidate_number,
    inference_copy,
    sample_codes,
    sample_locally,
)

MODEL_KIND = "prior"


class Prior:
    """A model, its conditions, and which tokenizer's codes it speaks of.

    `tokenizer_info` holds at least fingerprint, codebook_size, downsample_factor and name.
    """

    def __init__(
        self,
        model: PriorModel,
        conditions: Conditions,
        tokenizer_info: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.conditions = conditions
        self.tokenizer_info = dict(tokenizer_info)
        self.folder = folder

    @property
    def config(self) -> PriorConfig:
        return self.model.config

    def sample(self, rows: int | None = None, columns: int | None = None, **options: Any) -> Tensor:
        """Codes (N, rows, columns) int64 on the CPU, one grid for each sample.

        `rows` and `columns` count codes and default to the window of training. `options` are the
        fields of GenerationConfig. Sample k does not depend on which other samples are requested:
        it always takes place k % batch_size of a full batch. Raises ConfigError for settings that
        this prior cannot meet.
        """
        window = self.config.window
        rows, columns = (window if size is None else size for size in (rows, columns))
        return self.sample_with_log_probs(rows, columns, **options).codes

    def sample_with_log_probs(self, rows: int, columns: int, **options: Any) -> Draw:
        """As `sample`, with the log-probability (N, rows, columns) of each code in nats."""
        asked = GenerationConfig(**options)
        chosen = asked.chosen
        if rows < 1 or columns < 1 or not chosen:
            raise ConfigError(f"Nothing to paint: {len(chosen)} grids of {rows}x{columns} codes.")
        condition_inputs = ConditionInputs(
            self.conditions, self._entries(asked), chosen, (rows, columns)
        )
        known = self._known(asked.forced, rows, columns, len(chosen))
        if asked.guides and not self.conditions.can_guide:
            raise ConfigError(
                "guidance_scale needs a prior that can be told something, like classes; leave it "
                "at 1."
            )
        sample_batch, rejection = (
            self._batch_sampler(asked),
            Rejection(asked.score, asked.accept_score),
        )
        groups = sorted({sample // asked.width for sample in chosen})
        report = _Report(asked, len(groups) * asked.candidates * rows * columns)
        for group in groups:
            together = range(group * asked.width, (group + 1) * asked.width)
            report.wanted = [sample for sample in together if sample in chosen]
            forced = _of_batch(known, chosen, together)
            for candidate in range(asked.candidates):
                drawn = sample_batch(
                    condition_inputs=condition_inputs.of(together),
                    uniforms=self._uniforms(asked.seed, together, candidate, columns),
                    shape=(asked.width, rows, columns),
                    forced=forced,
                    on_cells=report,
                )
                for sample in report.wanted:
                    own = Draw(*(each[sample % asked.width].cpu() for each in drawn))
                    rejection.offer(sample, own)
                if rejection.settled(report.wanted):
                    break
        best = [rejection.best[sample] for sample in chosen]
        return Draw(*(torch.stack(each) for each in zip(*best, strict=True)))

    def _entries(self, asked: GenerationConfig) -> dict[str, Any]:
        """All that the samples are told."""
        condition_inputs, labels, count = (
            dict(asked.condition_inputs or {}),
            asked.labels,
            len(asked.chosen),
        )
        if labels is None:
            return condition_inputs
        if "label" not in self.conditions.entries:
            raise ConfigError("This prior was trained without classes; leave the labels out.")
        if "label" in condition_inputs:
            raise ConfigError("Labels are given twice; leave them out, or out of told.")
        if not isinstance(labels, int) and len(labels) != count:
            raise ConfigError(f"{len(labels)} labels for {count} samples: give one, or one each.")
        return {**condition_inputs, "label": torch.as_tensor(labels)}

    def _uniforms(
        self, seed: int, samples: Sequence[int], candidate: int, columns: int
    ) -> Callable[[int], Tensor]:
        """The uniforms (B, columns) of a canvas's row: row by row, since canvases are large."""
        keys = [candidate_number(sample, candidate) for sample in samples]

        def of_row(row: int) -> Tensor:
            numbers = uniforms(seed, keys, 1, columns, first_row=row)[:, 0]
            return torch.from_numpy(numbers).to(self.device)

        return of_row

    def _known(
        self, forced: np.ndarray | Tensor | None, rows: int, columns: int, count: int
    ) -> Tensor | None:
        """Known codes (rows, columns) or (N, rows, columns), checked."""
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

    def _batch_sampler(self, asked: GenerationConfig) -> Callable[..., Draw]:
        """What paints a batch with this kind of model."""
        model, stride = inference_copy(self.model), asked.stride
        if isinstance(model, LocalGPT):
            if stride is not None:
                raise ConfigError("This prior needs no windows; leave stride out.")
            return partial(self._sample_locally, model, asked)
        stride = model.config.default_stride if stride is None else stride
        decoder = Decoder(model) if isinstance(model, GPT) else SnailDecoder(model)
        return partial(self._sample_by_windows, decoder, asked, stride)

    def _sample_locally(
        self,
        model: LocalGPT,
        asked: GenerationConfig,
        condition_inputs: Mapping[str, Tensor],
        uniforms: Callable[[int], Tensor],
        shape: tuple[int, int, int],
        **options: Any,
    ) -> Draw:
        batch, canvas = shape[0], shape[1:]
        tokens = canvas_tokens(self.conditions, condition_inputs, batch, canvas, self.config.window)
        prefixes = tokens.to(self.device)
        numbers = torch.stack([uniforms(row) for row in range(shape[1])], dim=1)
        nothing = self._null_prefixes(batch, canvas) if asked.guides else None
        return sample_locally(model, prefixes, numbers, asked, null_prefixes=nothing, **options)

    def _sample_by_windows(
        self,
        decoder: Decoder | SnailDecoder,
        asked: GenerationConfig,
        stride: int,
        condition_inputs: Mapping[str, Tensor],
        uniforms: Callable[[int], Tensor],
        shape: tuple[int, int, int],
        **options: Any,
    ) -> Draw:
        batch, canvas, side = shape[0], shape[1:], self.config.window
        of_window = window_prefix(self.conditions, condition_inputs, batch, canvas, side)
        nothing = [self._null_prefixes(batch, (side, side))] if asked.guides else []
        return sample_codes(
            decoder,
            lambda window: torch.cat([of_window(window).to(self.device), *nothing]),
            uniforms,
            asked,
            shape,
            stride=stride,
            cache_memory=asked.cache_memory,
            flush_every_rows=asked.flush_every_rows,
            **options,
        )

    def _null_prefixes(self, count: int, shape: Shape) -> Tensor:
        return self.conditions.null_tokens(count, shape).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device


def _of_batch(
    known: Tensor | None, chosen: Sequence[int], together: Sequence[int]
) -> Tensor | None:
    """Of known codes (N, rows, columns) of the chosen samples, those of a whole batch.

    Places of the batch that nobody asked for get somebody's.
    """
    if known is None or known.ndim == 2:
        return known
    places = [chosen.index(sample) for sample in together if sample in chosen]
    own = {chosen[place]: place for place in places}
    return known[[own.get(sample, places[0]) for sample in together]]


class _Report:
    """Tells the caller how far painting is."""

    def __init__(self, asked: GenerationConfig, total: int) -> None:
        self.wanted: Sequence[int] = ()  # samples of the batch that is being painted
        self._asked, self._total, self._done = asked, total, 0

    def __call__(self, count: int, codes: Tensor) -> None:
        """`count` more cells of codes (B, rows, columns) are drawn."""
        columns, before = codes.shape[2], self._done
        self._done += count
        if self._asked.progress is not None:
            self._asked.progress(self._done, self._total)
        if self._asked.preview is not None and self._done // columns > before // columns:
            for sample in self.wanted:
                self._asked.preview(sample, codes[sample % len(codes)].cpu())


def save_prior(
    folder: Path,
    model: PriorModel,
    conditions: Conditions,
    tokenizer_info: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a prior's config.json and model.safetensors into `folder`; not atomic by itself.

    `tensors` are written in place of the model's own, which are but parts where it is sharded.
    """
    extra = {
        "architecture": architecture_name(model.config),
        "conditions": conditions.to_json(),
        "tokenizer": dict(tokenizer_info),
    }
    tensors = model.state_dict() if tensors is None else tensors
    save_model(folder, MODEL_KIND, to_json(model.config), tensors, extra)


def load_prior(path: str | Path, device: str | torch.device = "cpu") -> Prior:
    """The prior of a model folder, or of a run folder's newest step, ready to paint.

    Takes the averaged weights, `ema.safetensors`, where there are any.
    Raises CheckpointError when the folder holds no prior, or a broken one.
    """
    folder = resolve_model_folder(path)
    description, tensors = load_model(folder, MODEL_KIND)
    if (folder / "ema.safetensors").exists():
        tensors = load_tensors(folder / "ema.safetensors")
    architecture = description.get("architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder} holds a prior of the architecture {architecture!r}; known are "
            f"{', '.join(ARCHITECTURES)}. Upgrade smalti."
        )
    config: PriorConfig = from_json(ARCHITECTURES[architecture].config, description["config"])
    model = make_model(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {folder} do not fit its config: {error}") from None
    conditions = Conditions.from_json(description["conditions"], config.codebook_size)
    model = model.to(resolve_device(str(device))).eval()
    return Prior(model, conditions, description["tokenizer"], folder)
