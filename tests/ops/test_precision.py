import pytest
import torch

from ops.config import ConfigError
from ops.precision import PRECISIONS, autocast, check_precision, use_precision


@pytest.fixture(autouse=True)
def as_before():
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tf32_is_used_only_where_it_is_asked_for(precision):
    torch.backends.cudnn.allow_tf32 = precision != "tf32"
    use_precision(precision)
    asked = precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32 is asked
    assert torch.backends.cudnn.allow_tf32 is asked


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_autocast_computes_products_in_the_precision(precision, dtype):
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_names_of_precisions():
    assert [check_precision(name) for name in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(ConfigError, match="No precision 'half'; there are float32, tf32"):
        check_precision("half")
