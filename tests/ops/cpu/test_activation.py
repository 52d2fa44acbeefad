"""Fused norm and SiLU: same values and gradients as unfused, fewer saved tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ops.cpu import norm_silu
from tokenizer.autoencoder import ChannelNorm

NORMS = {"group": lambda: nn.GroupNorm(3, 12, eps=1e-6), "channel": lambda: ChannelNorm(12)}


def make_norm_and_input(kind):
    torch.manual_seed(0)
    norm = NORMS[kind]().double()
    for parameter in norm.parameters():
        parameter.data.normal_()
    return norm, torch.randn(2, 12, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_the_unfused_ones(kind, layout):
    norm, x = make_norm_and_input(kind)
    x = x.to(memory_format=layout).requires_grad_()
    weights = torch.randn_like(x)
    inputs = [x, *norm.parameters()]
    fused, unfused = norm_silu(norm, x), F.silu(norm(x))
    torch.testing.assert_close(fused, unfused, rtol=0, atol=0)
    found = torch.autograd.grad((fused * weights).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((unfused * weights).sum(), inputs))


@pytest.mark.parametrize("kind", NORMS)
def test_gradients_agree_with_finite_differences(kind):
    norm, x = make_norm_and_input(kind)
    assert torch.autograd.gradcheck(lambda x: norm_silu(norm, x), x[:1, :, :2, :2].requires_grad_())


@pytest.mark.parametrize("kind", NORMS)
def test_without_gradients_the_result_is_bit_identical_and_the_input_unchanged(kind):
    norm, x = make_norm_and_input(kind)
    before = x.clone()
    expected = norm_silu(norm, x).detach()
    with torch.no_grad():
        assert torch.equal(norm_silu(norm, x), expected)
    assert torch.equal(x, before)


def test_only_the_input_is_saved_for_backward():
    norm, x = make_norm_and_input("group")
    saved = []
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        norm_silu(norm, x)
    large = {tensor.data_ptr() for tensor in saved if tensor.numel() == x.numel()}
    assert large == {x.data_ptr()}


def test_frozen_norms_propagate_the_gradient():
    norm, x = make_norm_and_input("group")
    norm.requires_grad_(False)
    x.requires_grad_()
    (found,) = torch.autograd.grad(norm_silu(norm, x).sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(F.silu(norm(x)).sum(), x)[0])
