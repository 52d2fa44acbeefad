"""Encode and decode images larger than memory, tile by tile.

A local tokenizer (channel norm, no attention) is exact in tiles: each tile is computed with the
neighbourhood its result can depend on, and only its own part is kept. Any other tokenizer sees the
whole image at every position, so it is run whole: tiles would show as seams.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokenizer.autoencoder import decoder_halo, encoder_halo
from tokenizer.vqgan import VQGAN, pad_to_multiple


def encode_tiled(model: VQGAN, pixels: Tensor, tile: int = 1024) -> Tensor:
    """Codes (B, h, w) of pixels (B, 3, H, W), `tile` pixels a side at a time; as encode."""
    config = model.config.autoencoder
    factor = config.downsample_factor
    if not config.is_local:
        return model.encode(pixels)
    padded = pad_to_multiple(pixels, factor)
    rows, columns = padded.shape[2] // factor, padded.shape[3] // factor
    halo = -(-encoder_halo(config) // factor)
    codes = torch.empty(len(pixels), rows, columns, dtype=torch.int64, device=pixels.device)
    for top, bottom, above, below in _spans(rows, max(1, tile // factor), halo):
        for left, right, before, after in _spans(columns, max(1, tile // factor), halo):
            part = padded[:, :, above * factor : below * factor, before * factor : after * factor]
            found = model.encode(part)
            codes[:, top:bottom, left:right] = found[
                :, top - above : bottom - above, left - before : right - before
            ]
    return codes


def decode_tiled(
    model: VQGAN, codes: Tensor, size: tuple[int, int] | None = None, tile: int = 64
) -> Tensor:
    """Pixels (B, 3, H, W) of codes (B, h, w), `tile` codes a side at a time; as decode.

    The result is float32 on the CPU, since it may be larger than a GPU's memory.
    """
    config = model.config.autoencoder
    factor = config.downsample_factor
    if not config.is_local:
        with torch.no_grad():
            return model.decode(codes, size).float().cpu()
    count, rows, columns = codes.shape
    halo = decoder_halo(config)
    pixels = torch.empty(count, config.image_channels, rows * factor, columns * factor)
    for top, bottom, above, below in _spans(rows, tile, halo):
        for left, right, before, after in _spans(columns, tile, halo):
            with torch.no_grad():
                part = model.decode(codes[:, above:below, before:after])
            pixels[:, :, top * factor : bottom * factor, left * factor : right * factor] = part[
                :,
                :,
                (top - above) * factor : (bottom - above) * factor,
                (left - before) * factor : (right - before) * factor,
            ]
    return pixels if size is None else pixels[:, :, : size[0], : size[1]]


def _spans(length: int, tile: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, start with halo, end with halo) of the tiles that cover range(length)."""
    for start in range(0, length, tile):
        end = min(start + tile, length)
        yield start, end, max(0, start - halo), min(length, end + halo)
