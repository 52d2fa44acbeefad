"""Quantizers without a codebook: FSQ and LFQ."""

import itertools

import pytest
import torch

from ops.config import ConfigError
from tokenizer.lookup_free import FiniteScalarQuantizer, LookupFreeQuantizer
from tokenizer.quantizers import QuantizerConfig

FSQ = QuantizerConfig(kind="fsq", codebook_size=60, code_dim=3, levels=(5, 4, 3))


def lfq(bits, **changes):
    config = QuantizerConfig(kind="lfq", codebook_size=2**bits, code_dim=bits, **changes)
    return LookupFreeQuantizer(config)


def test_fsq_numbers_levels_in_mixed_radix():
    quantizer = FiniteScalarQuantizer(FSQ)
    digits = list(itertools.product(range(3), range(4), range(5)))  # the last varies fastest
    latents = quantizer.lookup(torch.arange(60).view(1, 1, 60))[0, :, 0].T
    half = torch.tensor([2, 2, 1])
    expected = torch.tensor([(a, b, c) for c, b, a in digits])
    assert torch.equal((latents * half + half).round().long(), expected)


def test_fsq_reaches_exactly_its_levels():
    quantizer = FiniteScalarQuantizer(FSQ)
    ramp = torch.linspace(-20, 20, 4001).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    latents = quantizer(ramp).latents[0, :, 0]
    for channel, levels in enumerate((5, 4, 3)):
        assert len(latents[channel].unique()) == levels


def test_fsq_levels_that_disagree_with_the_codebook_are_refused():
    with pytest.raises(ConfigError, match="60 codes of dimension 3"):
        FiniteScalarQuantizer(
            QuantizerConfig(kind="fsq", codebook_size=64, code_dim=3, levels=(5, 4, 3))
        )


def test_lfq_reads_signs_as_bits_lowest_first():
    signs = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [-1, 1, -1], [1, 1, 1]])
    latents = (0.3 * signs).T.reshape(1, 3, 1, 4)
    assert lfq(3).assign(latents).flatten().tolist() == [0, 1, 2, 7]
    assert torch.equal(lfq(3).lookup(torch.tensor([[[0, 1, 2, 7]]]))[0, :, 0].T, signs)


@pytest.mark.parametrize("bits", [1, 4, 5])
def test_the_lfq_loss_equals_direct_computation_over_all_codes(bits):
    torch.manual_seed(0)
    latents = torch.randn(2, bits, 3, 4, dtype=torch.float64).requires_grad_()
    quantizer = lfq(bits, entropy_weight=0.3, entropy_temperature=0.5, commitment_weight=0.7)
    loss = quantizer(latents).loss
    (found,) = torch.autograd.grad(loss, latents)

    vectors = latents.movedim(1, -1).reshape(-1, bits)
    codebook = torch.tensor(list(itertools.product((-1.0, 1), repeat=bits))).double()
    distances = (vectors[:, None] - codebook[None]).square().sum(-1)
    probs = (-distances / 0.5).softmax(1)
    each = -(probs * probs.log()).sum(1).mean()
    of_mean = -(probs.mean(0) * probs.mean(0).log()).sum()
    commitment = (latents - latents.detach().sign()).square().mean()
    slow = 0.7 * commitment + 0.3 * (each - of_mean)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(found, torch.autograd.grad(slow, latents)[0])


def test_the_lfq_loss_is_lowest_for_confident_and_evenly_used_codes():
    quantizer = lfq(3, commitment_weight=0.0)
    even = quantizer.lookup(torch.arange(8).view(1, 1, 8))
    unsure = quantizer(0.001 * even).loss
    uneven = quantizer(even[..., :1].expand_as(even)).loss
    best = quantizer(even).loss
    assert best < min(unsure, uneven)
    assert best == pytest.approx(-0.1 * torch.tensor(8.0).log().item(), rel=1e-4)


def test_lfq_sizes_that_disagree_are_refused():
    with pytest.raises(ConfigError, match=r"code_dim 5 channels, 2\*\*5; .* codebook_size 64"):
        LookupFreeQuantizer(QuantizerConfig(kind="lfq", codebook_size=64, code_dim=5))
