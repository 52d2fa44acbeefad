"""The Gumbel-softmax quantizer: schedules, KL term, sampling and gradient."""

import math

import pytest
import torch

from tests.tokenizer.test_quantizers import latents_for
from tokenizer.gumbel_quantizer import GumbelQuantizer
from tokenizer.quantizers import QuantizerConfig


def gumbel(**changes):
    torch.manual_seed(0)
    return GumbelQuantizer(QuantizerConfig(kind="gumbel", codebook_size=16, code_dim=4, **changes))


def test_the_temperature_falls_along_half_a_cosine_of_the_step():
    quantizer = gumbel(temperature=1.0, final_temperature=0.2, temperature_steps=100)
    found = []
    for step in (0, 25, 50, 100, 1000):
        quantizer.step = step
        found.append(quantizer.temperature)
    quarter = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    assert found == pytest.approx([1.0, quarter, 0.6, 0.2, 0.2])
    assert quantizer.metrics()["temperature"] == pytest.approx(0.2)


def test_the_kl_weight_rises_over_its_steps():
    quantizer = gumbel(kl_weight=0.5, kl_steps=10)
    latents = latents_for(quantizer)
    losses = []
    for step in (0, 4, 9, 500):
        quantizer.step = step
        losses.append(quantizer(latents).loss.item())
    logits = quantizer.proj(latents)
    probs = logits.softmax(1)
    kl = (probs * (probs * 16).log()).sum(1).mean().item()
    assert losses == pytest.approx([0.05 * kl, 0.25 * kl, 0.5 * kl, 0.5 * kl], rel=1e-4)


def test_encoding_takes_the_most_likely_code_and_training_samples():
    quantizer = gumbel()
    latents = latents_for(quantizer)
    expected = quantizer.proj(latents).argmax(1)
    for training in (True, False):
        assert torch.equal(quantizer.train(training).assign(latents), expected)
    assert torch.equal(quantizer(latents).codes, expected)
    quantizer.train()
    first, second = quantizer(latents).codes, quantizer(latents).codes
    assert not torch.equal(first, second)


def test_samples_follow_the_softmax():
    quantizer = gumbel()
    latents = latents_for(quantizer)[:1, :, :1, :1]
    probs = quantizer.proj(latents).softmax(1).flatten()
    codes = quantizer.train()(latents.expand(1, -1, 100, 200)).codes
    counts = torch.bincount(codes.flatten(), minlength=16) / codes.numel()
    assert (counts - probs).abs().max() < 0.01


def test_the_value_is_a_code_and_the_gradient_that_of_the_soft_sample():
    quantizer = gumbel(kl_weight=0.0).train()
    latents = latents_for(quantizer).requires_grad_()
    weights = torch.randn_like(latents)
    torch.manual_seed(3)
    quantized = quantizer(latents)
    torch.testing.assert_close(quantized.latents, quantizer.lookup(quantized.codes))
    found = torch.autograd.grad((quantized.latents * weights).sum(), [latents, *learned(quantizer)])

    torch.manual_seed(3)
    hard = torch.nn.functional.gumbel_softmax(quantizer.proj(latents), tau=1.0, hard=True, dim=1)
    slow = torch.einsum("bkhw,kd->bdhw", hard, quantizer.embedding.weight)
    expected = torch.autograd.grad((slow * weights).sum(), [latents, *learned(quantizer)])
    torch.testing.assert_close(found, expected)


def learned(quantizer):
    return [quantizer.proj.weight, quantizer.embedding.weight]
