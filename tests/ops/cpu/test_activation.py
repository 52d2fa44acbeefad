"""A norm with its SiLU as one step: the same values and slopes, and less is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ops.cpu.activation import norm_silu
from tokenizer.autoencoder import ChannelNorm

NORMS = {"group": lambda: nn.GroupNorm(3, 12, eps=1e-6), "channel": lambda: ChannelNorm(12)}


def made(kind):
    torch.manual_seed(0)
    norm = NORMS[kind]().double()
    for parameter in norm.parameters():
        parameter.data.normal_()
    return norm, torch.randn(2, 12, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_two_apart(kind, layout):
    norm, x = made(kind)
    x = x.to(memory_format=layout).requires_grad_()
    weights = torch.randn_like(x)
    inputs = [x, *norm.parameters()]
    together, apart = norm_silu(norm, x), F.silu(norm(x))
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    found = torch.autograd.grad((together * weights).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((apart * weights).sum(), inputs))


@pytest.mark.parametrize("kind", NORMS)
def test_slopes_are_those_of_small_steps(kind):
    norm, x = made(kind)
    assert torch.autograd.gradcheck(lambda x: norm_silu(norm, x), x[:1, :, :2, :2].requires_grad_())


@pytest.mark.parametrize("kind", NORMS)
def test_without_a_gradient_the_bits_are_the_same_and_the_input_is_left_alone(kind):
    norm, x = made(kind)
    before = x.clone()
    expected = norm_silu(norm, x).detach()
    with torch.no_grad():
        assert torch.equal(norm_silu(norm, x), expected)
    assert torch.equal(x, before)


def test_only_the_input_is_kept():
    norm, x = made("group")
    kept = []
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_silu(norm, x)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() == x.numel()}
    assert large == {x.data_ptr()}


def test_frozen_norms_pass_the_gradient_on():
    norm, x = made("group")
    norm.requires_grad_(False)
    x.requires_grad_()
    (found,) = torch.autograd.grad(norm_silu(norm, x).sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(F.silu(norm(x)).sum(), x)[0])
