import errno
import resource

import pytest
import torch
from torch import nn

from ops.tensor_files import CheckpointError, load_state, load_weights, save_state, save_tensors


def meta(module):
    return module.to("meta")


@pytest.fixture
def limited_files():
    """A limit of 64 KiB on the size of files, as a full disk has for all of them together."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("save", [save_tensors, save_state])
def test_a_disk_that_refuses_is_an_os_error_that_names_the_file(tmp_path, limited_files, save):
    with pytest.raises(OSError, match="large") as raised:
        save(tmp_path / "x", {"a": torch.zeros(1 << 16)})
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(tmp_path / "x")


def test_weights_come_back_as_float32(tmp_path):
    layer = nn.Linear(2, 3)
    save_tensors(tmp_path / "x", {name: t.half() for name, t in layer.state_dict().items()})
    found = load_weights(tmp_path / "x", meta(nn.Linear(2, 3)))
    assert {name: t.dtype for name, t in found.items()} == dict.fromkeys(
        ("weight", "bias"), torch.float32
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(3, 4)}, r"weight is \(3, 4\), but config.json asks for \(3, 2\)"),
        ({"weight": torch.zeros(3, 2, dtype=torch.int64)}, "weight has the type I64"),
        ({"other": torch.zeros(1)}, "other is no tensor of the model"),
        ({"weight": None}, "has no weight, which config.json asks for"),
        ({"weight": None, "bias": None}, "has no weight, nor 1 more"),
        ({"bias": torch.tensor([1e300, 0, 0], dtype=torch.float64)}, "bias holds values that are"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(tmp_path, change, message):
    tensors = {**nn.Linear(2, 3).state_dict(), **change}
    save_tensors(tmp_path / "x", {name: t for name, t in tensors.items() if t is not None})
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "x", meta(nn.Linear(2, 3)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_saved(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"^a holds values that are nan or infinite"):
        save_tensors(tmp_path / "x", {"a": torch.tensor([0.0, value])})
    assert not (tmp_path / "x").exists()


def test_a_state_is_tensors_and_numbers_alone(tmp_path):
    save_state(tmp_path / "x", {"a": torch.ones(2), "b": 1.5})
    assert load_state(tmp_path / "x")["b"] == 1.5
    torch.save({"a": nn.Linear(1, 1)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"names torch.nn.modules.linear.Linear, and only"):
        load_state(tmp_path / "x")
