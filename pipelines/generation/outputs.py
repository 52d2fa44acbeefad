"""The files of `--save images` and `--save tars`: PNGs, and WebDataset tars of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ops.files import atomic_path
from ops.images import to_image
from ops.png import write_png_strips
from pipelines.generation.index import sample_name
from pipelines.generation.sample_buffer import Codes
from pipelines.generation.settings import GenerationRequest
from tokenizer import VQGAN, decode_strips


def image_path(out: Path, sample: int) -> Path:
    return out / f"{sample_name(sample)}.png"


def tar_path(out: Path, number: int) -> Path:
    return out / "tars" / f"{number:05d}.tar"


def image_file(request: GenerationRequest, number: int, sample: int) -> str | None:
    """The PNG or tar that has a sample's image, below the folder of samples; None without one."""
    if "images" in request.save:
        return image_path(Path(), sample).name
    return str(tar_path(Path(), number)) if "tars" in request.save else None


# --- images


def write_image(path: Path, tokenizer: VQGAN, codes: Codes, width: int, height: int) -> None:
    """Decode codes (h, w) and write the PNG, a strip at a time where the tokenizer is local."""
    # One image at a time: its pixels must not depend on others in a batch.
    device = next(tokenizer.parameters()).device
    tokens = torch.from_numpy(codes.astype(np.int64))[None].to(device)
    strips = decode_strips(tokenizer, tokens, (height, width))
    write_png_strips(path, width, height, (to_image(strip)[0] for strip in strips))


# --- WebDataset tars


def write_tar(path: Path, members: Iterator[tuple[str, bytes | Path]]) -> None:
    """A tar of (name, content) that appears whole; the same members give the same bytes."""
    with (
        atomic_path(path) as partial,
        tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in members:
            member = tarfile.TarInfo(name)  # without time and owner: equal content, equal bytes
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.size = content.stat().st_size
                with open(content, "rb") as file:
                    tar.addfile(member, file)


def members_of(
    name: str, image: Path, codes: Codes, facts: dict[str, Any]
) -> Iterator[tuple[str, bytes | Path]]:
    """The (name, content) members of one sample: facts as JSON, codes (h, w) as npy, the PNG."""
    array = io.BytesIO()
    np.save(array, codes)
    yield f"{name}.json", (json.dumps(facts) + "\n").encode()
    yield f"{name}.npy", array.getvalue()
    yield f"{name}.png", image


def codes_in_tar(path: Path) -> dict[str, Codes]:
    """Codes (h, w) by a sample's name, as far as the tar can be read."""
    found: dict[str, Codes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".npy"):
                    file = tar.extractfile(member)
                    assert file is not None
                    data = io.BytesIO(file.read())
                    found[member.name.removesuffix(".npy")] = np.load(data, allow_pickle=False)
    except (OSError, ValueError, tarfile.TarError):
        pass
    return found
