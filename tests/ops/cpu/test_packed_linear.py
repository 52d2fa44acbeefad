import platform

import pytest
import torch
from torch import nn

from ops.cpu import PackedLinear, can_pack, pack_linear

# Only another processor or a build without oneDNN excuses from packing: if torch dropped the
# operations, sampling would silently become three times as slow.
ONEDNN_ON_X86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


@pytest.mark.skipif(not ONEDNN_ON_X86, reason="weights are packed by oneDNN on x86 only")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_a_packed_layer_equals_the_layer_up_to_rounding(rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 24, bias=bias), torch.randn(2, rows, 40)
    assert can_pack(linear)
    with torch.inference_mode():
        expected = linear.double()(x.double())
        packed = pack_linear(linear.float())
        assert isinstance(packed, PackedLinear)
        torch.testing.assert_close(packed(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_cannot_be_packed_is_returned_itself():
    linear = nn.Linear(4, 4).double()
    assert pack_linear(linear) is linear
