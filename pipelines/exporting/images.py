"""Images: every row decoded to a PNG, by the tokenizer that the store keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ops.files import make_folders, write_bytes
from ops.images import ImageArray, to_image
from ops.png import write_png_strips
from ops.runtime import resolve_device
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.shard_rows import Codes, ShardRows
from pipelines.store import CodeStore
from tokenizer import VQGAN, decode_strips, load_tokenizer


def image_strips(tokenizer: VQGAN, codes: Codes, width: int, height: int) -> Iterator[ImageArray]:
    """The image of codes (h, w) in strips, uint8 (h, width, 3); one where the tokenizer is not
    local."""
    # One image at a time: its pixels must not depend on others in a batch.
    device = next(tokenizer.parameters()).device
    tokens = torch.from_numpy(codes.astype(np.int64))[None].to(device)
    for strip in decode_strips(tokenizer, tokens, (height, width)):
        yield to_image(strip)[0]


class Images(ExportFormat):
    """`32x32-00000/000000000.png`, named for the rows, and `metadata.jsonl` with keys and classes.

    Image folders of Hugging Face's datasets have such a file.
    """

    decodes = True
    in_place = True

    def __init__(self, store: CodeStore, device: str) -> None:
        super().__init__(store, device)
        self._tokenizer = load_tokenizer(store.tokenizer_folder, resolve_device(device))

    def write(self, rows: ShardRows, folder: Path) -> None:
        place = folder / rows.name
        make_folders(place)
        factor = self._tokenizer.config.downsample_factor
        height, width = (side * factor for side in rows.codes.shape[1:])
        lines = []
        for codes, facts in zip(rows.codes, rows.facts(), strict=True):
            name = f"{facts['row']:09d}.png"
            lines.append(json.dumps({"file_name": name, **facts}, ensure_ascii=False) + "\n")
            if not (place / name).exists():
                strips = image_strips(self._tokenizer, codes, width, height)
                write_png_strips(place / name, width, height, strips)
        write_bytes(place / "metadata.jsonl", "".join(lines).encode())
