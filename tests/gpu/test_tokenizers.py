"""Codes and pixels of a GPU against those of the CPU, and against themselves."""

import pytest
import torch

from ops.precision import autocast
from tests.conftest import photograph
from tokenizer import PRESETS, build_tokenizer, load_tokenizer

pytestmark = pytest.mark.gpu

#: Latents as far apart as this, relative to the codes' distance, may fall on either side.
TIE = 1e-3


def pixels_of(count, size=64):
    images = [torch.from_numpy(photograph(seed, size, size)) for seed in range(count)]
    return torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def latents_of(model, pixels):
    return model.pre_quant(model.encoder(pixels)).float()


@pytest.fixture(params=["photo-f8", "tiny"])
def tokenizers(request, gpu):
    """One on the CPU, and the same on the GPU."""
    name = request.param
    made = [
        load_tokenizer(name) if name == "photo-f8" else build_tokenizer(name, seed=0)
        for _ in range(2)
    ]
    return made[0].eval(), made[1].to(gpu).eval()


@torch.inference_mode()
def test_codes_in_float32_are_those_of_the_cpu_up_to_ties(tokenizers, gpu):
    ours, theirs = tokenizers
    pixels = pixels_of(4)
    latents, found = latents_of(ours, pixels), latents_of(theirs, pixels.to(gpu)).cpu()
    torch.testing.assert_close(latents, found, rtol=1e-3, atol=1e-4)
    here, there = ours.encode(pixels), theirs.encode(pixels.to(gpu)).cpu()
    differing = here != there
    assert differing.double().mean() <= 0.01
    # Where codes differ, the CPU's latents are about as near to the one as to the other.
    near = (latents - ours.quantizer.lookup(here)).square().sum(1).sqrt()
    other = (latents - ours.quantizer.lookup(there)).square().sum(1).sqrt()
    assert ((other - near)[differing] <= TIE * (near[differing] + 1)).all()


@torch.inference_mode()
def test_pixels_in_float32_are_those_of_the_cpu(tokenizers, gpu):
    ours, theirs = tokenizers
    codes = ours.encode(pixels_of(2))
    expected, found = ours.decode(codes), theirs.decode(codes.to(gpu)).cpu()
    torch.testing.assert_close(expected, found, rtol=1e-3, atol=2e-3)


@torch.inference_mode()
def test_a_batch_repeats_bit_for_bit_whatever_else_is_in_it(tokenizers, gpu):
    _, model = tokenizers
    pixels = pixels_of(4).to(gpu)
    codes = model.encode(pixels)
    assert torch.equal(model.encode(pixels), codes)
    others = torch.cat([pixels[:1], pixels_of(4)[1:].flip(0).to(gpu)])
    assert torch.equal(model.encode(others)[0], codes[0])
    assert torch.equal(model.decode(codes[:1]), model.decode(codes[:1]))


@pytest.mark.parametrize("kind", sorted({preset.quantizer.kind for preset in PRESETS.values()}))
@torch.inference_mode()
def test_every_kind_of_quantizer_encodes_and_decodes_in_bfloat16(kind, gpu):
    name = next(name for name, preset in PRESETS.items() if preset.quantizer.kind == kind)
    model = build_tokenizer(name, seed=0).to(gpu).eval()
    with autocast(gpu, "bfloat16"):
        codes = model.encode(pixels_of(1, 32).to(gpu))
        pixels = model.decode(codes)
    assert codes.min() >= 0
    assert codes.max() < model.config.codebook_size
    assert torch.isfinite(pixels).all()
