"""sample_cascade: the codes of a cascade, in memory; cascade.py makes folders of the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from ops.config import ConfigError
from ops.images import ImageArray
from ops.masked_images import MaskedImage
from pipelines.conditioning import ConditionFiles, find_tokenizer, make_condition_encoder
from pipelines.exporting import image_strips
from pipelines.generation.stage_sizes import (
    LOW_RES,
    Size,
    composition_side,
    stage_sizes,
    upscale_ratio,
)
from prior import Inpaint, Prior
from prior.sampling import GenerationConfig, SamplingSettings
from tokenizer import VQGAN

KNOWN = Inpaint.name
#: Options of Prior.sample that are the first stage's alone.
OF_BASE = {"labels", "condition_inputs", *(field.name for field in fields(SamplingSettings))}


def sample_cascade(
    base: Prior,
    upscaler: Prior,
    size: Size,
    *,
    known: MaskedImage | Sequence[MaskedImage] | None = None,
    upscale_settings: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Tensor:
    """Codes (N, rows, columns) int64 of images of `size` (width, height) in pixels.

    `base` samples each image whole, in one window; `upscaler`, a prior with the condition low_res,
    enlarges the decoded images, again and again up to `size`. The codes are those of the
    upscaler's tokenizer. Both priors must have been loaded by load_prior.

    `options` are those of Prior.sample. Sampling settings, labels and condition_inputs are the
    base's, whose `stride` the upscaler takes too if it has windows; `upscale_settings` are sampling
    settings of the upscaler. `known`, one image or several that the samples take in turn, is what
    is known of the samples: in every stage, its codes are kept where its mask is true.
    `pipelines.generate --upscale` gives the same codes for the same settings. Raises ConfigError
    for priors, settings or images that cannot be used.
    """
    sizes = stage_sizes(size, composition_side(base), upscale_ratio(upscaler))
    tokenizers = [_tokenizer_of(prior) for prior in (base, upscaler)]
    of_all = {name: value for name, value in options.items() if name not in OF_BASE}
    of_upscaler = {**of_all, **upscale_settings}
    if upscaler.config.default_stride is None:
        of_upscaler.pop("stride", None)
    if "label" in upscaler.conditions.entries:
        of_upscaler["labels"] = options.get("labels")
    masked = {} if known is None else {KNOWN: [known] if isinstance(known, MaskedImage) else known}
    codes = _sample(base, tokenizers[0], sizes[0], masked, options)
    for before, after in pairwise(sizes):
        decoder = tokenizers[0] if before == sizes[0] else tokenizers[1]
        images = [_image(decoder, one, before) for one in codes]
        codes = _sample(upscaler, tokenizers[1], after, {LOW_RES: images, **masked}, of_upscaler)
    return codes


def _tokenizer_of(prior: Prior) -> VQGAN:
    if prior.folder is None:
        raise ConfigError("A cascade needs priors of folders, which say what their tokenizer is.")
    return find_tokenizer(prior.folder, prior, prior.device)


def _sample(
    prior: Prior,
    tokenizer: VQGAN,
    size: Size,
    inputs: Mapping[str, Sequence[Any]],
    options: Mapping[str, Any],
) -> Tensor:
    """Codes (N, rows, columns) of one stage, given `inputs` of conditions by name."""
    assert prior.folder is not None
    files = [
        ConditionFiles(name=name, path=Path(), items=tuple(items), digest="")
        for name, items in inputs.items()
    ]
    width, height = size
    encoder = make_condition_encoder(files, prior.folder, prior, tokenizer, (height, width))
    samples = range(len(GenerationConfig(**options).chosen))
    given = {**(options.get("condition_inputs") or {}), **encoder.condition_inputs(samples)}
    factor = tokenizer.config.downsample_factor
    return prior.sample(
        -(-height // factor),
        -(-width // factor),
        **{**options, "condition_inputs": given, "forced": encoder.forced(samples)},
    )


def _image(tokenizer: VQGAN, codes: Tensor, size: Size) -> ImageArray:
    """The image, uint8 (height, width, 3), of codes (rows, columns)."""
    return np.concatenate([*image_strips(tokenizer, codes.numpy(), *size)])
