import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ops.cpu import Linear, linear


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """Pretend to be on a processor where oneDNN is faster."""
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
def test_output_and_gradients_equal_those_of_a_linear_layer(shape, bias, threads):
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
def test_any_sizes_and_non_contiguous_rows_are_supported(rows, wide, out):
    layer, source = Linear(wide, out), torch.randn(2, 2 * rows, wide + 1)
    part = source[:, ::2, 1:]
    expected = F.linear(part, layer.weight, layer.bias)
    torch.testing.assert_close(layer(part), expected, rtol=1e-5, atol=1e-5)
    assert layer(part).is_contiguous()


def test_onednn_is_used_in_float32_training_only(monkeypatch):
    calls = []
    monkeypatch.setattr(linear, "_as_convolution", lambda *args: calls.append(1) or F.linear(*args))
    layer, rows = Linear(4, 4), torch.randn(2, 4)
    with torch.inference_mode():
        layer(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(rows)
    Linear(4, 4).double()(rows.double())
    assert not calls
    layer(rows)
    assert calls


def test_a_compiled_layer_is_a_matrix_product():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    layer, rows = Linear(8, 4), torch.randn(3, 8, requires_grad=True)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(rows), layer(rows))
    assert "linear" in graphs[0].code
    assert "conv2d" not in graphs[0].code
