"""Condition inputs of the samples of one canvas, from the files that `--condition` names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError
from ops.images import ImageArray, ImageError
from ops.paths import AnyPath
from pipelines.conditioning.build import own_tokenizers
from pipelines.conditioning.conditioning import FileConditioning, Size
from pipelines.conditioning.files import ConditionFiles
from pipelines.conditioning.flags import file_conditioning
from pipelines.conditioning.tokenizers import track_tokenizers
from prior import Conditions, Prior
from tokenizer import VQGAN

KEPT = 16  # encoded items that are kept: samples take the same ones in turn


class ConditionEncoder:
    """Encodes each sample's condition inputs; sample k takes item k % n of each condition's n.

    `tokenizers` are those of the conditions that have one of their own, by name; `size` is the
    samples' (height, width) in pixels.
    """

    def __init__(
        self,
        files: Sequence[ConditionFiles],
        conditions: Conditions,
        tokenizer: VQGAN,
        tokenizers: Mapping[str, VQGAN],
        size: Size,
    ) -> None:
        self._entries = conditions.entries
        self._items = {each.name: each.items for each in files}
        self._conditionings: dict[str, FileConditioning[Any, Any]] = {}
        parts = {part.name: part for part in conditions.parts}
        for name in self._items:
            kind = file_conditioning(name)
            assert kind is not None, "parse_conditions refuses others"
            own = tokenizers.get(name, tokenizer)
            self._conditionings[name] = kind(parts.get(name), own, size)
        self._encoded = functools.lru_cache(KEPT)(self._encode)

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that are given."""
        return tuple(self._items)

    @property
    def has_known_codes(self) -> bool:
        """Whether parts of the samples are known."""
        return self._known is not None

    def condition_inputs(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """The samples' inputs, as GenerationConfig.condition_inputs has them."""
        found: dict[str, Tensor] = {}
        for name in self._items:
            if name != self._known:
                found |= self._stacked(name, samples)
        forced = self.forced(samples)
        if forced is not None and "codes" in self._entries:
            found |= {"codes": forced, "known": forced >= 0}
        return found

    def forced(self, samples: Sequence[int]) -> Tensor | None:
        """Known codes (N, rows, columns) that stay, -1 where one is to be sampled; or None."""
        return None if self._known is None else self._stacked(self._known, samples)["codes"]

    def check(self, names: Iterable[str]) -> None:
        """Encode every item of these conditions once; ConfigError where a file cannot be used."""
        for name in names:
            for number in range(len(self._items[name])):
                self._encode(name, number)

    def preview(self, name: str, sample: int) -> ImageArray:
        """An image, uint8 (height, width, 3), of a sample's input to one condition."""
        items = self._items[name]
        return self._conditionings[name].preview(items[sample % len(items)])

    @property
    def _known(self) -> str | None:
        """The condition that gives known codes."""
        return next((name for name, c in self._conditionings.items() if c.known_codes), None)

    def _stacked(self, name: str, samples: Sequence[int]) -> dict[str, Tensor]:
        count = len(self._items[name])
        each = [self._encoded(name, sample % count) for sample in samples]
        return {key: torch.stack([entries[key] for entries in each]) for key in each[0]}

    def _encode(self, name: str, number: int) -> dict[str, Tensor]:
        item = self._items[name][number]
        try:
            return self._conditionings[name].encode(item)
        except ImageError as error:
            where = getattr(item, "key", f"image {number}")
            raise ConfigError(f"--condition {name}: {where}: {error}") from error


def make_condition_encoder(
    files: Sequence[ConditionFiles],
    path: AnyPath,
    prior: Prior,
    tokenizer: VQGAN,
    size: Size,
) -> ConditionEncoder:
    """The encoder of `files` for `prior`, loaded from `path`, on the prior's device.

    `size` is the (height, width) of the samples in pixels. Raises CheckpointError or ConfigError
    where the tokenizer of a condition is not in the prior's folder, or is another one.
    """
    names = own_tokenizers([each.name for each in files])
    tokenizers = track_tokenizers(path, prior, names, prior.device)
    return ConditionEncoder(files, prior.conditions, tokenizer, tokenizers, size)
