"""The files of `--save images` and `--save tars`: PNGs, and WebDataset tars of them."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ops.files import NotRegularError
from ops.paths import AnyPath, P, join, open_binary, read_whole
from pipelines.exporting import npy_bytes
from pipelines.generation.index import sample_name
from pipelines.generation.sample_buffer import Codes
from pipelines.generation.settings import GenerationRequest

MAX_MEMBER_BYTES = 1 << 30
#: What tarfile raises for a tar that is none, or ends early.
TAR_ERRORS = (
    EOFError, NotRegularError, OSError, OverflowError, RecursionError, ValueError, tarfile.TarError,
)  # fmt: skip
#: What numpy raises for an array's file that is none.
ARRAY_ERRORS = (
    EOFError, MemoryError, OSError, OverflowError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


def image_path(out: P, sample: int) -> P:
    return join(out, f"{sample_name(sample)}.png")


def tar_path(out: P, number: int) -> P:
    return join(out, "tars", f"{number:05d}.tar")


def image_file(request: GenerationRequest, number: int, sample: int) -> str | None:
    """The PNG or tar that has a sample's image, below the folder of samples; None without one."""
    if "images" in request.save:
        return image_path(Path(), sample).name
    return str(tar_path(Path(), number)) if "tars" in request.save else None


# --- WebDataset tars


def tar_sample(
    name: str, image: AnyPath, codes: Codes, facts: dict[str, Any]
) -> dict[str, str | bytes]:
    """One sample: facts as JSON, codes (h, w) as npy, the PNG."""
    return {
        "__key__": name,
        "json": (json.dumps(facts) + "\n").encode(),
        "npy": npy_bytes(codes),
        "png": read_whole(image),
    }


def read_members(path: AnyPath, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(name without suffix, content) of a tar's files whose names end in `suffix`.

    Ends where the tar cannot be read, or does not go on.
    """
    last = -1
    try:
        with open_binary(path, follow=False) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                # The headers decide where the next member is: it must be later.
                if member.offset <= last or not 0 <= member.size <= MAX_MEMBER_BYTES:
                    return
                last = member.offset
                if member.isreg() and member.name.endswith(suffix):
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    yield member.name.removesuffix(suffix), content.read()
    except TAR_ERRORS:
        return


def codes_in_tar(path: AnyPath) -> dict[str, Codes]:
    """Codes (h, w) by a sample's name, as far as the tar can be read."""
    found: dict[str, Codes] = {}
    for name, data in read_members(path, ".npy"):
        with contextlib.suppress(*ARRAY_ERRORS):
            found[name] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return found
