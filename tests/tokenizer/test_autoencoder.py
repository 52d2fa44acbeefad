import pytest
import torch

from ops.config import ConfigError
from tokenizer import PRESETS
from tokenizer.autoencoder import (
    AttnBlock,
    AutoencoderConfig,
    Decoder,
    Encoder,
    decoder_halo,
    encoder_halo,
)

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
    [
        (1, (1, 2), 2),
        (1, (1, 1, 2), 4),
        (1, (1, 2, 2, 4), 8),
        (1, (1, 1, 2, 2, 4), 16),
        (1, (1, 1, 1, 2, 2, 4), 32),
        (4, (1, 2), 8),
        (2, (1,), 2),
    ],
)
def test_latents_are_smaller_by_the_downsample_factor(patch_size, channel_mult, factor):
    config = small(patch_size=patch_size, channel_mult=channel_mult)
    assert config.downsample_factor == factor
    latents = Encoder(config)(torch.zeros(2, 3, 2 * factor, 3 * factor))
    assert latents.shape == (2, 4, 2, 3)
    assert Decoder(config)(latents).shape == (2, 3, 2 * factor, 3 * factor)


def test_the_decoder_may_be_wider_than_the_encoder():
    wide = small(decoder_channels=16)
    assert Encoder(wide).conv_in.weight.shape == Encoder(small()).conv_in.weight.shape
    decoder = Decoder(wide)
    assert decoder.conv_in.weight.shape[0] == 2 * Decoder(small()).conv_in.weight.shape[0]
    assert decoder(torch.zeros(1, 4, 2, 3)).shape == (1, 3, 4, 6)
    with pytest.raises(ConfigError, match="6 x 1 channels are not divisible by 4 groups"):
        small(decoder_channels=6)


def test_the_papers_f16_has_the_published_number_of_parameters():
    with torch.device("meta"):
        config = AutoencoderConfig()
        encoder, decoder = Encoder(config), Decoder(config)
    assert sum(p.numel() for p in encoder.parameters()) == 29_298_176
    assert sum(p.numel() for p in decoder.parameters()) == 42_449_795


def test_attention_and_group_norm_are_not_local():
    assert not small().is_local
    assert not small(norm="channel").is_local
    assert not small(attention_levels=(), mid_attention=False).is_local
    assert not small(norm="channel", attention_levels=()).is_local
    assert small(norm="channel", attention_levels=(), mid_attention=False).is_local
    assert small(norm="channel", attention_levels=(), mid_block=False).is_local


@pytest.mark.parametrize("name", LOCAL)
def test_a_latent_depends_on_no_pixel_beyond_the_halo(name):
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
def test_a_pixel_depends_on_no_code_beyond_the_halo(name):
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


def slow_attention(block, x):
    """Attention computed position by position."""
    normed = block.norm(x)
    q, k, v = (layer(normed).flatten(2)[0] for layer in (block.q, block.k, block.v))
    out = torch.stack(
        [v @ ((q[:, i] @ k) / q.shape[0] ** 0.5).softmax(0) for i in range(q.shape[1])], dim=1
    )
    return x + block.proj_out(out.view_as(x))


def test_attention_is_the_papers_and_only_at_the_given_levels():
    torch.manual_seed(0)
    block = AttnBlock(small(), 8).double()
    x = torch.randn(1, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), slow_attention(block, x))

    config = small(channel_mult=(1, 2, 2), attention_levels=(1,), mid_attention=False)
    for network, blocks in ((Encoder(config), 1), (Decoder(config), 1)):
        found = [m for m in network.modules() if isinstance(m, AttnBlock)]
        assert len(found) == blocks
    assert [m for m in Encoder(small(attention_levels=())).blocks if isinstance(m, AttnBlock)]


def test_recompute_gives_identical_bits_and_saves_fewer_values():
    torch.manual_seed(0)
    network = Encoder(small(dropout=0.5))
    pixels = torch.randn(2, 3, 16, 16)
    found = []
    for recompute in (False, True):
        network.blocks.recompute = recompute
        network.zero_grad()
        torch.manual_seed(1)  # for the dropout
        saved = 0

        def save(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            latents = network(pixels)
        latents.square().sum().backward()
        found.append((latents, saved, [p.grad.clone() for p in network.parameters()]))
    (plain, all_saved, gradients), (again, few_saved, same) = found
    assert torch.equal(plain, again)
    assert all(torch.equal(*pair) for pair in zip(gradients, same, strict=True))
    assert few_saved < 0.4 * all_saved


def test_channels_not_divisible_by_the_groups_are_refused():
    with pytest.raises(ConfigError, match="groups"):
        small(norm_groups=3)
    with pytest.raises(ConfigError, match="norm must be"):
        small(norm="batch")
