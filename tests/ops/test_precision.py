import pytest
import torch

from ops.config import ConfigError
from ops.precision import (
    PRECISIONS,
    autocast,
    check_precision,
    float32_products,
    on_device,
    resolve_precision,
    use_precision,
)


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


def test_a_cpu_has_no_tf32():
    assert [on_device(name, "cpu") for name in PRECISIONS] == ["float32", "float32", "bfloat16"]
    assert [on_device(name, "cuda") for name in PRECISIONS] == list(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_can_be_exact_within_any_precision(precision):
    use_precision(precision)
    with autocast(torch.device("cpu"), precision):
        with float32_products(torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.is_autocast_enabled("cpu") is (precision == "bfloat16")
    assert torch.backends.cuda.matmul.allow_tf32 is (precision == "tf32")


def test_auto_is_a_gpus_own_default_and_float32_on_a_cpu():
    assert resolve_precision("auto", "cpu") == resolve_precision("tf32", "cpu") == "float32"
    assert resolve_precision("auto", "cuda") == "bfloat16"
    assert resolve_precision("auto", "cuda", "tf32") == "tf32"
    assert resolve_precision("bfloat16", "cpu", "tf32") == "bfloat16"
    with pytest.raises(ConfigError, match="No precision 'half'"):
        resolve_precision("half", "cuda")
