import pytest
import torch

from ops.config import ConfigError
from tokenizer import PRESETS
from tokenizer.autoencoder import AutoencoderConfig, Decoder, Encoder, decoder_halo, encoder_halo

LOCAL = {
    name: preset.autoencoder for name, preset in PRESETS.items() if preset.autoencoder.is_local
}


def small(**changes):
    return AutoencoderConfig(
        **{
            "channels": 8,
            "channel_mult": (1, 2),
            "num_res_blocks": 1,
            "decoder_res_blocks": 1,
            "attention_levels": (1,),
            "latent_channels": 4,
            "norm_groups": 4,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("patch_size", "channel_mult", "factor"),
    [(1, (1, 2), 2), (1, (1, 1, 2, 2, 4), 16), (4, (1, 2), 8), (2, (1,), 2)],
)
def test_latents_are_smaller_by_the_downsample_factor(patch_size, channel_mult, factor):
    config = small(patch_size=patch_size, channel_mult=channel_mult)
    assert config.downsample_factor == factor
    latents = Encoder(config)(torch.zeros(2, 3, 2 * factor, 3 * factor))
    assert latents.shape == (2, 4, 2, 3)
    assert Decoder(config)(latents).shape == (2, 3, 2 * factor, 3 * factor)


def test_the_papers_f16_has_the_published_number_of_parameters():
    with torch.device("meta"):
        config = AutoencoderConfig()
        encoder, decoder = Encoder(config), Decoder(config)
    assert sum(p.numel() for p in encoder.parameters()) == 29_298_176
    assert sum(p.numel() for p in decoder.parameters()) == 42_449_795


def test_attention_and_group_norm_are_not_local():
    assert not small().is_local
    assert not small(norm="channel").is_local
    assert not small(attention_levels=()).is_local
    assert small(norm="channel", attention_levels=()).is_local


@pytest.mark.parametrize("name", LOCAL)
def test_no_pixel_beyond_the_halo_reaches_a_latent(name):
    config = LOCAL[name]
    torch.manual_seed(0)
    encoder = Encoder(config).double()
    factor, halo = config.downsample_factor, encoder_halo(config)
    cells = 2 * (halo // factor) + 8
    pixels = torch.randn(1, 3, factor, cells * factor, dtype=torch.float64, requires_grad=True)
    middle = cells // 2
    encoder(pixels)[..., middle].sum().backward()
    reached = pixels.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    first, last = int(reached.min()), int(reached.max())
    assert middle * factor - first <= halo
    assert last - (middle + 1) * factor + 1 <= halo
    assert max(middle * factor - first, last - (middle + 1) * factor + 1) > halo - 2 * factor


@pytest.mark.parametrize("name", LOCAL)
def test_no_code_beyond_the_halo_reaches_a_pixel(name):
    config = LOCAL[name]
    torch.manual_seed(0)
    decoder = Decoder(config).double()
    factor, halo = config.downsample_factor, decoder_halo(config)
    cells = 2 * halo + 5
    latents = torch.randn(1, config.latent_channels, 1, cells, dtype=torch.float64)
    latents.requires_grad_()
    middle = cells // 2
    decoder(latents)[..., middle * factor : (middle + 1) * factor].square().sum().backward()
    reached = latents.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert halo - 1 <= max(middle - int(reached.min()), int(reached.max()) - middle) <= halo


def test_widths_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ConfigError, match="groups"):
        small(norm_groups=3)
    with pytest.raises(ConfigError, match="norm must be"):
        small(norm="batch")
