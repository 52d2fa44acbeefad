import collections
import io
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from ops.checkpoint import CheckpointError
from ops.config import UserError
from ops.published import load_published
from tests.conftest import examples

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def equal(found):
    return found.keys() == TENSORS.keys() and all(torch.equal(found[k], TENSORS[k]) for k in found)


class Callback:
    """An object of a training framework that counts its instances."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.best = {"score": 1.5}


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin", "x.pth"])
def test_plain_state_dicts_are_read(tmp_path, name):
    for zipped in (True, False):  # torch's current format and the older one
        tensors = collections.OrderedDict(TENSORS)
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert equal(load_published(tmp_path / name))


def test_safetensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert equal(load_published(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("old_format", [False, True])
def test_a_training_checkpoint_gives_its_weights_and_executes_nothing(tmp_path, old_format):
    checkpoint = {
        "epoch": 3,
        "global_step": 17,
        "state_dict": TENSORS,
        "callbacks": {Callback: {"kept": Callback()}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    }
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    made = Callback.made
    if old_format:
        # torch cannot list the classes of such a file, so it is refused.
        with pytest.raises(CheckpointError, match=r"it names .*Callback, and only tensors"):
            load_published(path)
    else:
        assert equal(load_published(path))
    assert Callback.made == made


def test_averaged_weights_are_preferred(tmp_path):
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    torch.save({"model": other, "ema": TENSORS, "steps": 3}, tmp_path / "x.pt")
    assert equal(load_published(tmp_path / "x.pt"))


def leave_trace(path):
    Path(path).touch()


class MaliciousObject:
    """Unpickling it calls a function with a path."""

    def __init__(self, function, path):
        self.call = function, (str(path),)

    def __reduce__(self):
        return self.call


def test_a_pickled_call_is_not_executed(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "more": MaliciousObject(leave_trace, trace)}, path)
    assert equal(load_published(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # without the protection it is executed
    assert trace.exists()


def test_a_pickled_system_call_is_refused_without_advice_to_allow_it(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "more": MaliciousObject(os.mkdir, trace)}, path)
    with pytest.raises(CheckpointError, match="mkdir") as refused:
        load_published(path)
    assert "weights_only" not in str(refused.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", pickle.dumps({"a": 1}, protocol=2)]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_published(tmp_path / "x.ckpt")


def test_a_missing_file_and_one_without_tensors_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        load_published(tmp_path / "x.ckpt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        load_published(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "ema_model."],
)
def test_what_wrappers_put_before_keys_is_removed(tmp_path, prefix):
    wrapped = {prefix + key: tensor for key, tensor in TENSORS.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "x.pt")
    assert equal(load_published(tmp_path / "x.pt"))
    save_file(wrapped, tmp_path / "x.safetensors")
    assert equal(load_published(tmp_path / "x.safetensors"))


def test_wrappers_of_submodules_are_removed_and_a_key_that_then_occurs_twice_is_refused(tmp_path):
    inner = {key.replace("a.", "a._orig_mod."): tensor for key, tensor in TENSORS.items()}
    torch.save({"model": {"module": inner}}, tmp_path / "x.pt")
    assert equal(load_published(tmp_path / "x.pt"))
    torch.save({**TENSORS, **inner}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"twice, once as a._orig_mod.weight"):
        load_published(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: {1: torch.zeros(1)}, "must have names, not numbers"),
        (lambda: {"a": torch.zeros(2, 2).to_sparse()}, "sparse"),
        (lambda: {"a": torch.zeros(2, 2).to_sparse_csr()}, "sparse"),
        (lambda: {"a": torch.zeros(2, device="meta")}, "device meta"),
        (lambda: {"a": torch.zeros(1).expand(2**40)}, "of which only 4 bytes are stored"),
        (lambda: {"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        (
            lambda: {"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
            "qint8",
        ),
        (lambda: [torch.zeros(1)], "no named tensors"),
        (lambda: {"net2": {"a": torch.zeros(1)}}, "There are tensors under 'net2'"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_not_plain_are_refused_with_the_reason(tmp_path, make, reason, zipped):
    torch.save(make(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=reason):
        load_published(tmp_path / "x.pt")


def test_folders_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    for path in (tmp_path / "pipe.ckpt", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is not a file"):
            load_published(path)


def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "x.pt")
    save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(CheckpointError, match="GiB of tensors; this machine has"):
            load_published(tmp_path / name)


@settings(max_examples=examples(100))
@given(st.data())
def test_any_bytes_give_tensors_or_a_reason_in_one_line(data):
    """A valid file of each format, some of its bytes replaced, and cut short."""
    valid = data.draw(st.sampled_from(VALID))
    content = bytearray(valid)
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | places)]
    suffix = ".safetensors" if valid is VALID[-1] else ".pt"
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        outcome = read_or_refuse(Path(file.name))
    if isinstance(outcome, str):
        assert "weights_only" not in outcome
        assert "\n" not in outcome
    else:
        assert all(type(tensor) is torch.Tensor for tensor in outcome.values())


def read_or_refuse(path):
    """The tensors, or the message of the UserError; any other error is a fault."""
    try:
        return load_published(path)
    except UserError as error:
        return str(error)


def saved(zipped):
    buffer = io.BytesIO()
    content = {"state_dict": TENSORS, "step": 3, "more": [1.5, "x", (1, 2)]}
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


VALID = [saved(True), saved(False), save(TENSORS)]
