import collections
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ops.checkpoint import CheckpointError
from ops.published import load_published

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
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
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
