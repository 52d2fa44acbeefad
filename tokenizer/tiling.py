"""Encode and decode images larger than memory, tile by tile.

A local tokenizer (channel norm, no attention) is exact in tiles: each tile is computed with the
neighbourhood that its result depends on, and only the inner part is kept. In any other tokenizer
every position depends on the whole image, so it is run whole; tiles would leave visible seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from ops.windows import Window, tiles
from tokenizer.autoencoder import decoder_halo, encoder_halo
from tokenizer.vqgan import VQGAN, check_finite, pad_to_multiple


def encode_tiled(model: VQGAN, pixels: Tensor, tile: int = 1024) -> Tensor:
    """VQGAN.encode in tiles of `tile` x `tile` pixels: pixels (B, C, H, W) -> codes (B, h, w)."""
    config = model.config.autoencoder
    factor = config.downsample_factor
    if not config.is_local:
        return model.encode(pixels)
    padded = pad_to_multiple(pixels, factor)
    rows, columns = padded.shape[2] // factor, padded.shape[3] // factor
    halo = -(-encoder_halo(config) // factor)
    codes = torch.empty(len(pixels), rows, columns, dtype=torch.int64, device=pixels.device)
    for part in tiles(rows, columns, max(1, tile // factor), halo):
        found = model.encode(padded[:, :, *_scaled(part.outer, factor)], check=False)
        codes[:, *part.inner.slices()] = found[:, *part.inner_in_outer().slices()]
    check_finite(codes)
    return codes


def decode_tiled(
    model: VQGAN, codes: Tensor, size: tuple[int, int] | None = None, tile: int = 64
) -> Tensor:
    """VQGAN.decode in tiles of `tile` x `tile` codes: codes (B, h, w) -> pixels (B, C, H, W).

    The result is float32 on the CPU, since it may be larger than a GPU's memory.
    """
    return torch.cat(list(decode_strips(model, codes, size, tile)), dim=2)


@torch.no_grad()
def decode_strips(
    model: VQGAN, codes: Tensor, size: tuple[int, int] | None = None, tile: int = 64
) -> Iterator[Tensor]:
    """The pixels of decode_tiled as strips (B, C, h, W) of `tile` codes, from top to bottom.

    A tokenizer that is not local gives one strip. A GPU is waited for once a strip.
    """
    config = model.config.autoencoder
    factor = config.downsample_factor
    count, rows, columns = codes.shape
    if not config.is_local:
        yield model.decode(codes, size).float().cpu()
        return
    model.check_codes(codes)
    height, width = size or (rows * factor, columns * factor)
    parts = tiles(rows, columns, tile, decoder_halo(config))
    while row_tiles := list(islice(parts, -(-columns // tile))):
        top, bottom = row_tiles[0].inner.row, row_tiles[0].inner.row + row_tiles[0].inner.rows
        shape = (count, config.image_channels, (bottom - top) * factor, columns * factor)
        strip = torch.empty(shape, device=codes.device)
        for part in row_tiles:
            decoded = model.decode(codes[:, *part.outer.slices()], check=False)
            kept = decoded[:, :, *_scaled(part.inner_in_outer(), factor)]
            strip[..., _scaled(part.inner, factor)[1]] = kept
        yield strip.cpu()[:, :, : max(0, height - top * factor), :width]


def _scaled(window: Window, factor: int) -> tuple[slice, slice]:
    """The slices of the pixels that a window of codes covers."""
    return Window(*(number * factor for number in window)).slices()
