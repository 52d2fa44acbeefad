"""The bundled tokenizer: sizes, quality and exact tiles on real photographs."""

import numpy as np
import pytest
import torch
from skimage import data

from ops.images import resize_and_crop, to_image, to_pixels
from ops.metrics import psnr
from tokenizer import bundled_tokenizers, decode_tiled, encode_tiled, load_tokenizer
from tokenizer.model_folder import WEIGHTS

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def photo_f8():
    return load_tokenizer("photo-f8")


def squares(size):
    images = [resize_and_crop(getattr(data, name)(), size) for name in PHOTOGRAPHS]
    return to_pixels(np.stack(images))


def test_sizes_are_within_their_bounds(photo_f8):
    assert "photo-f8" in bundled_tokenizers()
    assert photo_f8.config.downsample_factor == 8
    assert 1024 <= photo_f8.config.codebook_size <= 16384
    assert 2e6 < sum(p.numel() for p in photo_f8.parameters()) < 10e6
    assert (WEIGHTS / "photo-f8" / "model.safetensors").stat().st_size <= 32e6


def test_the_model_card_has_the_fingerprint(photo_f8):
    assert photo_f8.fingerprint in (WEIGHTS / "photo-f8" / "README.md").read_text()


def test_photographs_are_reconstructed_with_their_colours(photo_f8):
    pixels = squares(256)
    codes = photo_f8.encode(pixels)
    rebuilt = photo_f8.decode(codes)
    values = psnr(rebuilt, pixels)
    assert values.mean() > 22.5
    assert values.min() > 20
    assert len(codes.unique()) > 1000
    colour = pixels - pixels.mean(1, keepdim=True)
    found = (rebuilt - rebuilt.mean(1, keepdim=True)) * colour
    assert found.mean() > 0.7 * colour.square().mean()


def test_tiles_of_a_photograph_are_exact(photo_f8):
    pixels = to_pixels(data.coffee()[:270, :410])
    codes = photo_f8.encode(pixels)
    assert codes.shape == (1, 34, 52)
    assert torch.equal(encode_tiled(photo_f8, pixels, tile=128), codes)
    whole = photo_f8.decode(codes, size=(270, 410))
    tiled = decode_tiled(photo_f8, codes, size=(270, 410), tile=11)
    assert torch.equal(torch.from_numpy(to_image(tiled)), torch.from_numpy(to_image(whole)))
