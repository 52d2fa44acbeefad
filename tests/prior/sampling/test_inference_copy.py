import pytest
import torch

from ops.cpu import PackedLinear, can_pack
from prior import make_model, preset_config
from prior.sampling.inference_copy import inference_copy


@pytest.mark.parametrize("preset", ["tiny", "tiny-local"])
def test_an_inference_copy_packs_linear_layers_and_shares_all_other_weights(preset):
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


def test_a_float64_model_is_not_packed():
    sizes = {"codebook_size": 7, "condition_vocab_size": 1, "condition_length": 1}
    model = make_model(preset_config("tiny", **sizes, num_layers=1, width=32)).double()
    assert not any(isinstance(module, PackedLinear) for module in inference_copy(model).modules())
