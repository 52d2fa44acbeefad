"""Quantizers with a learned codebook: losses, initialisation, updates, dead codes."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.device_syncs import no_device_syncs
from tests.tokenizer.test_quantizers import CONFIGS, latents_for, make
from tokenizer.quantizers import QUANTIZERS, QuantizerConfig

LEARNED = ("vq", "l2", "simvq", "ema")
CORNERS = torch.tensor([[0.0, 0], [1, 0], [0, 1], [50, 50]])


def four_corners(kind, **changes):
    """A quantizer of four codes in two dimensions, and latents that lie on the first three."""
    config = QuantizerConfig(kind=kind, codebook_size=4, code_dim=2, **changes)
    quantizer = QUANTIZERS[kind](config).train()
    quantizer.is_initialised.fill_(True)
    quantizer.embedding.weight.data.copy_(CORNERS)
    return quantizer, CORNERS[:3].T.reshape(1, 2, 1, 3).clone()


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


def test_the_two_weights_give_the_published_form():
    config = QuantizerConfig(
        codebook_size=8, code_dim=4, commitment_weight=1.0, codebook_weight=0.25
    )
    quantizer = QUANTIZERS["vq"](config).eval()
    latents = latents_for(quantizer).requires_grad_()
    quantized = quantizer(latents)
    quantized.loss.backward()
    pull = 2 * (latents - quantizer.lookup(quantized.codes)).detach() / latents.numel()
    assert torch.allclose(latents.grad, pull, atol=1e-7)


@pytest.mark.parametrize("name", LEARNED)
def test_the_codebook_is_initialised_from_the_first_batch(name):
    quantizer = make(name).train()
    assert quantizer.needs_init
    latents = 5 + latents_for(quantizer, spread=0.1)
    codes = quantizer(latents).codes
    assert not quantizer.needs_init
    assert (quantizer.codebook() > (0.4 if name == "l2" else 4)).all()
    assert len(codes.unique()) > 8  # a codebook near zero would give one code


@pytest.mark.parametrize("name", ["vq", "ema"])
def test_only_a_code_unused_for_long_is_replaced(name):
    quantizer, latents = four_corners(name, restart_after=3)
    for quantizer.step in range(3):
        quantizer(latents)
    torch.testing.assert_close(quantizer.embedding.weight.data, CORNERS)
    quantizer.step = 3
    quantizer(latents)
    torch.testing.assert_close(quantizer.embedding.weight.data[:3], CORNERS[:3])
    replaced = quantizer.embedding.weight.data[3].clone()
    assert (replaced < 3).all()
    for quantizer.step in (4, 5):  # not assigned, but not yet to be replaced again
        quantizer(latents)
    torch.testing.assert_close(quantizer.embedding.weight.data[3], replaced)
    assert quantizer.metrics()["dead_codes"] == 1
    quantizer.step = 6
    quantizer(latents)
    assert (quantizer.embedding.weight.data[3] != replaced).all()


def test_a_code_in_use_until_lately_is_not_replaced():
    quantizer, latents = four_corners("vq", restart_after=3)
    quantizer.step = 1
    quantizer(CORNERS.T.reshape(1, 2, 1, 4).clone())
    for quantizer.step in (2, 3):
        quantizer(latents)
    torch.testing.assert_close(quantizer.embedding.weight.data, CORNERS)
    for quantizer.step in range(4, 7):
        quantizer(latents)
    assert (quantizer.embedding.weight.data[3] < 3).all()


@pytest.mark.parametrize("name", ["vq", "ema"])
def test_the_flag_of_an_initialised_codebook_is_read_once(name):
    quantizer, latents = four_corners(name)
    quantizer(latents)
    with no_device_syncs():
        quantizer(latents)
    state = {key: value.clone() for key, value in make(name).state_dict().items()}
    fresh = QUANTIZERS[name](CONFIGS[name])
    assert not fresh.train()(latents_for(fresh)).codes.requires_grad
    assert not fresh.needs_init
    fresh.load_state_dict(state)  # of a quantizer that was never trained
    assert fresh.needs_init
    fresh.is_initialised.copy_(torch.tensor(True))
    assert not fresh.needs_init
    assert not copy.deepcopy(fresh).needs_init
    assert not fresh.double().needs_init


def test_simvq_moves_unassigned_codes_but_not_its_frozen_codebook():
    quantizer, latents = four_corners("simvq", restart_after=1)
    optimizer = torch.optim.SGD([p for p in quantizer.parameters() if p.requires_grad], lr=0.1)
    before = quantizer.codebook().detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        quantizer(latents + 1).loss.backward()
        optimizer.step()
    assert torch.equal(quantizer.embedding.weight, CORNERS)
    assert (quantizer.codebook()[3] != before[3]).all()


def test_l2_ignores_lengths():
    quantizer = make("l2").eval()
    latents = latents_for(quantizer)
    quantized = quantizer(latents)
    assert torch.equal(quantizer.assign(7 * latents), quantized.codes)
    torch.testing.assert_close(quantized.latents.norm(dim=1), torch.ones(2, 5, 7))
    angles = torch.einsum(
        "bdhw,kd->bkhw", F.normalize(latents, dim=1), F.normalize(quantizer.embedding.weight, dim=1)
    )
    assert torch.equal(angles.argmax(1), quantized.codes)


def test_ema_codes_are_the_decayed_means_of_their_latents():
    quantizer = make("ema").train()
    quantizer(latents_for(quantizer))
    history = []
    quantizer.share.zero_()
    quantizer.sums.zero_()
    for _ in range(4):
        latents = latents_for(quantizer)
        codes = quantizer(latents).codes
        history.append((latents.movedim(1, -1).reshape(-1, 4), codes.flatten()))
    for code in range(quantizer.codebook_size):
        weight, total = 0.0, torch.zeros(4)
        for age, (vectors, codes) in enumerate(reversed(history)):
            chosen = vectors[codes == code]
            weight += 0.99**age * len(chosen)
            total += 0.99**age * chosen.sum(0)
        if weight:
            torch.testing.assert_close(quantizer.embedding.weight[code], total / weight)


def test_ema_has_no_learned_parameters():
    quantizer = make("ema").train()
    quantized = quantizer(latents_for(quantizer).requires_grad_())
    assert [name for name, p in quantizer.named_parameters() if p.requires_grad] == []
    chosen = quantized.latents.detach()
    assert quantized.loss > 0
    assert not chosen.requires_grad


def test_learned_quantizers_are_in_the_contract_tests():
    assert set(LEARNED) < set(CONFIGS)
