import dataclasses

import pytest
import torch

from ops.checkpoint import CheckpointError
from ops.config import ConfigError
from ops.precision import use_precision
from tokenizer import (
    PRESETS,
    VQGAN,
    VQGANConfig,
    build_tokenizer,
    decode_tiled,
    encode_tiled,
    load_tokenizer,
    save_tokenizer,
)
from tokenizer.quantizers import QuantizerConfig
from tokenizer.vqgan import pad_to_multiple


@pytest.fixture
def tiny():
    return build_tokenizer("tiny", seed=1).eval().requires_grad_(False)


def pixels_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(64, 48), (61, 50), (8, 8), (1, 1), (3, 200)])
def test_any_size_is_padded_and_cropped_back(tiny, height, width):
    codes = tiny.encode(pixels_of(height, width))
    assert codes.shape == (1, -(-height // 8), -(-width // 8))
    assert tiny.decode(codes, size=(height, width)).shape == (1, 3, height, width)


def test_padding_reflects_and_keeps_the_image():
    pixels = pixels_of(13, 16)
    padded = pad_to_multiple(pixels, 8)
    assert padded.shape[-2:] == (16, 16)
    assert torch.equal(padded[:, :, :13], pixels)
    assert torch.equal(padded[:, :, 13], pixels[:, :, 11])


def test_decoding_never_clamps(tiny):
    tiny.decoder.conv_out.bias.fill_(7.0)
    assert tiny.decode(torch.zeros(1, 2, 2, dtype=torch.int64)).mean() > 2


def test_codes_do_not_depend_on_the_batch_around_them(tiny):
    first, second = pixels_of(64, 64, seed=1), pixels_of(64, 64, seed=2)
    joint = tiny.encode(torch.cat([first, second]))
    assert torch.equal(joint, torch.cat([tiny.encode(first), tiny.encode(second)]))


def test_tiles_give_the_codes_and_pixels_of_the_whole_image(tiny):
    pixels = pixels_of(200, 333)
    codes = tiny.encode(pixels)
    assert torch.equal(encode_tiled(tiny, pixels, tile=64), codes)
    whole = tiny.decode(codes, size=(200, 333))
    for tile in (1, 5, 16, 100):
        tiled = decode_tiled(tiny, codes, size=(200, 333), tile=tile)
        assert torch.allclose(tiled, whole, atol=2e-5)


def test_a_tokenizer_that_is_not_local_is_not_tiled():
    config = dataclasses.replace(PRESETS["tiny"].autoencoder, norm="group", norm_groups=8)
    model = VQGAN(VQGANConfig(autoencoder=config, quantizer=PRESETS["tiny"].quantizer)).eval()
    pixels = pixels_of(96, 96)
    codes = model.encode(pixels)
    assert torch.equal(encode_tiled(model, pixels, tile=32), codes)
    assert torch.equal(decode_tiled(model, codes, tile=4), model.decode(codes).detach())


def test_invalid_pixels_and_codes_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"float pixels \(B, 3, H, W\)"):
        tiny.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="float pixels"):
        tiny.encode(torch.zeros(3, 8, 8))
    with pytest.raises(ConfigError, match="the codebook has 256"):
        tiny.decode(torch.full((1, 2, 2), 256))


def test_the_fingerprint_depends_only_on_what_decides_the_codes(tiny):
    before = tiny.fingerprint
    tiny.decoder.conv_out.weight.add_(1)
    assert tiny.fingerprint == before
    tiny.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert tiny.fingerprint != before
    assert build_tokenizer("tiny", seed=1).fingerprint == before
    assert build_tokenizer("tiny", seed=2).fingerprint != before


def test_the_fingerprint_does_not_depend_on_the_size_of_the_decoder(tiny):
    autoencoder = dataclasses.replace(
        tiny.config.autoencoder, decoder_channels=64, decoder_res_blocks=2
    )
    other = VQGAN(dataclasses.replace(tiny.config, autoencoder=autoencoder))
    other.encoder.load_state_dict(tiny.encoder.state_dict())
    other.pre_quant.load_state_dict(tiny.pre_quant.state_dict())
    other.quantizer.load_state_dict(tiny.quantizer.state_dict())
    assert other.fingerprint == tiny.fingerprint


