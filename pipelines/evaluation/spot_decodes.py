"""Some rows of a store, decoded by its own tokenizer, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ops.images import image_grid, resize_and_crop, write_png
from pipelines.evaluation.store_rows import RowLines
from pipelines.store import CodeStore, grid_shape
from tokenizer import decode_tiled, load_tokenizer

SIDE = 256  # pixels, of each image in the PNG
COLUMNS = 4


def write_spot_decodes(
    path: Path, store: CodeStore, lines: RowLines, positions: Sequence[int]
) -> None:
    """Write the rows at `positions` of the store, row by row, each scaled and cut to a square."""
    tokenizer = load_tokenizer(store.tokenizer_folder)
    modality, images = tokenizer.modality, []
    for position in positions:
        (codes,) = lines.read(np.array([position]))
        shape = grid_shape(lines.grids[lines.grid_numbers[position]])
        decoded = decode_tiled(tokenizer, torch.from_numpy(codes.reshape(1, *shape)))
        image = modality.images(modality.rebuilt(decoded.float()))[0]
        images.append(resize_and_crop(image, SIDE))
    write_png(path, image_grid(np.stack(images), COLUMNS))
