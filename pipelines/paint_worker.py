"""Paints samples with a prior, decodes them and writes them: the work of one generation task."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ops.checkpoint import CheckpointError
from ops.config import ConfigError
from ops.files import write_bytes
from ops.images import to_image, write_png
from ops.runtime import keep_freed_memory, resolve_device
from pipelines.store import code_dtype
from prior import Prior, load_prior
from tokenizer import VQGAN, bundled_tokenizers, load_tokenizer
from tokenizer.tiling import decode_tiled


@dataclass(frozen=True, kw_only=True)
class PaintRequest:
    """What to paint, whichever samples a task names. Plain values: it travels to the workers."""

    prior: Path  # a run folder or model folder
    out: Path
    width: int  # pixels
    height: int
    seed: int
    stride: int
    batch_size: int
    labels: tuple[int, ...]  # sample k has labels[k % len]; none: no label
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance_scale: float
    device: str
    threads: int


class PaintWorker:
    """Holds a prior and its tokenizer; run(samples) leaves a .npy and a .png of each in `out`.

    `on_codes(n)` is called whenever n more codes are drawn.
    """

    def __init__(
        self, request: PaintRequest, on_codes: Callable[[int], None] | None = None
    ) -> None:
        keep_freed_memory()
        torch.set_num_threads(request.threads)
        self.request = request
        self.on_codes = on_codes
        device = resolve_device(request.device)
        self.prior = load_prior(request.prior, device)
        self.tokenizer = find_tokenizer(request.prior, self.prior, device)

    def run(self, samples: tuple[int, ...], /) -> int:
        """Paint `samples`, of one batch; returns how many. Running it again changes nothing."""
        request, labels, on_codes = self.request, self.request.labels, self.on_codes
        rows, columns = grid_for(request.height, request.width, self.tokenizer)
        codes = self.prior.paint(
            rows,
            columns,
            samples=samples,
            seed=request.seed,
            labels=[labels[sample % len(labels)] for sample in samples] if labels else None,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            guidance_scale=request.guidance_scale,
            stride=request.stride,
            batch_size=request.batch_size,
            progress=None if on_codes is None else lambda *_: on_codes(len(samples)),
        )
        for sample, own in zip(samples, codes, strict=True):
            self._write(sample, own)
        return len(samples)

    def _write(self, sample: int, codes: torch.Tensor) -> None:
        # One image at a time: what it looks like must not depend on a batch of others.
        size = (self.request.height, self.request.width)
        device = next(self.tokenizer.parameters()).device
        pixels = decode_tiled(self.tokenizer, codes[None].to(device), size)
        data = io.BytesIO()
        np.save(data, codes.numpy().astype(code_dtype(self.prior.config.codebook_size)))
        codes_path, picture_path = sample_paths(self.request.out, sample)
        write_bytes(codes_path, data.getvalue())
        write_png(picture_path, to_image(pixels)[0])  # last: a sample is done when it has this


def sample_paths(out: Path, sample: int) -> tuple[Path, Path]:
    """Where a sample's codes and its picture lie."""
    return out / f"sample-{sample:05d}.npy", out / f"sample-{sample:05d}.png"


def is_painted(out: Path, sample: int) -> bool:
    """Whether both files of a sample are there; each appears whole or not at all."""
    return all(path.is_file() for path in sample_paths(out, sample))


def grid_for(height: int, width: int, tokenizer: VQGAN) -> tuple[int, int]:
    """Rows and columns of codes that cover a picture; what is too much is cut off."""
    factor = tokenizer.config.downsample_factor
    return -(-height // factor), -(-width // factor)


def find_tokenizer(path: Path, prior: Prior, device: torch.device) -> VQGAN:
    """The tokenizer whose codes `prior`, loaded from `path`, speaks of.

    Looks for a folder `tokenizer` in the run or model folder, then for a bundled tokenizer of the
    recorded name. Raises CheckpointError where there is none, ConfigError for a foreign one.
    """
    assert prior.folder is not None
    places = (path, prior.folder, prior.folder.parent)
    found: Path | str | None = next(
        (place / "tokenizer" for place in places if (place / "tokenizer").is_dir()), None
    )
    name, wanted = prior.tokenizer_info["name"], prior.tokenizer_info["fingerprint"]
    if found is None and name in bundled_tokenizers():
        found = name
    if found is None:
        raise CheckpointError(
            f"{path} has no folder `tokenizer`, and {name!r} is not bundled. Copy the model folder "
            f"of the tokenizer with fingerprint {wanted} to {path / 'tokenizer'}."
        )
    tokenizer = load_tokenizer(found, device)
    if tokenizer.fingerprint != wanted:
        raise ConfigError(
            f"The prior in {path} speaks of codes of tokenizer {wanted} ({name}), but {found} is "
            f"{tokenizer.fingerprint}: its pictures would be noise. Put the right one there."
        )
    return tokenizer