def test_building_leaves_the_global_random_state_unchanged():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_tokenizer("tiny", seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_a_saved_tokenizer_loads_as_an_equal_one(tiny, tmp_path):
    save_tokenizer(tmp_path / "model", tiny)
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.fingerprint == tiny.fingerprint
    assert loaded.config == tiny.config
    assert loaded.folder == tmp_path / "model"
    assert loaded.name == "tiny"
    pixels = pixels_of(64, 64)
    assert torch.equal(loaded.encode(pixels), tiny.encode(pixels))


def test_half_weights_load_as_float32_with_their_own_fingerprint(tiny, tmp_path):
    save_tokenizer(tmp_path / "half", tiny, half=True)
    loaded = load_tokenizer(tmp_path / "half")
    assert next(loaded.parameters()).dtype == torch.float32
    save_tokenizer(tmp_path / "again", loaded, half=True)
    assert load_tokenizer(tmp_path / "again").fingerprint == loaded.fingerprint
    half = (tmp_path / "half" / "model.safetensors").stat().st_size
    save_tokenizer(tmp_path / "full", tiny)
    assert half < 0.6 * (tmp_path / "full" / "model.safetensors").stat().st_size


def test_unknown_tokenizers_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(CheckpointError, match="neither a folder nor one of the bundled"):
        load_tokenizer("nonesuch")
    with pytest.raises(CheckpointError, match="neither a model folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="there are tiny"):
        build_tokenizer("nonesuch")


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(ConfigError, match="there are gumbel, "):
        VQGANConfig(quantizer=QuantizerConfig(kind="nonesuch"))


def test_a_training_forward_gives_gradients_to_encoder_and_decoder(tiny):
    model = build_tokenizer("tiny").train()
    result = model(pixels_of(64, 64))
    (result.pixels.square().mean() + result.quantizer_loss).backward()
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "pre_quant.weight"):
        assert dict(model.named_parameters())[name].grad.abs().sum() > 0


# Downsample factor, codes, and parameters as counted in the published code's model.
SIZES = {
    "tiny": (8, 256, None),
    "photo-f8": (8, 15360, None),
    "study-f4": (4, 512, None),
    "study-f8": (8, 512, None),
    "study-f16": (16, 512, None),
    "imagenet-f16-1024": (16, 1024, 72_141_699),
    "imagenet-f16-16384": (16, 16384, 72_141_699 + 15360 * 256),
    "faces-f16": (16, 1024, 72_141_699),
    "vqvae-f16": (16, 1024, 72_141_699),
    "f8-8192-gumbel": (8, 8192, 68_995_971),
    "f8-16384": (8, 16384, 67_717_295),
    "f4-8192": (4, 8192, 55_322_782),
    "llamagen-f16": (16, 16384, 71_883_403),
    "llamagen-f8": (8, 16384, 70_109_835),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_sizes(preset):
    config, (factor, codes, parameters) = PRESETS[preset], SIZES[preset]
    assert (config.downsample_factor, config.codebook_size) == (factor, codes)
    with torch.device("meta"):
        count = sum(p.numel() for p in VQGAN(config).parameters())
    assert parameters in (None, count)


@pytest.mark.parametrize("preset", ["tiny", "photo-f8"])
def test_bfloat16_weights_encode_and_decode(preset):
    model = VQGAN(PRESETS[preset]).eval().bfloat16()
    seen, assign = [], model.quantizer.assign
    model.quantizer.assign = lambda latents: assign(seen.append(latents.dtype) or latents)
    codes = model.encode(pixels_of(16, 16))
    assert seen == [torch.float32]
    assert codes.dtype == torch.int64
    assert model.decode(codes).dtype == torch.bfloat16


def test_quantization_and_codes_stay_in_full_precision_under_autocast(tiny):
    seen, pixels = [], pixels_of(32, 32)
    tiny.quantizer.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    expected = tiny.encode(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiny.encode(pixels), expected)
        assert tiny(pixels).pixels.dtype == torch.bfloat16
    assert seen == [torch.float32]


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_the_nearest_code_is_searched_in_float32_in_every_precision(precision):
    model = build_tokenizer("tiny", seed=0)
    seen = []
    search = model.quantizer.assign

    def assign(latents):
        seen.append((latents.dtype, (latents[0] @ latents[0]).dtype))
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return search(latents)

    model.quantizer.assign = assign
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = build_tokenizer("tiny", seed=0).encode(pixels)
    try:
        use_precision(precision)
        codes = model.encode(pixels, precision=precision)
    finally:
        use_precision("float32")
    assert seen == [(torch.float32, torch.float32), False]
    same = (codes == exact).float().mean()
    assert same == 1 if precision == "tf32" else 0.8 < same < 1  # a CPU has no TF32
