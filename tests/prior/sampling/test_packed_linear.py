import platform

import pytest
import torch
from torch import nn

from prior import make_model, preset_config
from prior.sampling.packed_linear import PackedLinear, can_pack, inference_copy

# Only another processor, or a build without oneDNN, excuses from packing: were torch to lose the
# operations that it hangs on, painting would be three times as slow and nobody would be told.
ONEDNN_ON_X86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


@pytest.mark.skipif(not ONEDNN_ON_X86, reason="weights are packed by oneDNN on x86 only")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_a_packed_layer_is_the_layer_up_to_rounding(rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 24, bias=bias), torch.randn(2, rows, 40)
    assert can_pack(linear)
    with torch.inference_mode():
        expected = linear.double()(x.double())
        torch.testing.assert_close(
            PackedLinear(linear.float())(x).double(), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("preset", ["tiny", "tiny-local"])
def test_a_copy_for_painting_packs_every_layer_and_shares_the_rest(preset):
    sizes = {"codebook_size": 7, "condition_vocab_size": 1, "condition_length": 1}
    model = make_model(preset_config(preset, **sizes, num_layers=1, width=32, dropout=0.5))
    copy = inference_copy(model.train())
    packed = [type(module) for module in copy.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == (5 if can_pack(model.head) else 0)
    assert copy.token_embedding.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    assert not copy.training
    assert model.training
    assert model.token_embedding.weight.requires_grad
    condition, codes = torch.tensor([[7]]), torch.randint(7, (1, 5, 5))
    with torch.inference_mode():
        expected = model.eval().nll(condition, codes)
        torch.testing.assert_close(copy.nll(condition, codes), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_packed_stays():
    sizes = {"codebook_size": 7, "condition_vocab_size": 1, "condition_length": 1}
    model = make_model(preset_config("tiny", **sizes, num_layers=1, width=32)).double()
    assert not any(isinstance(module, PackedLinear) for module in inference_copy(model).modules())
