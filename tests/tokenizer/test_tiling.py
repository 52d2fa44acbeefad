"""Decoding in strips gives the whole image."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tokenizer import (
    PRESETS,
    VQGAN,
    VQGANConfig,
    build_tokenizer,
    decode_strips,
    decode_tiled,
)


def codes_of(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(256, (2, rows, columns), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [None, (71, 51), (65, 56)])
def test_joined_strips_are_the_image_cropped_to_its_size(size: tuple[int, int] | None) -> None:
    model, codes = build_tokenizer("tiny", seed=0).eval(), codes_of(9, 7)
    strips = list(decode_strips(model, codes, size, tile=4))
    height, width = size or (72, 56)
    assert [strip.shape[2] for strip in strips] == [32, 32, height - 64]
    assert {strip.shape[3] for strip in strips} == {width}
    assert torch.equal(torch.cat(strips, dim=2), decode_tiled(model, codes, size, tile=4))
    assert torch.allclose(torch.cat(strips, dim=2), model.decode(codes, size), atol=2e-5)


def test_decoding_strips_leaves_grad_mode_unchanged() -> None:
    strips = decode_strips(build_tokenizer("tiny", seed=0).eval(), codes_of(9, 7), tile=4)
    assert not next(strips).requires_grad
    assert torch.is_grad_enabled()


def test_a_tokenizer_that_is_not_local_gives_one_strip() -> None:
    config = dataclasses.replace(PRESETS["tiny"].autoencoder, norm="group", norm_groups=8)
    model = VQGAN(VQGANConfig(autoencoder=config, quantizer=PRESETS["tiny"].quantizer)).eval()
    (strip,) = decode_strips(model, codes_of(9, 7), (70, 50), tile=4)
    assert strip.shape == (2, 3, 70, 50)
