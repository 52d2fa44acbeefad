import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.config import ConfigError
from tokenizer.lookup_free import FiniteScalarQuantizer
from tokenizer.quantizers import QUANTIZERS, QuantizerConfig, VectorQuantizer, nearest_codes

CONFIGS = {
    "vq": QuantizerConfig(kind="vq", codebook_size=32, code_dim=4),
    "fsq": QuantizerConfig(kind="fsq", codebook_size=60, code_dim=3, levels=(5, 4, 3)),
}


def make(name):
    torch.manual_seed(0)
    return QUANTIZERS[name](CONFIGS[name])


def latents_for(quantizer, spread=1.0):
    return spread * torch.randn(2, quantizer.code_dim, 5, 7)


def test_every_quantizer_has_a_config_here():
    assert set(CONFIGS) == set(QUANTIZERS)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_lookup_of_codes_gives_the_latents_back(name):
    quantizer = make(name).eval()
    latents = latents_for(quantizer)
    quantized = quantizer(latents)
    assert quantized.codes.shape == (2, 5, 7)
    assert quantized.codes.dtype == torch.int64
    assert torch.equal(quantizer.lookup(quantized.codes), quantized.latents)
    assert torch.equal(quantizer.assign(latents), quantized.codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_code_looked_up_is_assigned_to_itself(name):
    quantizer = make(name).eval()
    codes = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    latents = quantizer.lookup(codes)
    if name == "fsq":  # its latents are bounded; invert the bound to ask again
        half = (quantizer.levels.view(1, -1, 1, 1) - 1) * (1 + 1e-3) / 2
        offset = ((quantizer.levels + 1) % 2).view(1, -1, 1, 1) * 0.5
        places = latents * (quantizer.levels // 2).view(1, -1, 1, 1)
        latents = ((places + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(quantizer.assign(latents), codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_gradient_passes_straight_through(name):
    quantizer = make(name).train()
    latents = latents_for(quantizer, spread=0.1).requires_grad_()
    quantized = quantizer(latents)
    assert torch.allclose(quantized.latents, quantizer.lookup(quantized.codes), atol=1e-5)
    quantized.latents.sum().backward()
    assert latents.grad is not None
    assert (latents.grad > 0).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_assigning_changes_no_state(name):
    quantizer = make(name).train()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer.assign(latents_for(quantizer))
    assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())


def test_vq_loss_is_the_papers_with_beta_on_the_commitment_term():
    quantizer = make("vq").eval()
    latents = latents_for(quantizer).requires_grad_()
    quantized = quantizer(latents)
    codebook = quantizer.embedding.weight
    chosen = codebook[quantized.codes].movedim(-1, 1)
    expected = (chosen - latents).square().mean() * 1.25
    assert torch.allclose(quantized.loss, expected)
    quantized.loss.backward()
    # d/dz of beta*|z - sg(e)|^2 is 2*beta*(z - e)/n, and nothing from the codebook term.
    pull = 2 * 0.25 * (latents - chosen).detach() / latents.numel()
    assert torch.allclose(latents.grad, pull, atol=1e-7)


@given(seed=st.integers(0, 1000), count=st.integers(1, 70), size=st.integers(1, 40))
def test_nearest_codes_are_those_of_the_whole_distance_matrix(seed, count, size):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    codebook = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    distances = (vectors[:, None] - codebook[None]).square().sum(-1)
    assert torch.equal(nearest_codes(vectors, codebook), distances.argmin(1))


def test_nearest_codes_work_in_slices(monkeypatch):
    vectors, codebook = torch.randn(100, 4), torch.randn(16, 4)
    whole = nearest_codes(vectors, codebook)
    monkeypatch.setattr("tokenizer.quantizers.DISTANCES_AT_ONCE", 16 * 7)
    assert torch.equal(nearest_codes(vectors, codebook), whole)


def test_the_codebook_starts_as_latents_of_the_first_batch():
    quantizer = make("vq").train()
    latents = 5 + latents_for(quantizer, spread=0.1)
    codes = quantizer(latents).codes
    assert (quantizer.embedding.weight > 4).all()
    assert len(codes.unique()) > 8  # a codebook near zero would answer with one code


def test_a_code_unused_for_long_is_drawn_anew_and_a_used_one_is_not():
    config = QuantizerConfig(kind="vq", codebook_size=4, code_dim=2, restart_after=3)
    quantizer = VectorQuantizer(config).train()
    quantizer.is_initialised.fill_(True)
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1], [50, 50]])
    quantizer.embedding.weight.data.copy_(corners)
    latents = corners[:3].T.reshape(1, 2, 1, 3).clone()
    for _ in range(2):
        quantizer(latents)
    assert torch.equal(quantizer.embedding.weight.data, corners)
    quantizer(latents)
    assert torch.equal(quantizer.embedding.weight.data[:3], corners[:3])
    assert (quantizer.embedding.weight.data[3] < 3).all()


def test_fsq_numbers_levels_in_mixed_radix():
    quantizer = FiniteScalarQuantizer(CONFIGS["fsq"])
    digits = list(itertools.product(range(3), range(4), range(5)))  # the last runs fastest
    latents = quantizer.lookup(torch.arange(60).view(1, 1, 60))[0, :, 0].T
    half = torch.tensor([2, 2, 1])
    expected = torch.tensor([(a, b, c) for c, b, a in digits])
    assert torch.equal((latents * half + half).round().long(), expected)


def test_fsq_reaches_every_level_and_no_other():
    quantizer = FiniteScalarQuantizer(CONFIGS["fsq"])
    ramp = torch.linspace(-20, 20, 4001).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    latents = quantizer(ramp).latents[0, :, 0]
    for channel, levels in enumerate((5, 4, 3)):
        assert len(latents[channel].unique()) == levels


def test_fsq_levels_that_disagree_with_the_codebook_are_refused():
    with pytest.raises(ConfigError, match="60 codes of dimension 3"):
        FiniteScalarQuantizer(
            QuantizerConfig(kind="fsq", codebook_size=64, code_dim=3, levels=(5, 4, 3))
        )
