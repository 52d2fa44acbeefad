import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ops.cpu import linear
from ops.cpu.linear import Linear


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As if on a processor where the convolution is the faster way."""
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", True)


def results(apply, rows, layer):
    """The output, and the gradients of everything, for a fixed gradient of the output."""
    inputs = [rows, *layer.parameters()]
    output = apply(rows)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 48), (1, 1, 48), (7, 48), (2, 3, 4, 48)])
def test_a_training_step_has_the_products_and_gradients_of_a_linear_layer(shape, bias, threads):
    torch.manual_seed(0)
    layer, rows = Linear(48, 64, bias=bias), torch.randn(shape, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = results(layer, rows, layer)
        expected = results(lambda x: F.linear(x, layer.weight, layer.bias), rows, layer)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@given(rows=st.integers(1, 70), wide=st.integers(1, 40), out=st.integers(1, 40))
def test_any_sizes_will_do_and_rows_need_not_lie_together(rows, wide, out):
    layer, every = Linear(wide, out), torch.randn(2, 2 * rows, wide + 1)
    part = every[:, ::2, 1:]
    expected = F.linear(part, layer.weight, layer.bias)
    torch.testing.assert_close(layer(part), expected, rtol=1e-5, atol=1e-5)
    assert layer(part).is_contiguous()


def test_it_is_taken_in_training_only_and_in_float32_only(monkeypatch):
    calls = []
    monkeypatch.setattr(
        linear, "_as_convolution", lambda *given: calls.append(1) or F.linear(*given)
    )
    layer, rows = Linear(4, 4), torch.randn(2, 4)
    with torch.inference_mode():
        layer(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(rows)
    Linear(4, 4).double()(rows.double())
    assert not calls
    layer(rows)
    assert calls
